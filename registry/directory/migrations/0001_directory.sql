-- Who there is and what there is. Times are nanoseconds since 1970, UTC.
CREATE TABLE registry_orgs (
	name TEXT NOT NULL PRIMARY KEY,
	created BIGINT NOT NULL
);

-- kind: person or service. password: argon2id in PHC form. platform: actions of a service, joined by commas.
CREATE TABLE registry_accounts (
	name TEXT NOT NULL PRIMARY KEY,
	kind TEXT NOT NULL,
	password TEXT NOT NULL,
	platform TEXT NOT NULL,
	created BIGINT NOT NULL
);

CREATE TABLE registry_members (
	account TEXT NOT NULL REFERENCES registry_accounts (name) ON DELETE CASCADE,
	org TEXT NOT NULL REFERENCES registry_orgs (name) ON DELETE CASCADE,
	role TEXT NOT NULL,
	PRIMARY KEY (account, org)
);
CREATE INDEX registry_members_org ON registry_members (org);

CREATE TABLE registry_repositories (
	name TEXT NOT NULL PRIMARY KEY,
	org TEXT NOT NULL REFERENCES registry_orgs (name),
	visibility TEXT NOT NULL,
	created BIGINT NOT NULL,
	pushed BIGINT NOT NULL,
	created_by TEXT NOT NULL
);
CREATE INDEX registry_repositories_org ON registry_repositories (org, name);

-- hash: SHA-256 of the token in hex; the token itself is nowhere.
CREATE TABLE registry_offline_tokens (
	hash TEXT NOT NULL PRIMARY KEY,
	account TEXT NOT NULL REFERENCES registry_accounts (name) ON DELETE CASCADE,
	audience TEXT NOT NULL,
	client TEXT NOT NULL,
	created BIGINT NOT NULL,
	used BIGINT NOT NULL
);
CREATE INDEX registry_offline_tokens_account ON registry_offline_tokens (account, created);
