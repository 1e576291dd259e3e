-- The one row is updated first in every writing transaction, which serialises writers on both dialects.
CREATE TABLE billing_state (
	id BIGINT NOT NULL PRIMARY KEY,
	version BIGINT NOT NULL,
	checkpoint TEXT NOT NULL,
	complete_through BIGINT NOT NULL,
	newest_event BIGINT NOT NULL,
	closed_through TEXT NOT NULL
);
INSERT INTO billing_state (id, version, checkpoint, complete_through, newest_event, closed_through) VALUES (1, 0, '', 0, 0, '');

CREATE TABLE billing_events (
	event_id TEXT NOT NULL PRIMARY KEY,
	instance TEXT NOT NULL,
	incarnation BIGINT NOT NULL,
	sequence BIGINT NOT NULL,
	body TEXT NOT NULL,
	received BIGINT NOT NULL,
	UNIQUE (instance, incarnation, sequence)
);

CREATE TABLE billing_quarantine (
	digest TEXT NOT NULL,
	event_id TEXT NOT NULL,
	reason TEXT NOT NULL,
	body BLOB NOT NULL,
	received BIGINT NOT NULL,
	PRIMARY KEY (received, digest),
	UNIQUE (digest)
);

-- One row a life: what is billed for, and where its fold stands. Instants are nanoseconds since 1970.
CREATE TABLE billing_lives (
	instance TEXT NOT NULL PRIMARY KEY,
	org TEXT NOT NULL,
	name TEXT NOT NULL,
	region TEXT NOT NULL,
	node TEXT NOT NULL,
	sandbox_class TEXT NOT NULL,
	size_class TEXT NOT NULL,
	milli_cpu BIGINT NOT NULL,
	memory_mib BIGINT NOT NULL,
	first_at BIGINT NOT NULL,
	last_at BIGINT NOT NULL,
	incarnation BIGINT NOT NULL,
	sequence BIGINT NOT NULL,
	startup_millis BIGINT NOT NULL,
	running_millis BIGINT NOT NULL,
	startup_seconds BIGINT NOT NULL,
	running_seconds BIGINT NOT NULL,
	stopped BIGINT NOT NULL,
	reason TEXT NOT NULL
);
CREATE INDEX billing_lives_org ON billing_lives (org, first_at);

-- Billed seconds that began in an hour (seconds since 1970 of its begin), as the events known now say.
CREATE TABLE billing_usage (
	instance TEXT NOT NULL,
	hour BIGINT NOT NULL,
	org TEXT NOT NULL,
	startup_seconds BIGINT NOT NULL,
	running_seconds BIGINT NOT NULL,
	PRIMARY KEY (instance, hour)
);
CREATE INDEX billing_usage_org ON billing_usage (org, hour);
CREATE INDEX billing_usage_hour ON billing_usage (hour);

-- What the statement of a closed month holds. Rows are only ever added, all of a month in the closing transaction.
CREATE TABLE billing_billed (
	month TEXT NOT NULL,
	instance TEXT NOT NULL,
	hour BIGINT NOT NULL,
	org TEXT NOT NULL,
	startup_seconds BIGINT NOT NULL,
	running_seconds BIGINT NOT NULL,
	estimated BIGINT NOT NULL,
	PRIMARY KEY (month, instance, hour)
);
CREATE INDEX billing_billed_org ON billing_billed (org, month);
CREATE INDEX billing_billed_hour ON billing_billed (instance, hour);

-- Hours of closed months whose usage changed after the closing: corrections of the open month.
CREATE TABLE billing_late (
	instance TEXT NOT NULL,
	hour BIGINT NOT NULL,
	org TEXT NOT NULL,
	PRIMARY KEY (instance, hour)
);

CREATE TABLE billing_closed (
	month TEXT NOT NULL PRIMARY KEY,
	closed_at BIGINT NOT NULL
);

CREATE TABLE billing_price_versions (
	id TEXT NOT NULL PRIMARY KEY,
	effective_from BIGINT NOT NULL UNIQUE,
	digest TEXT NOT NULL,
	body TEXT NOT NULL
);
