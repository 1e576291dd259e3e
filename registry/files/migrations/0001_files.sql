-- Plain versioned files. Times are nanoseconds since 1970, UTC. owner is the name under which the blob space keeps the
-- content for this row.
CREATE TABLE registry_files (
	repository TEXT NOT NULL,
	path TEXT NOT NULL,
	version TEXT NOT NULL,
	org TEXT NOT NULL,
	digest TEXT NOT NULL,
	size BIGINT NOT NULL,
	media_type TEXT NOT NULL,
	owner TEXT NOT NULL,
	created BIGINT NOT NULL,
	created_by TEXT NOT NULL,
	PRIMARY KEY (repository, path, version)
);
CREATE INDEX registry_files_latest ON registry_files (repository, path, created);
CREATE INDEX registry_files_org ON registry_files (org, digest);

-- Uploads in parts. digest: what the client says that the whole will have, or ''. expected: the digest of the content
-- that may be replaced, '*' for any, '' for none. finished: 0 while it goes on.
CREATE TABLE registry_file_uploads (
	id TEXT NOT NULL PRIMARY KEY,
	repository TEXT NOT NULL,
	path TEXT NOT NULL,
	version TEXT NOT NULL,
	media_type TEXT NOT NULL,
	digest TEXT NOT NULL,
	expected TEXT NOT NULL,
	length BIGINT NOT NULL,
	account TEXT NOT NULL,
	expires BIGINT NOT NULL,
	finished BIGINT NOT NULL
);
CREATE INDEX registry_file_uploads_expires ON registry_file_uploads (expires);
CREATE INDEX registry_file_uploads_repository ON registry_file_uploads (repository);

CREATE TABLE registry_file_parts (
	upload TEXT NOT NULL REFERENCES registry_file_uploads (id) ON DELETE CASCADE,
	start BIGINT NOT NULL,
	size BIGINT NOT NULL,
	digest TEXT NOT NULL,
	owner TEXT NOT NULL,
	PRIMARY KEY (upload, start)
);

-- Content that no row holds any more and the blob space does not know of yet.
CREATE TABLE registry_file_garbage (
	owner TEXT NOT NULL PRIMARY KEY,
	digest TEXT NOT NULL
);
