-- Schema 1. Run in one transaction. `meta` holds: schema_version, reader_min (the least version that code must know to read this
-- schema), store_id, generation (raised when a store is restored from a backup, so that nobody goes on from what was lost), and, where it
-- is one of several shards, shards: the store_ids of all, sorted, with a space between two.
CREATE TABLE {schema}.meta (
    key   text COLLATE "C" PRIMARY KEY,
    value text NOT NULL
);

-- Who holds runs. The lease is a time of the server's clock; tasks and versions belong together by their places.
CREATE TABLE {schema}.executors (
    executor_id text COLLATE "C" PRIMARY KEY,
    host        text NOT NULL,
    pid         bigint NOT NULL,
    tasks       text[] NOT NULL,
    versions    text[] NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz NOT NULL
);

-- A text that PostgreSQL cannot hold is stored with escapes: see columns.py. `due` is Run.due, `standing` the place in the queue,
-- `owner` the executor that holds the run, `epoch` how often the run has changed hands. `open` says that it is not closed.
CREATE TABLE {schema}.runs (
    run_id     text COLLATE "C" PRIMARY KEY,
    task       text COLLATE "C" NOT NULL,
    version    text COLLATE "C",
    status     text COLLATE "C" NOT NULL,
    user_name  text COLLATE "C",
    key        text COLLATE "C",
    parent_id  text COLLATE "C",
    seq        bigint NOT NULL,
    created_at double precision NOT NULL,
    ended_at   double precision,
    open       boolean NOT NULL,
    due        double precision,
    dead       boolean NOT NULL,
    standing   double precision NOT NULL,
    owner      text COLLATE "C",
    epoch      bigint NOT NULL,
    state      bytea NOT NULL,
    input      bytea NOT NULL,
    result     bytea
) WITH (fillfactor = 70);  -- a step changes seq and state, which no index holds: with room on the page, it touches no index

-- One run a user and key; no user is a user of its own.
CREATE UNIQUE INDEX runs_key ON {schema}.runs (key, (user_name IS NULL), (COALESCE(user_name, ''))) WHERE key IS NOT NULL;
-- What can be claimed: at once, and from a time on.
CREATE INDEX runs_ready ON {schema}.runs (task, standing) WHERE owner IS NULL AND due <= 0;
CREATE INDEX runs_timers ON {schema}.runs (task, due) WHERE owner IS NULL AND due > 0;
CREATE INDEX runs_owner ON {schema}.runs (owner) WHERE owner IS NOT NULL;
-- What is asked for.
CREATE INDEX runs_open ON {schema}.runs (due, run_id) WHERE open;
CREATE INDEX runs_dead ON {schema}.runs (run_id) WHERE dead;
CREATE INDEX runs_parent ON {schema}.runs (parent_id, run_id) WHERE parent_id IS NOT NULL;
CREATE INDEX runs_user ON {schema}.runs (user_name, run_id) WHERE user_name IS NOT NULL;
CREATE INDEX runs_status ON {schema}.runs (status, run_id);

-- The facts. `token` tells the parcel in which a record was written, `batch` rises from parcel to parcel of a run.
CREATE TABLE {schema}.records (
    run_id text COLLATE "C" NOT NULL,
    seq    bigint NOT NULL,
    epoch  bigint NOT NULL,
    token  bigint NOT NULL,
    batch  bigint NOT NULL,
    body   bytea NOT NULL,
    PRIMARY KEY (run_id, seq)
);
-- One number a write: there is room for as many parcels between two of them.
CREATE SEQUENCE {schema}.batches INCREMENT BY 65536 MINVALUE 65536;

CREATE TABLE {schema}.messages (
    message_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id     text COLLATE "C" NOT NULL,
    body       bytea NOT NULL,
    payload    bytea,
    answer_to  text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX messages_run ON {schema}.messages (run_id);

-- In a store of several shards: messages for runs of other shards, from where they are handed on; and what others have handed on to this
-- one, by the id of the store that it came from: each once, though its copy here may be long obeyed when that one forgets it.
CREATE TABLE {schema}.strays (
    message_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id     text COLLATE "C" NOT NULL,
    body       bytea NOT NULL,
    payload    bytea,
    answer_to  text COLLATE "C" NOT NULL
);
CREATE TABLE {schema}.origins (
    store_id   text COLLATE "C" NOT NULL,
    message_id bigint NOT NULL,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (store_id, message_id)
);

-- Answers to messages, and the tokens (with # before them) of parcels that hold no record; both are kept for some minutes.
CREATE TABLE {schema}.answers (
    token  text COLLATE "C" PRIMARY KEY,
    run_id text COLLATE "C" NOT NULL DEFAULT '',
    body   bytea,
    code   text NOT NULL DEFAULT '',
    text   text NOT NULL DEFAULT '',
    at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

INSERT INTO {schema}.meta (key, value) VALUES
    ('schema_version', '1'), ('reader_min', '1'), ('generation', '1'),
    ('store_id', replace(CAST(gen_random_uuid() AS text), '-', ''));
