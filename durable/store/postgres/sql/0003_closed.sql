-- What may go: roots of families in the order in which they ended, and what came from other runs; and dead letters by their age. None of
-- these columns changes while a run is at work. Older code need not know of it.
CREATE INDEX runs_closed ON {schema}.runs (ended_at, run_id) WHERE NOT open AND NOT dead AND parent_id IS NULL;
CREATE INDEX runs_left ON {schema}.runs (ended_at, run_id) WHERE NOT open AND NOT dead AND parent_id IS NOT NULL;
CREATE INDEX runs_letters ON {schema}.runs (ended_at, run_id) WHERE dead;
