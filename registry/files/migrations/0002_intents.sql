-- Content that is being stored stands among the garbage too, until a row holds it: due is when it is over, 0 for what is
-- to be released now. Of what is being stored the digest is not known, ''.
ALTER TABLE registry_file_garbage ADD COLUMN due BIGINT NOT NULL DEFAULT 0;
CREATE INDEX registry_file_garbage_due ON registry_file_garbage (due);
