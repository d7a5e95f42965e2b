-- What reading a file whole found, as it is told; null until then.
ALTER TABLE replica ADD COLUMN checked BLOB;

CREATE INDEX content_sha256 ON content (sha256);

-- Ids of images that became others: the same ISO found on another host.
CREATE TABLE alias (
    image         BLOB PRIMARY KEY,
    became        BLOB NOT NULL
) STRICT;

-- A file is known by its stamp wherever it was renamed to.
CREATE INDEX replica_inode ON replica (volume, inode);
