-- Helm charts of the classic repositories. revision: of the repository when the chart was stored; entry: what index.yaml
-- says of it, JSON. prov: its provenance file, or ''. owner: the name under which the blob space keeps the archive.
CREATE TABLE registry_charts (
	repository TEXT NOT NULL,
	name TEXT NOT NULL,
	version TEXT NOT NULL,
	org TEXT NOT NULL,
	digest TEXT NOT NULL,
	size BIGINT NOT NULL,
	entry TEXT NOT NULL,
	prov TEXT NOT NULL,
	owner TEXT NOT NULL,
	created BIGINT NOT NULL,
	created_by TEXT NOT NULL,
	PRIMARY KEY (repository, name, version)
);
CREATE INDEX registry_charts_org ON registry_charts (org, digest);

-- One row for each repository that had a chart, counting its changes; and one for each name, with its last.
CREATE TABLE registry_chart_repositories (
	repository TEXT NOT NULL PRIMARY KEY,
	revision BIGINT NOT NULL,
	changed BIGINT NOT NULL
);
CREATE TABLE registry_chart_names (
	repository TEXT NOT NULL,
	name TEXT NOT NULL,
	revision BIGINT NOT NULL,
	PRIMARY KEY (repository, name)
);
CREATE INDEX registry_chart_names_revision ON registry_chart_names (repository, revision);
