-- An upload that changes the bytes of an image takes all its names, one that replaces it takes one.
ALTER TABLE upload ADD COLUMN rewrites INTEGER NOT NULL DEFAULT 0;
