-- More than one OpenID provider, and the groups that they tell. provider: where a login by browser was sent, by the
-- name that the configuration gives.
ALTER TABLE registry_device_logins ADD COLUMN provider TEXT NOT NULL DEFAULT '';

-- What the groups of an identity give its account, as of its last login. team: empty for the membership of the org.
-- before: 1 when the account was in the team before.
CREATE TABLE registry_group_rights (
	account TEXT NOT NULL REFERENCES registry_accounts (name) ON DELETE CASCADE,
	issuer TEXT NOT NULL,
	subject TEXT NOT NULL,
	org TEXT NOT NULL REFERENCES registry_orgs (name) ON DELETE CASCADE,
	team TEXT NOT NULL,
	role TEXT NOT NULL,
	before BIGINT NOT NULL,
	PRIMARY KEY (account, issuer, subject, org, team)
);

-- Members whose role groups decide: own is the role that they have without, or ''; given is what was set last.
CREATE TABLE registry_group_members (
	account TEXT NOT NULL REFERENCES registry_accounts (name) ON DELETE CASCADE,
	org TEXT NOT NULL REFERENCES registry_orgs (name) ON DELETE CASCADE,
	own TEXT NOT NULL,
	given TEXT NOT NULL,
	PRIMARY KEY (account, org)
);
