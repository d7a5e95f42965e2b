-- Names that lead to an image for as long as it is in the library, wherever it is moved and whatever
-- it is called there: those of the flat views. The first is its own, others are those of images that
-- became one with it. A name is one image's.
CREATE TABLE flat_name (
    name          TEXT PRIMARY KEY,
    image         BLOB NOT NULL REFERENCES image (id),
    rank          INTEGER NOT NULL
) STRICT;
CREATE INDEX flat_name_image ON flat_name (image);
