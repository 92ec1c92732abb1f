"""What is said to PostgreSQL.

Law: each statement that changes a run, or adds a record, says under which epoch. Each is one round trip, and is whole or not at all. None
costs more because more runs are stored that it does not concern.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Variant(NamedTuple):
    """What a write consists of: each part that is missing costs nothing. `quiet`: no run changes but in `seq` and `state`."""

    creates: bool
    updates: bool
    quiet: bool
    records: bool
    sends: bool
    obeys: bool
    answers: bool
    marks: bool
    strays: bool


#: The columns of a write's parts, each an array, in the order of the values.
NEW_RUNS = {
    "run_id": "text", "task": "text", "version": "text", "status": "text", "user_name": "text", "key": "text", "parent_id": "text",
    "seq": "bigint", "created_at": "double precision", "ended_at": "double precision", "open": "boolean", "due": "double precision",
    "dead": "boolean", "standing": "double precision", "owner": "text", "epoch": "bigint", "state": "bytea", "input": "bytea",
    "result": "bytea",
}  # fmt: skip
PROGRESS = {"run_id": "text", "epoch": "bigint", "before": "bigint", "seq": "bigint", "state": "bytea"}
CHANGES = {
    **PROGRESS,
    "status": "text",
    "ended_at": "double precision",
    "open": "boolean",
    "due": "double precision",
    "dead": "boolean",
    "fresh": "boolean",
    "result": "bytea",
}
NEW_RECORDS = {
    "run_id": "text",
    "seq": "bigint",
    "epoch": "bigint",
    "token": "bigint",
    "place": "bigint",
    "body": "bytea",
}
NEW_MESSAGES = {"run_id": "text", "body": "bytea", "payload": "bytea", "answer_to": "text"}
NEW_ANSWERS = {"token": "text", "run_id": "text", "body": "bytea", "code": "text", "text": "text"}


class _Values:
    """Numbers the values of a statement as it is put together."""

    def __init__(self) -> None:
        self.count = 0

    def one(self, kind: str) -> str:
        self.count += 1
        return f"${self.count}::{kind}[]"

    def rows(self, columns: dict[str, str]) -> tuple[str, str]:
        """The rows as `n`, and how many they are."""
        first = f"${self.count + 1}"
        # Not as functions that are rows: each of these would be stored before it is read.
        arrays = ", ".join(f"unnest({self.one(kind)}) AS {name}" for name, kind in columns.items())
        return f"(SELECT {arrays}) AS n", f"cardinality({first})"


class Statements:
    """All statements, for one schema.

    Arguments:
        schema: its name, fit to be quoted.
    """

    def __init__(self, schema: str) -> None:
        self._schema = f'"{schema}"'
        self._writes: dict[Variant, bytes] = {}
        for name, text in _TEXTS.items():
            setattr(self, name, self.of(text))

    ENROLL: bytes
    RENEW: bytes
    SWEEP: bytes
    LEAVE: bytes
    CLAIM: bytes
    CLAIM_FEW: bytes
    TAKE: bytes
    RELEASE: bytes
    OWNED: bytes
    MAIL: bytes
    ANSWER: bytes
    PLACEMENT: bytes
    EXECUTORS: bytes
    STORE_ID: bytes
    STATES: bytes
    TOKENS: bytes
    MARKS: bytes
    KEYS: bytes
    MESSAGES: bytes
    SETTLE: bytes
    PROVE: bytes
    READ: bytes
    FIND: bytes
    FIND_KEY: bytes
    HISTORY: bytes
    HISTORIES: bytes
    NEXT_DUE: bytes
    MEMBERS: bytes
    JOIN: bytes
    LET_IN: bytes
    ANNOUNCED: bytes
    QUEUE: bytes
    HOLD_PLACES: bytes
    HAND_ON: bytes
    STRAYS: bytes
    HANDED_ON: bytes
    RECEIVE: bytes

    def query(self, conditions: Iterable[str]) -> bytes:
        """The statement that finds runs, in order of their ids; its last value is how many."""
        where = " AND ".join(conditions) or "true"
        return self.of(f"SELECT {_RUN} FROM {{s}}.runs r WHERE {where} ORDER BY run_id LIMIT %s")

    def count(self, conditions: Iterable[str]) -> bytes:
        """The statement that counts runs."""
        return self.of(f"SELECT count(*) FROM {{s}}.runs r WHERE {' AND '.join(conditions) or 'true'}")

    def write(self, variant: Variant) -> bytes:
        """The statement that writes parcels. It answers the first parcel's batch, and fails with SQLSTATE 22012 where a run or a
        message is not as expected."""
        found = self._writes.get(variant)
        if found is None:
            found = self._writes[variant] = self.of(_write(variant))
        return found

    def of(self, text: str) -> bytes:
        """A statement with the schema in place of `{s}`."""
        return " ".join(text.replace("{s}", self._schema).split()).encode()


def _write(variant: Variant) -> str:
    values = _Values()
    parts = ["base AS MATERIALIZED (SELECT nextval('{s}.batches') AS batch)"]
    expected = []

    def counted(name: str, statement: str, count: str) -> None:
        parts.append(f"{name} AS ({statement} RETURNING 1)")
        expected.append(f"(SELECT count(*) FROM {name}) = {count}")

    if variant.updates:
        rows, count = values.rows(PROGRESS if variant.quiet else CHANGES)
        rest = "" if variant.quiet else """
            , status = n.status, ended_at = n.ended_at, open = n.open, due = n.due, dead = n.dead,
            result = CASE WHEN n.fresh THEN n.result ELSE r.result END, owner = CASE WHEN n.open THEN r.owner END
        """  # fmt: skip
        counted("changed", f"""
            UPDATE {{s}}.runs r SET seq = n.seq, state = n.state{rest} FROM {rows}
            WHERE r.run_id = n.run_id AND r.epoch = COALESCE(n.epoch, r.epoch) AND r.seq = n.before
        """, count)  # fmt: skip
    if variant.creates:
        rows, count = values.rows(NEW_RUNS)
        names = ", ".join(NEW_RUNS)
        insert = f"INSERT INTO {{s}}.runs ({names}) SELECT {names} FROM {rows} ON CONFLICT DO NOTHING"
        counted("created", insert, count)
    if variant.obeys:
        ids = values.one("bigint")
        counted("obeyed", f"DELETE FROM {{s}}.messages WHERE message_id = ANY({ids})", f"cardinality({ids})")
    if variant.marks:
        tokens = values.one("text")
        insert = f"INSERT INTO {{s}}.answers (token) SELECT unnest({tokens}) ON CONFLICT DO NOTHING"
        counted("marked", insert, f"cardinality({tokens})")
    if variant.records:
        rows, _ = values.rows(NEW_RECORDS)
        parts.append(f"""recorded AS (
            INSERT INTO {{s}}.records (run_id, seq, epoch, token, batch, body)
            SELECT n.run_id, n.seq, n.epoch, n.token, base.batch + n.place, n.body FROM base, {rows})
        """)
    for wanted, table, columns in (
        (variant.sends, "messages", NEW_MESSAGES),
        (variant.strays, "strays", NEW_MESSAGES),
        (variant.answers, "answers", NEW_ANSWERS),
    ):
        if wanted:
            rows, _ = values.rows(columns)
            names = ", ".join(columns)
            insert = f"INSERT INTO {{s}}.{table} ({names}) SELECT {names} FROM {rows} ON CONFLICT DO NOTHING"
            parts.append(f"sent_{table} AS ({insert})")
    guard = " AND ".join(expected) or "true"
    return f"WITH {', '.join(parts)} SELECT batch / CASE WHEN {guard} THEN 1 ELSE 0 END FROM base"


_RUN = "r.run_id, r.state, r.input, r.result, r.open"
_LIVE = "SELECT 1 FROM {s}.executors e WHERE e.executor_id = r.owner AND e.expires_at > clock_timestamp()"
_ME = "SELECT 1 FROM {s}.executors e WHERE e.executor_id = %(me)s AND e.expires_at > clock_timestamp()"
_LEASE = "clock_timestamp() + make_interval(secs => %(lease)s)"
_KNOWN = "known AS (SELECT * FROM unnest(%(tasks)b::text[], %(versions)b::text[]) AS k (task, version))"
#: Nobody has sent it a message: what it is told comes before what it would go on with, so `MAIL` brings it.
#: Asked run by run, in the order of the queue: as a join it might be made of all runs first.
_UNTOLD = "(SELECT m.message_id FROM {s}.messages m WHERE m.run_id = r.run_id LIMIT 1) IS NULL"
#: Its parent has not just ended: it would be about to cancel it. A run that only came from that parent waits as long, too: a moment.
_WANTED = (
    """(SELECT p.run_id FROM {s}.runs p WHERE p.run_id = r.parent_id AND p.open AND p.ended_at IS NOT NULL) IS NULL"""
)
_FITS = "r.task = k.task AND (k.version IS NULL OR r.version IS NULL OR r.version = k.version)"
_FREED = "owner = NULL, epoch = epoch + 1"

#: Of users who may have none, none; of the others as many as they may have, of those that stand first.
_OF = "(SELECT o.most FROM unnest(%(users)b::text[], %(counts)b::bigint[]) AS o (name, most) WHERE o.name = {user})"
_MAY = f"({_OF.replace('{user}', 'r.user_name')} IS DISTINCT FROM 0)"
_RANK = "row_number() OVER (PARTITION BY user_name ORDER BY standing)"
_FEW = f"(c.user_name IS NULL OR c.rank <= COALESCE({_OF.replace('{user}', 'c.user_name')}, %(most)s::bigint))"
# More candidates than are wanted: others may be about to take the first. What was taken meanwhile does not fit any more once locked.
_CLAIM = f"""
    WITH {_KNOWN},
        candidates AS MATERIALIZED (
            SELECT c.run_id, c.standing, c.user_name FROM known k CROSS JOIN LATERAL (
                SELECT r.run_id, r.standing, r.user_name FROM {{s}}.runs r
                WHERE r.owner IS NULL AND r.due <= 0 AND {_FITS} AND {_UNTOLD} AND {_WANTED} AND {{may}}
                ORDER BY r.standing LIMIT %(reach)s) c
            UNION ALL
            SELECT c.run_id, c.standing, c.user_name FROM known k CROSS JOIN LATERAL (
                SELECT r.run_id, r.standing, r.user_name FROM {{s}}.runs r
                WHERE r.owner IS NULL AND r.due > 0 AND r.due <= %(now)s::float8 AND {_FITS} AND {_UNTOLD} AND {_WANTED} AND {{may}}
                ORDER BY r.due LIMIT %(reach)s) c),
        picked AS MATERIALIZED (
            SELECT r.run_id FROM (SELECT *, {{rank}} AS rank FROM candidates) c JOIN {{s}}.runs r ON r.run_id = c.run_id
            WHERE r.owner IS NULL AND r.due <= GREATEST(%(now)s::float8, 0) AND EXISTS ({_ME}) AND {{few}}
            ORDER BY c.standing LIMIT %(limit)s FOR UPDATE OF r SKIP LOCKED),
        taken AS (
            UPDATE {{s}}.runs r SET owner = %(me)s, epoch = r.epoch + 1 FROM picked WHERE r.run_id = picked.run_id
            RETURNING {_RUN}, r.epoch, r.standing),
        coming AS (
            SELECT min(c.due) AS due FROM known k CROSS JOIN LATERAL (
                SELECT r.due FROM {{s}}.runs r WHERE r.owner IS NULL AND r.due > 0 AND r.due > %(now)s::float8 AND {_FITS}
                ORDER BY r.due LIMIT 1) c)
    SELECT coming.due, t.* FROM coming LEFT JOIN taken t ON true ORDER BY t.standing, t.run_id
