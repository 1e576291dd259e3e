-- Teams, grants, robots, API keys, identities, quotas and the audit log. Times are nanoseconds since 1970, UTC; 0 is never.
ALTER TABLE registry_accounts ADD COLUMN disabled BIGINT NOT NULL DEFAULT 0;

CREATE TABLE registry_quotas (
	org TEXT NOT NULL PRIMARY KEY REFERENCES registry_orgs (name) ON DELETE CASCADE,
	bytes BIGINT NOT NULL,
	repositories BIGINT NOT NULL
);

CREATE TABLE registry_teams (
	org TEXT NOT NULL REFERENCES registry_orgs (name) ON DELETE CASCADE,
	name TEXT NOT NULL,
	description TEXT NOT NULL,
	created BIGINT NOT NULL,
	PRIMARY KEY (org, name)
);

-- Who leaves the org leaves its teams.
CREATE TABLE registry_team_members (
	org TEXT NOT NULL,
	team TEXT NOT NULL,
	account TEXT NOT NULL,
	PRIMARY KEY (org, team, account),
	FOREIGN KEY (org, team) REFERENCES registry_teams (org, name) ON DELETE CASCADE,
	FOREIGN KEY (account, org) REFERENCES registry_members (account, org) ON DELETE CASCADE
);
CREATE INDEX registry_team_members_account ON registry_team_members (account, org);

-- subject: team/NAME or account/NAME. pattern: a full name, or a prefix and *.
CREATE TABLE registry_grants (
	org TEXT NOT NULL REFERENCES registry_orgs (name) ON DELETE CASCADE,
	subject TEXT NOT NULL,
	pattern TEXT NOT NULL,
	role TEXT NOT NULL,
	created BIGINT NOT NULL,
	created_by TEXT NOT NULL,
	PRIMARY KEY (org, subject, pattern)
);
CREATE INDEX registry_grants_subject ON registry_grants (subject);

-- A robot is an account of kind robot, so that what hangs on an account hangs on it too. secret: SHA-256 in hex.
-- scopes: JSON.
CREATE TABLE registry_robots (
	account TEXT NOT NULL PRIMARY KEY REFERENCES registry_accounts (name) ON DELETE CASCADE,
	org TEXT NOT NULL REFERENCES registry_orgs (name) ON DELETE CASCADE,
	name TEXT NOT NULL,
	description TEXT NOT NULL,
	secret TEXT NOT NULL,
	scopes TEXT NOT NULL,
	expires BIGINT NOT NULL,
	used BIGINT NOT NULL,
	created BIGINT NOT NULL,
	created_by TEXT NOT NULL,
	UNIQUE (org, name)
);

CREATE TABLE registry_api_keys (
	id TEXT NOT NULL PRIMARY KEY,
	account TEXT NOT NULL REFERENCES registry_accounts (name) ON DELETE CASCADE,
	name TEXT NOT NULL,
	secret TEXT NOT NULL UNIQUE,
	scopes TEXT NOT NULL,
	expires BIGINT NOT NULL,
	used BIGINT NOT NULL,
	created BIGINT NOT NULL,
	UNIQUE (account, name)
);

-- api_key: the key that an offline token was got with; it ends with it. Empty for any other proof.
ALTER TABLE registry_offline_tokens ADD COLUMN api_key TEXT NOT NULL DEFAULT '';

-- Who an account is at an OpenID provider.
CREATE TABLE registry_identities (
	issuer TEXT NOT NULL,
	subject TEXT NOT NULL,
	account TEXT NOT NULL REFERENCES registry_accounts (name) ON DELETE CASCADE,
	email TEXT NOT NULL,
	created BIGINT NOT NULL,
	used BIGINT NOT NULL,
	PRIMARY KEY (issuer, subject)
);
CREATE INDEX registry_identities_account ON registry_identities (account);

-- Logins by browser under way (RFC 8628): device, code and state are SHA-256 in hex of what was given out.
-- link: the account that the identity is to be linked to, empty for a login.
CREATE TABLE registry_device_logins (
	device TEXT NOT NULL PRIMARY KEY,
	code TEXT NOT NULL UNIQUE,
	state TEXT NOT NULL,
	browser TEXT NOT NULL,
	nonce TEXT NOT NULL,
	verifier TEXT NOT NULL,
	address TEXT NOT NULL,
	link TEXT NOT NULL,
	account TEXT NOT NULL,
	outcome TEXT NOT NULL,
	created BIGINT NOT NULL,
	polled BIGINT NOT NULL
);
CREATE INDEX registry_device_logins_state ON registry_device_logins (state);
CREATE INDEX registry_device_logins_created ON registry_device_logins (created);

-- Entries are added and, when they are too old, removed; never changed. detail: JSON.
CREATE TABLE registry_audit (
	id INTEGER PRIMARY KEY,
	time BIGINT NOT NULL,
	org TEXT NOT NULL,
	actor TEXT NOT NULL,
	address TEXT NOT NULL,
	action TEXT NOT NULL,
	target TEXT NOT NULL,
	denied BIGINT NOT NULL,
	detail TEXT NOT NULL
);
CREATE INDEX registry_audit_org ON registry_audit (org, id);
CREATE INDEX registry_audit_time ON registry_audit (time);

-- Events of committed changes that are not in the outbox yet. body: JSON.
CREATE TABLE registry_pending_events (
	id TEXT NOT NULL PRIMARY KEY,
	body TEXT NOT NULL,
	created BIGINT NOT NULL
);
