-- What an operator has set for an org over the configuration's quota.
CREATE TABLE cis_quotas (
  org TEXT NOT NULL PRIMARY KEY,
  instances BIGINT NOT NULL,
  milli_cpu BIGINT NOT NULL,
  memory_mib BIGINT NOT NULL
);

-- Who changed that and how: quotas before and after are JSON, '' for none. Written in the transaction of the change,
-- never changed.
CREATE TABLE cis_quota_changes (
  id INTEGER PRIMARY KEY,
  org TEXT NOT NULL,
  time BIGINT NOT NULL,
  actor TEXT NOT NULL,
  quota_before TEXT NOT NULL,
  quota_after TEXT NOT NULL
);
CREATE INDEX cis_quota_changes_org ON cis_quota_changes (org, id);