"""

#: The statements as they are said to psycopg, but for the schema.
_TEXTS = {
    "ENROLL": f"""
        WITH gone AS (DELETE FROM {{s}}.executors WHERE executor_id = %(old)s),
            freed AS (UPDATE {{s}}.runs SET {_FREED} WHERE owner = %(old)s)
        INSERT INTO {{s}}.executors (executor_id, host, pid, tasks, versions, expires_at)
        VALUES (%(me)s, %(host)s, %(pid)s, %(tasks)b, %(versions)b, {_LEASE})
    """,
    "RENEW": f"""
        UPDATE {{s}}.executors SET expires_at = {_LEASE}, tasks = %(tasks)b, versions = %(versions)b
        WHERE executor_id = %(me)s AND expires_at > clock_timestamp()
    """,
    # The owners are looked up first: a run that has a new one by the time that it is locked is left to that one.
    "SWEEP": f"""
        WITH gone AS (DELETE FROM {{s}}.executors WHERE expires_at <= clock_timestamp()),
            old AS (DELETE FROM {{s}}.answers WHERE at < clock_timestamp() - interval '10 minutes'),
            lost AS MATERIALIZED (SELECT DISTINCT r.owner FROM {{s}}.runs r WHERE r.owner IS NOT NULL AND NOT EXISTS ({_LIVE})),
            picked AS MATERIALIZED (
                SELECT r.run_id FROM {{s}}.runs r JOIN lost ON r.owner = lost.owner ORDER BY r.run_id FOR UPDATE OF r SKIP LOCKED)
        UPDATE {{s}}.runs SET {_FREED} WHERE run_id IN (SELECT run_id FROM picked)
    """,
    "LEAVE": f"""
        WITH gone AS (DELETE FROM {{s}}.executors WHERE executor_id = %(me)s)
        UPDATE {{s}}.runs SET {_FREED} WHERE owner = %(me)s
    """,
    "CLAIM": _CLAIM.replace("{may}", "true").replace("{rank}", "1").replace("{few}", "true"),
    # The same, where no more than some runs of each user are wanted.
    "CLAIM_FEW": _CLAIM.replace("{may}", _MAY).replace("{rank}", _RANK).replace("{few}", _FEW),
    "TAKE": f"""
        WITH picked AS MATERIALIZED (
            SELECT r.run_id FROM {{s}}.runs r
            WHERE r.run_id = ANY(%(ids)b::text[]) AND (r.owner IS NULL OR NOT EXISTS ({_LIVE})) AND EXISTS ({_ME})
            ORDER BY r.run_id FOR UPDATE OF r SKIP LOCKED)
        UPDATE {{s}}.runs r SET owner = %(me)s, epoch = r.epoch + 1 FROM picked WHERE r.run_id = picked.run_id
        RETURNING {_RUN}, r.epoch
    """,
    # What was given up under this epoch, and is still on its way, does not count any more.
    "RELEASE": """
        UPDATE {s}.runs r SET owner = NULL, epoch = r.epoch + 1
        FROM unnest(%(ids)b::text[], %(epochs)b::bigint[]) AS n (run_id, epoch)
        WHERE r.run_id = n.run_id AND r.epoch = n.epoch AND r.owner = %(me)s
    """,
    "OWNED": "SELECT run_id, epoch FROM {s}.runs WHERE owner = %s",
    "MAIL": f"""
        WITH {_KNOWN}
        SELECT m.message_id, m.run_id, m.body, m.payload, m.answer_to FROM {{s}}.messages m JOIN {{s}}.runs r ON r.run_id = m.run_id
        WHERE r.owner = %(me)s OR (r.owner IS NULL AND EXISTS (SELECT 1 FROM known k WHERE {_FITS}))
        ORDER BY m.message_id LIMIT %(limit)s
    """,
    "ANSWER": "SELECT run_id, body, code, text FROM {s}.answers WHERE token = %s AND body IS NOT NULL",
    "PLACEMENT": f"""
        SELECT r.owner, o.host, o.pid, EXTRACT(epoch FROM o.expires_at - clock_timestamp())::float8, r.epoch,
            (SELECT count(*) FROM {{s}}.messages m WHERE m.run_id = r.run_id),
            (SELECT count(*) FROM {{s}}.executors e WHERE e.expires_at > clock_timestamp()
                AND EXISTS (SELECT 1 FROM unnest(e.tasks, e.versions) AS k (task, version) WHERE {_FITS})),
            ARRAY(SELECT DISTINCT k.version FROM {{s}}.executors e, unnest(e.tasks, e.versions) AS k (task, version)
                WHERE e.expires_at > clock_timestamp() AND k.task = r.task)
        FROM {{s}}.runs r LEFT JOIN {{s}}.executors o ON o.executor_id = r.owner WHERE r.run_id = %s
    """,
    "EXECUTORS": """
        SELECT e.executor_id, e.host, e.pid, EXTRACT(epoch FROM e.started_at)::float8,
            EXTRACT(epoch FROM e.expires_at - clock_timestamp())::float8,
            (SELECT count(*) FROM {s}.runs r WHERE r.owner = e.executor_id)
        FROM {s}.executors e ORDER BY e.started_at, e.executor_id
    """,
    "STORE_ID": "SELECT value FROM {s}.meta WHERE key = 'store_id'",
    # What a write goes by.
    "STATES": "SELECT run_id, state, open, result IS NOT NULL, epoch FROM {s}.runs WHERE run_id = ANY(%b::text[])",
    "TOKENS": """
        SELECT r.run_id, r.seq, r.token, r.batch FROM unnest(%b::text[], %b::bigint[]) AS n (run_id, seq)
        JOIN {s}.records r ON r.run_id = n.run_id AND r.seq = n.seq
    """,
    "MARKS": "SELECT token FROM {s}.answers WHERE token = ANY(%b::text[])",
    "KEYS": """
        SELECT n.place, r.run_id FROM unnest(%b::bigint[], %b::text[], %b::text[]) AS n (place, user_name, key)
        JOIN {s}.runs r ON r.key = n.key AND (r.user_name IS NULL) = (n.user_name IS NULL)
            AND COALESCE(r.user_name, '') = COALESCE(n.user_name, '')
    """,
    "MESSAGES": "SELECT message_id FROM {s}.messages WHERE message_id = ANY(%b::bigint[])",
    # Waits for a transaction that may still be at work on these runs.
    "SETTLE": "SELECT epoch FROM {s}.runs WHERE run_id = ANY(%b::text[]) ORDER BY run_id FOR UPDATE",
    # Waits for the standby, if there is one that answers: what was committed before is there, too.
    "PROVE": "INSERT INTO {s}.answers (token) VALUES ('#') ON CONFLICT (token) DO UPDATE SET at = clock_timestamp()",
    # What is asked for.
    "READ": f"""
        SELECT {_RUN}, r.epoch, CASE WHEN EXISTS ({_LIVE}) THEN r.owner END FROM {{s}}.runs r WHERE r.run_id = ANY(%b::text[])
    """,
    "FIND": f"SELECT {_RUN} FROM {{s}}.runs r WHERE r.run_id = %s",
    "FIND_KEY": f"""
        SELECT {_RUN} FROM {{s}}.runs r WHERE r.key = %(key)s AND (r.user_name IS NULL) = (%(user)s::text IS NULL)
            AND COALESCE(r.user_name, '') = COALESCE(%(user)s::text, '')
    """,
    "HISTORY": "SELECT seq, batch, body FROM {s}.records WHERE run_id = %s AND seq > %s ORDER BY seq LIMIT %s",
    "HISTORIES": "SELECT run_id, batch, body FROM {s}.records WHERE run_id = ANY(%b::text[]) ORDER BY run_id, seq",
    "NEXT_DUE": "SELECT due FROM {s}.runs WHERE open AND due > %s ORDER BY due LIMIT 1",
    # What all count together: see `sql/0002_ledger.sql`.
    "LET_IN": """
        SELECT reason, retry_after FROM {s}.let_in(%(ids)b, %(users)b, %(waits)b, %(starts)s::bigint, %(starts_per_user)s::bigint,
            %(window)s::float8, %(queued)s::bigint, %(waiting)s::bigint, %(there)b)
    """,
    "ANNOUNCED": "SELECT run_id FROM {s}.announced WHERE at > EXTRACT(epoch FROM clock_timestamp())::float8 - 10",
    "QUEUE": "SELECT waiting, there FROM {s}.queue(%s::bigint, %b)",
    "HOLD_PLACES": """
        SELECT got, others FROM {s}.hold_places(%(me)s, %(turn)s::bigint, %(names)b, %(had)b, %(wanted)b, %(bounds)b)
    """,
    # Shards.
    "MEMBERS": "SELECT (SELECT value FROM {s}.meta WHERE key = 'shards'), EXISTS (SELECT 1 FROM {s}.runs)",
    "JOIN": "INSERT INTO {s}.meta (key, value) VALUES ('shards', %s) ON CONFLICT DO NOTHING",
    # One at a time, so that messages keep their order; it locks nothing that anybody else needs.
    "HAND_ON": "SELECT 1 FROM {s}.meta WHERE key = 'store_id' AND EXISTS (SELECT 1 FROM {s}.strays) FOR UPDATE SKIP LOCKED",
    "STRAYS": "SELECT message_id, run_id, body, payload, answer_to FROM {s}.strays WHERE message_id > %s ORDER BY message_id LIMIT %s",
    "HANDED_ON": "DELETE FROM {s}.strays WHERE message_id = ANY(%b::bigint[])",
    # Where a message came from is forgotten when it is gone there, and long enough ago that nobody still has it in hand.
    "RECEIVE": """
        WITH n AS MATERIALIZED (
                SELECT * FROM unnest(%(ids)b::bigint[], %(runs)b::text[], %(bodies)b::bytea[], %(payloads)b::bytea[], %(tokens)b::text[])
                AS n (message_id, run_id, body, payload, answer_to)),
            old AS (
                DELETE FROM {s}.origins
                WHERE store_id = %(source)s AND message_id < %(oldest)s AND at < clock_timestamp() - interval '1 hour'),
            fresh AS (
                INSERT INTO {s}.origins (store_id, message_id) SELECT %(source)s, message_id FROM n
                ON CONFLICT DO NOTHING RETURNING message_id)
        INSERT INTO {s}.messages (run_id, body, payload, answer_to)
        SELECT n.run_id, n.body, n.payload, n.answer_to FROM n JOIN fresh USING (message_id) ORDER BY n.message_id
    """,
}  # fmt: skip
