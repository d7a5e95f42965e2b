-- Files being written. Image id and inode number are reserved, the name is nobody else's.
CREATE TABLE upload (
    id            BLOB PRIMARY KEY,
    image         BLOB NOT NULL UNIQUE,
    ino           INTEGER NOT NULL,
    parent        INTEGER NOT NULL REFERENCES folder (ino),
    name          TEXT NOT NULL,
    mode          INTEGER NOT NULL,
    volume        BLOB NOT NULL REFERENCES volume (id),
    node          BLOB NOT NULL REFERENCES node (id),
    UNIQUE (parent, name)
) STRICT;

-- Deleted images whose bytes are still there: the record as it was, and its paths, a line each.
CREATE TABLE trash (
    image         BLOB PRIMARY KEY,
    body          BLOB NOT NULL,
    paths         TEXT NOT NULL,
    deleted_ns    INTEGER NOT NULL,
    expires_ns    INTEGER NOT NULL
) STRICT;
CREATE INDEX trash_expires ON trash (expires_ns);

-- What agents have yet to do with files. While it stands here, a scan that meets a file of this
-- stamp brings nothing back and finds nothing new.
CREATE TABLE file_task (
    volume        BLOB NOT NULL REFERENCES volume (id),
    image         BLOB NOT NULL,
    path          TEXT NOT NULL,
    kind          TEXT NOT NULL,
    inode         INTEGER NOT NULL,
    size_bytes    INTEGER NOT NULL,
    mtime_ns      INTEGER NOT NULL,
    PRIMARY KEY (volume, image, path)
) STRICT;
CREATE INDEX file_task_inode ON file_task (volume, inode);
CREATE INDEX file_task_image ON file_task (image);
