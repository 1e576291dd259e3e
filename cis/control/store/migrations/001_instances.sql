-- One row of cis_meta for each of: version (value: the last version given out), pruned (value: the highest version of a
-- record that was removed), store (data: the random name of this store), key (data: proof of the sealing key).
CREATE TABLE cis_meta (
  name TEXT NOT NULL PRIMARY KEY,
  value BIGINT NOT NULL,
  data BLOB
);

-- Times are nanoseconds since 1970, UTC; final_at is 0 while the instance is live. spec is sealed JSON, desired and
-- status are JSON. spec_hash is of the spec as created, whatever is changed later.
CREATE TABLE cis_instances (
  id TEXT NOT NULL PRIMARY KEY,
  org TEXT NOT NULL,
  create_key TEXT NOT NULL,
  spec_hash TEXT NOT NULL,
  spec BLOB NOT NULL,
  node TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  version BIGINT NOT NULL,
  final_at BIGINT NOT NULL,
  desired TEXT NOT NULL,
  status TEXT NOT NULL,
  UNIQUE (org, create_key)
);
CREATE INDEX cis_instances_version ON cis_instances (org, version);
CREATE INDEX cis_instances_created ON cis_instances (org, created_at, id);
CREATE INDEX cis_instances_final ON cis_instances (final_at);

-- hash is of type, reason, container and message: equal events are counted in one row.
CREATE TABLE cis_events (
  instance TEXT NOT NULL,
  hash TEXT NOT NULL,
  org TEXT NOT NULL,
  node TEXT NOT NULL,
  version BIGINT NOT NULL,
  type TEXT NOT NULL,
  reason TEXT NOT NULL,
  container TEXT NOT NULL,
  message TEXT NOT NULL,
  first_at BIGINT NOT NULL,
  last_at BIGINT NOT NULL,
  count BIGINT NOT NULL,
  PRIMARY KEY (instance, hash)
);
CREATE INDEX cis_events_version ON cis_events (org, version);
