-- Where the registry's content is. Times are milliseconds since 1970, UTC.

-- One row: last is the number of the newest change that regions replicate, purged that of the newest forgotten removal.
CREATE TABLE gos_sequence (
	id BIGINT NOT NULL PRIMARY KEY,
	last BIGINT NOT NULL,
	purged BIGINT NOT NULL
);
INSERT INTO gos_sequence (id, last, purged) VALUES (1, 0, 0);

-- The small files of the distribution core's layout, and the data of committed uploads, which is an object of a region.
-- Of links repository, kind (layer, revision, tag, upload) and digest say what the path says. touched is when a link
-- was last asked for.
CREATE TABLE gos_files (
	path TEXT NOT NULL PRIMARY KEY,
	content BLOB,
	region TEXT NOT NULL,
	object TEXT NOT NULL,
	size BIGINT NOT NULL,
	modified BIGINT NOT NULL,
	touched BIGINT NOT NULL,
	repository TEXT NOT NULL,
	kind TEXT NOT NULL,
	digest TEXT NOT NULL,
	seq BIGINT NOT NULL
);
CREATE INDEX gos_files_digest ON gos_files (digest, kind);
CREATE INDEX gos_files_kind ON gos_files (kind, touched);
CREATE INDEX gos_files_seq ON gos_files (seq);

-- What writers of a file have stored of it before its commit: objects one behind the other.
CREATE TABLE gos_segments (
	path TEXT NOT NULL,
	start BIGINT NOT NULL,
	region TEXT NOT NULL,
	object TEXT NOT NULL,
	size BIGINT NOT NULL,
	modified BIGINT NOT NULL,
	PRIMARY KEY (path, start)
);

-- Blobs whose digest is verified. state is live or marked (since the time marked); nothing is collected before its
-- lease is over. epoch tells one life of a digest from the next. inline is the content of manifests.
CREATE TABLE gos_blobs (
	digest TEXT NOT NULL PRIMARY KEY,
	size BIGINT NOT NULL,
	inline BLOB,
	state TEXT NOT NULL,
	marked BIGINT NOT NULL,
	lease BIGINT NOT NULL,
	epoch BIGINT NOT NULL,
	seq BIGINT NOT NULL
);
CREATE INDEX gos_blobs_state ON gos_blobs (state, lease);
CREATE INDEX gos_blobs_seq ON gos_blobs (seq);

CREATE TABLE gos_replicas (
	digest TEXT NOT NULL,
	region TEXT NOT NULL,
	object TEXT NOT NULL,
	PRIMARY KEY (digest, region)
);

-- Owners other than repositories that keep a blob.
CREATE TABLE gos_references (
	owner TEXT NOT NULL,
	digest TEXT NOT NULL,
	PRIMARY KEY (owner, digest)
);
CREATE INDEX gos_references_digest ON gos_references (digest);

-- Objects that are to be deleted once due is over: what is being written stands here too, until it is committed.
CREATE TABLE gos_garbage (
	region TEXT NOT NULL,
	object TEXT NOT NULL,
	due BIGINT NOT NULL,
	PRIMARY KEY (region, object)
);
CREATE INDEX gos_garbage_due ON gos_garbage (region, due);

-- Who leads something until a time.
CREATE TABLE gos_leases (
	name TEXT NOT NULL PRIMARY KEY,
	owner TEXT NOT NULL,
	until BIGINT NOT NULL
);

-- Removals that regions replicate: kind is file or blob.
CREATE TABLE gos_gone (
	seq BIGINT NOT NULL PRIMARY KEY,
	kind TEXT NOT NULL,
	name TEXT NOT NULL,
	at BIGINT NOT NULL
);
