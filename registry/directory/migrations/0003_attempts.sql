-- What is remembered of logins by password, for all nodes. who: SHA-256 in hex of an account name, or of one and a client
-- address: what is typed as a name may be a password. good: 1 of an address from which the account has logged in. last: of
-- the last failure, or of a good login, to a day.
CREATE TABLE registry_login_attempts (
	who TEXT NOT NULL PRIMARY KEY,
	failures BIGINT NOT NULL,
	last BIGINT NOT NULL,
	good BIGINT NOT NULL
);
CREATE INDEX registry_login_attempts_last ON registry_login_attempts (good, last);
