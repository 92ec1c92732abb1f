-- Schema 1. Run in one transaction. `meta` holds: schema_version, reader_min (the least schema number that code must know to read
-- this database), store_id, position (the log is applied up to here).
CREATE TABLE meta (
    key   TEXT PRIMARY KEY NOT NULL,
    value
) WITHOUT ROWID;

CREATE TABLE runs (
    run_id     TEXT PRIMARY KEY NOT NULL,
    task       NOT NULL,          -- TEXT; BLOB where the text has no UTF-8 (also user, key)
    status     TEXT NOT NULL,
    user,
    key,
    parent_id  TEXT,
    seq        INTEGER NOT NULL,
    created_at REAL NOT NULL,
    ended_at   REAL,
    open       INTEGER NOT NULL,
    dead       INTEGER NOT NULL,
    state      BLOB NOT NULL,
    input      BLOB NOT NULL,
    result     BLOB
);

-- One run a user and key; no user is a user of its own.
CREATE UNIQUE INDEX runs_key ON runs (key, user IS NULL, COALESCE(user, '')) WHERE key IS NOT NULL;
CREATE INDEX runs_open ON runs (run_id) WHERE open = 1;
CREATE INDEX runs_dead ON runs (run_id) WHERE dead = 1;
CREATE INDEX runs_parent ON runs (parent_id, run_id) WHERE parent_id IS NOT NULL;
CREATE INDEX runs_user ON runs (user, run_id) WHERE user IS NOT NULL;
CREATE INDEX runs_status ON runs (status, run_id);

CREATE TABLE records (
    run_id TEXT NOT NULL,
    seq    INTEGER NOT NULL,
    batch  INTEGER NOT NULL,
    body   BLOB NOT NULL,
    PRIMARY KEY (run_id, seq)
) WITHOUT ROWID;

INSERT INTO meta (key, value) VALUES ('schema_version', 1), ('reader_min', 1), ('store_id', NULL), ('position', 0);
