-- What the registry holds, as rows. Times are nanoseconds since 1970, UTC; 0 is never.

-- digest: the name that the manifest was pushed under. content: its SHA-256, under which the store has it.
-- subject: "" for none. platform: os/architecture[/variant]. annotations and labels: JSON objects.
CREATE TABLE index_manifests (
	repository TEXT NOT NULL,
	digest TEXT NOT NULL,
	org TEXT NOT NULL,
	content TEXT NOT NULL,
	media_type TEXT NOT NULL,
	artifact_type TEXT NOT NULL,
	size BIGINT NOT NULL,
	subject TEXT NOT NULL,
	annotations TEXT NOT NULL,
	platform TEXT NOT NULL,
	created BIGINT NOT NULL,
	labels TEXT NOT NULL,
	pushed BIGINT NOT NULL,
	pushed_by TEXT NOT NULL,
	pulled BIGINT NOT NULL,
	pulls BIGINT NOT NULL,
	PRIMARY KEY (repository, digest)
);
CREATE INDEX index_manifests_subject ON index_manifests (repository, subject, digest);
CREATE INDEX index_manifests_content ON index_manifests (content);

-- kind: config, layer, manifest (of an index), foreign (a layer that is elsewhere).
CREATE TABLE index_manifest_blobs (
	repository TEXT NOT NULL,
	manifest TEXT NOT NULL,
	blob TEXT NOT NULL,
	kind TEXT NOT NULL,
	size BIGINT NOT NULL,
	PRIMARY KEY (repository, manifest, blob)
);
CREATE INDEX index_manifest_blobs_blob ON index_manifest_blobs (blob, repository, manifest);

-- seq counts a tag's moves; it never goes back, not even when the tag is deleted and made again.
CREATE TABLE index_tags (
	repository TEXT NOT NULL,
	tag TEXT NOT NULL,
	digest TEXT NOT NULL,
	seq BIGINT NOT NULL,
	pushed BIGINT NOT NULL,
	pushed_by TEXT NOT NULL,
	PRIMARY KEY (repository, tag)
);
CREATE INDEX index_tags_digest ON index_tags (repository, digest);

-- before: "" for a new tag. after: "" for a tag that was deleted. cause: push, delete, retention, import.
CREATE TABLE index_tag_history (
	id INTEGER PRIMARY KEY,
	repository TEXT NOT NULL,
	tag TEXT NOT NULL,
	seq BIGINT NOT NULL,
	before_digest TEXT NOT NULL,
	after_digest TEXT NOT NULL,
	at BIGINT NOT NULL,
	actor TEXT NOT NULL,
	cause TEXT NOT NULL
);
CREATE INDEX index_tag_history_tag ON index_tag_history (repository, tag, seq);

-- Each blob of an org once. refs: manifests that need it. since: when it came, for those that none needs yet.
CREATE TABLE index_org_blobs (
	org TEXT NOT NULL,
	blob TEXT NOT NULL,
	size BIGINT NOT NULL,
	refs BIGINT NOT NULL,
	since BIGINT NOT NULL,
	PRIMARY KEY (org, blob)
);
CREATE INDEX index_org_blobs_pending ON index_org_blobs (refs, since);

CREATE TABLE index_usage (
	org TEXT NOT NULL PRIMARY KEY,
	bytes BIGINT NOT NULL
);

-- document: JSON of Rules.
CREATE TABLE index_rules (
	repository TEXT NOT NULL PRIMARY KEY,
	document TEXT NOT NULL,
	changed BIGINT NOT NULL,
	changed_by TEXT NOT NULL
);

-- What is known of an image. source: the manifest that says so, the image itself or a referrer.
CREATE TABLE index_facts (
	repository TEXT NOT NULL,
	image TEXT NOT NULL,
	source TEXT NOT NULL,
	org TEXT NOT NULL,
	kind TEXT NOT NULL,
	name TEXT NOT NULL,
	value TEXT NOT NULL,
	PRIMARY KEY (repository, image, source, kind, name)
);
CREATE INDEX index_facts_find ON index_facts (org, kind, name, value, repository, image);
CREATE INDEX index_facts_source ON index_facts (repository, source);

CREATE TABLE index_state (
	name TEXT NOT NULL PRIMARY KEY,
	value TEXT NOT NULL
);
