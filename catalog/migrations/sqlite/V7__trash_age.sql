-- How much longer a deleted image is kept, counted while the catalogue runs: a clock that is set
-- years ahead must not empty the trash.
ALTER TABLE trash ADD COLUMN left_ns INTEGER NOT NULL DEFAULT 604800000000000;
