-- The name that the agent gives its host: writers' own hosts are known by it, whatever the node is
-- called in the library.
ALTER TABLE node ADD COLUMN host TEXT NOT NULL DEFAULT '';
UPDATE node SET host = name;
