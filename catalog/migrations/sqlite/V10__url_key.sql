-- What URLs of images are signed with: 32 random bytes, made when the database is next opened.
ALTER TABLE catalog ADD COLUMN url_key BLOB;
