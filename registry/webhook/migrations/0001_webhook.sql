-- Webhooks and their outbox. Times are nanoseconds since 1970, UTC; 0 is never. Lists are JSON.
-- state: enabled; paused (by a person); disabled (by the server, reason says why). secrets: sealed, see secret.go.
-- failing: since when every attempt has failed.
CREATE TABLE registry_webhooks (
	id TEXT NOT NULL PRIMARY KEY,
	org TEXT NOT NULL REFERENCES registry_orgs (name) ON DELETE CASCADE,
	url TEXT NOT NULL,
	description TEXT NOT NULL,
	events TEXT NOT NULL,
	repositories TEXT NOT NULL,
	state TEXT NOT NULL,
	reason TEXT NOT NULL,
	secrets BLOB NOT NULL,
	created BIGINT NOT NULL,
	created_by TEXT NOT NULL,
	updated BIGINT NOT NULL,
	failing BIGINT NOT NULL,
	succeeded BIGINT NOT NULL
);
CREATE INDEX registry_webhooks_org ON registry_webhooks (org, id);

-- routed: 0 until the event's deliveries are made. One that no hook wants is deleted then.
CREATE TABLE registry_webhook_events (
	seq INTEGER PRIMARY KEY,
	id TEXT NOT NULL UNIQUE,
	org TEXT NOT NULL,
	type TEXT NOT NULL,
	repository TEXT NOT NULL,
	body TEXT NOT NULL,
	created BIGINT NOT NULL,
	routed BIGINT NOT NULL
);
CREATE INDEX registry_webhook_events_routed ON registry_webhook_events (routed, seq);

-- One for each hook and event. state: pending, delivered, failed. tries: since it was last asked for; attempts: ever.
-- forced: asked for by a person, so the hook need not be enabled. leased: a process is at it until then.
CREATE TABLE registry_webhook_deliveries (
	hook TEXT NOT NULL REFERENCES registry_webhooks (id) ON DELETE CASCADE,
	event TEXT NOT NULL,
	type TEXT NOT NULL,
	repository TEXT NOT NULL,
	state TEXT NOT NULL,
	forced BIGINT NOT NULL,
	tries BIGINT NOT NULL,
	attempts BIGINT NOT NULL,
	next BIGINT NOT NULL,
	leased BIGINT NOT NULL,
	created BIGINT NOT NULL,
	finished BIGINT NOT NULL,
	PRIMARY KEY (hook, event)
);
CREATE INDEX registry_webhook_deliveries_due ON registry_webhook_deliveries (state, hook, next);
CREATE INDEX registry_webhook_deliveries_log ON registry_webhook_deliveries (hook, created, event);
CREATE INDEX registry_webhook_deliveries_event ON registry_webhook_deliveries (event);

CREATE TABLE registry_webhook_attempts (
	hook TEXT NOT NULL,
	event TEXT NOT NULL,
	number BIGINT NOT NULL,
	started BIGINT NOT NULL,
	millis BIGINT NOT NULL,
	status BIGINT NOT NULL,
	error TEXT NOT NULL,
	response TEXT NOT NULL,
	PRIMARY KEY (hook, event, number),
	FOREIGN KEY (hook, event) REFERENCES registry_webhook_deliveries (hook, event) ON DELETE CASCADE
);
