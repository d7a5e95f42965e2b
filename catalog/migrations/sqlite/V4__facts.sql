-- What the bytes of an image say: one encoded message; null where they have not been looked at.
ALTER TABLE image ADD COLUMN facts BLOB;
