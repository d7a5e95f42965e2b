-- entry -> inode -> folder, or image -> content; image -> replicas.
-- Times are nanoseconds since the epoch; ids are 16 bytes.

-- One row: the catalogue itself.
CREATE TABLE catalog (
    one           INTEGER PRIMARY KEY CHECK (one = 1),
    incarnation   BLOB NOT NULL,
    revision      INTEGER NOT NULL,
    next_ino      INTEGER NOT NULL,
    next_entry    INTEGER NOT NULL
) STRICT;

-- Numbers are handed out once and never again; 1 is the root.
CREATE TABLE inode (
    ino           INTEGER PRIMARY KEY
) STRICT;

CREATE TABLE folder (
    ino           INTEGER PRIMARY KEY REFERENCES inode (ino),
    mode          INTEGER NOT NULL,
    created_ns    INTEGER NOT NULL,
    modified_ns   INTEGER NOT NULL,
    changed_ns    INTEGER NOT NULL
) STRICT;

CREATE TABLE entry (
    id            INTEGER PRIMARY KEY,
    parent        INTEGER NOT NULL REFERENCES folder (ino),
    name          TEXT NOT NULL,
    ino           INTEGER NOT NULL REFERENCES inode (ino),
    UNIQUE (parent, name)
) STRICT;
CREATE INDEX entry_ino ON entry (ino);

-- Hashes are known once the bytes have been read.
CREATE TABLE content (
    id            BLOB PRIMARY KEY,
    size_bytes    INTEGER NOT NULL,
    sha256        BLOB,
    blake3        BLOB
) STRICT;

CREATE TABLE image (
    id            BLOB PRIMARY KEY,
    ino           INTEGER NOT NULL UNIQUE REFERENCES inode (ino),
    content       BLOB NOT NULL REFERENCES content (id),
    filename      TEXT NOT NULL,
    format        TEXT NOT NULL,
    os_family     TEXT NOT NULL,
    os_distribution TEXT NOT NULL,
    os_version    TEXT NOT NULL,
    os_arch       TEXT NOT NULL,
    mode          INTEGER NOT NULL,
    created_ns    INTEGER NOT NULL,
    modified_ns   INTEGER NOT NULL,
    changed_ns    INTEGER NOT NULL
) STRICT;
CREATE INDEX image_content ON image (content);

CREATE TABLE pool (
    id            BLOB PRIMARY KEY,
    name          TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE node (
    id            BLOB PRIMARY KEY,
    name          TEXT NOT NULL,
    address       TEXT NOT NULL
) STRICT;

-- Which nodes a pool is assigned to, best first.
CREATE TABLE pool_node (
    pool          BLOB NOT NULL REFERENCES pool (id),
    node          BLOB NOT NULL REFERENCES node (id),
    rank          INTEGER NOT NULL,
    PRIMARY KEY (pool, node)
) STRICT;

CREATE TABLE volume (
    id            BLOB PRIMARY KEY,
    pool          BLOB NOT NULL REFERENCES pool (id)
) STRICT;

-- Which nodes see a volume, and where.
CREATE TABLE sight (
    volume        BLOB NOT NULL REFERENCES volume (id),
    node          BLOB NOT NULL REFERENCES node (id),
    path          TEXT NOT NULL,
    PRIMARY KEY (volume, node)
) STRICT;

-- The stamp is (inode, size_bytes, mtime_ns) as the volume's file system keeps them; its 64-bit
-- inode numbers are stored as signed. Paths are not unique: two files that change names are
-- for a moment recorded under one.
CREATE TABLE replica (
    image         BLOB NOT NULL REFERENCES image (id),
    volume        BLOB NOT NULL REFERENCES volume (id),
    path          TEXT NOT NULL,
    inode         INTEGER NOT NULL,
    size_bytes    INTEGER NOT NULL,
    mtime_ns      INTEGER NOT NULL,
    PRIMARY KEY (image, volume, path)
) STRICT;
CREATE INDEX replica_path ON replica (volume, path);

-- The feed: what each revision changed, written in the transaction it describes.
CREATE TABLE change (
    revision      INTEGER PRIMARY KEY,
    body          BLOB NOT NULL
) STRICT;

-- Changes already made, by the id of the request that asked for them.
CREATE TABLE request (
    id            BLOB PRIMARY KEY,
    revision      INTEGER NOT NULL
) STRICT;
CREATE INDEX request_revision ON request (revision);
