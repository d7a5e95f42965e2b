-- The pool for what is stored in a folder and below; null to go by the folder above.
ALTER TABLE folder ADD COLUMN default_pool BLOB REFERENCES pool (id);
