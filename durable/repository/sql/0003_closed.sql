-- Schema 3. Run in one transaction. Code that knows only schema 2 can read it, and writes nothing to it.

-- What may go: roots of families in the order in which they ended, and what came from other runs; and dead letters by their age (with
-- `dead` in the index, so that they are counted without a look at their rows).
CREATE INDEX runs_closed ON runs (ended_at, run_id) WHERE open = 0 AND dead = 0 AND parent_id IS NULL;
CREATE INDEX runs_left ON runs (ended_at, run_id) WHERE open = 0 AND dead = 0 AND parent_id IS NOT NULL;
CREATE INDEX runs_letters ON runs (ended_at, run_id, dead) WHERE dead = 1;

UPDATE meta SET value = 3 WHERE key = 'schema_version';
