"""What is said to SQLite: the statements, and the one that answers a `RunFilter`.

Law: `RunFilter.matches` is the meaning. What the engine asks while a million runs are asleep reads an index, and rows of the answer only.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from durable.core.query import RunFilter
from durable.repository.projection import text

META = "SELECT key, value FROM meta"
TABLES = "SELECT count(*) FROM sqlite_master"
ADOPT = "UPDATE meta SET value = ? WHERE key = 'store_id' AND value IS NULL"
POSITION = "UPDATE meta SET value = ? WHERE key = 'position'"
PUT_RECORD = "INSERT OR IGNORE INTO records (run_id, seq, batch, body) VALUES (?, ?, ?, ?)"
PUT_RUN = """
    INSERT INTO runs
        (run_id, task, status, user, key, parent_id, seq, created_at, ended_at, open, due, dead, state, input, result)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (run_id) DO UPDATE SET
        status = excluded.status, seq = excluded.seq, ended_at = excluded.ended_at, open = excluded.open, due = excluded.due,
        dead = excluded.dead, state = excluded.state, result = excluded.result
    WHERE excluded.seq > runs.seq
"""

RUN = "SELECT run_id, state, input, result, open FROM runs"
FIND_KEY = f"{RUN} WHERE key = ? AND user IS ?"
EVENTS = "SELECT seq, batch, body FROM records WHERE run_id = ? AND seq > ? ORDER BY seq LIMIT ?"
HISTORIES = "SELECT run_id, batch, body FROM records WHERE run_id IN ({marks}) ORDER BY run_id, seq"
#: What is due after a place in the index; the first condition says to the planner what the second means.
DUES = """
    SELECT due, run_id FROM runs INDEXED BY runs_open WHERE open = 1 AND due >= ? AND (due, run_id) > (?, ?)
    ORDER BY due, run_id LIMIT ?
"""
#: No run id comes after it: in SQLite a blob is greater than any text.
LAST_ID = b""


def select(wanted: RunFilter) -> tuple[str, list[object]]:
    """The statement that finds these runs, in order of their ids, and its values."""
    conditions, values = _conditions(wanted)
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    values.append(max(wanted.limit, 0))
    end = "ORDER BY run_id LIMIT ?"
    if not _by_due(wanted):
        return f"{RUN} {where}{end}", values
    # Without being told, SQLite takes an index that is in the order of ids and reads all runs. The index alone decides which
    # runs are on the page, and only those are read whole.
    page = f"SELECT run_id FROM runs INDEXED BY runs_open {where}{end}"
    return f"{RUN} WHERE run_id IN ({page}) ORDER BY run_id", values


def count(wanted: RunFilter, but: Collection[str]) -> tuple[str, list[object]]:
    """The statement that counts these runs, but for some, and its values."""
    conditions, values = _conditions(wanted)
    if but:
        conditions.append("run_id NOT IN (SELECT value FROM json_each(?))")
        values.append(json.dumps([*but]))
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    index = " INDEXED BY runs_open" if _by_due(wanted) else ""
    return f"SELECT count(*) FROM runs{index}{where}", values


def _by_due(wanted: RunFilter) -> bool:
    """Whether being open or due narrows it down more than any other of its conditions."""
    if wanted.parent_id is not None or wanted.key is not None:
        return False
    if wanted.due_after is not None or wanted.due_by is not None:
        return True
    return wanted.open and not wanted.dead and wanted.user is None and wanted.status is None


def _conditions(wanted: RunFilter) -> tuple[list[str], list[object]]:
    conditions: list[str] = []
    values: list[object] = []
    is_timed = wanted.due_after is not None or wanted.due_by is not None
    if wanted.open or is_timed:
        conditions.append("open = 1")
    if wanted.dead:
        conditions.append("dead = 1")
    for column, value in (
        ("task", wanted.task),
        ("user", wanted.user),
        ("key", wanted.key),
        ("parent_id", wanted.parent_id),
    ):
        if value is not None:
            conditions.append(f"{column} = ?")
            values.append(text(value))
    for condition, time in (
        ("due > ?", wanted.due_after),
        ("due <= ?", wanted.due_by),
        ("ended_at <= ?", wanted.ended_by),
    ):
        if time is not None:
            conditions.append(condition)
            values.append(time)
    if wanted.status is not None:
        conditions.append(f"status IN ({', '.join('?' * len(wanted.status))})")
        values.extend(status.value for status in wanted.status)
    if wanted.after is not None:
        conditions.append("run_id > ?")
        values.append(text(wanted.after))
    return conditions, values
