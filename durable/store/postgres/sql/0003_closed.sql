-- What may go: roots of families in the order in which they ended, and what came from other runs. None of these columns changes while a
-- run is at work. Older code need not know of it. (Dead letters, which are few, are counted and read by runs_dead.)
CREATE INDEX runs_closed ON {schema}.runs (ended_at, run_id) WHERE NOT open AND NOT dead AND parent_id IS NULL;
CREATE INDEX runs_left ON {schema}.runs (ended_at, run_id) WHERE NOT open AND NOT dead AND parent_id IS NOT NULL;
