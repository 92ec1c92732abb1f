-- Schema 2. Run in one transaction. Code that knows only schema 1 must not even read: it does not know the kinds of records that come now.

-- `due` is `Run.due`: from when on the engine has to see to the run; NULL while it waits for something else than time. `open` says now
-- that the run is not closed; what had ended under schema 1 is closed, and has open = 0 already.
ALTER TABLE runs ADD COLUMN due REAL;

-- `due_of` is a function of the migration: SQLite may read a number of a JSON text one bit off, and `due` is compared exactly.
UPDATE runs SET due = CASE status WHEN 'suspended' THEN NULL WHEN 'ready' THEN due_of(run_id, state) ELSE 0.0 END WHERE open = 1;

-- One index for what is open and for what is due: a run that is due is open. `run_id` is in it so that a page of many that are due
-- needs only the index to be put in order.
DROP INDEX runs_open;
CREATE INDEX runs_open ON runs (due, run_id) WHERE open = 1;

UPDATE meta SET value = 2 WHERE key IN ('schema_version', 'reader_min');
