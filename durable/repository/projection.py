"""The projection: how runs and records become rows, and rows become runs.

Law: a row is a snapshot that nothing changes later; a run that goes through a row comes back equal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from durable.core.records import Record
from durable.core.run import Run
from durable.core.wire import decode_record, decode_run, encode_run

#: (run_id, seq, batch, body): a record as `core.wire.encode_record` wrote it; `batch` is its position in the log.
RecordRow = tuple[str, int, int, bytes]


class RunRow(NamedTuple):
    """A run's state: columns to search by (`open`: not closed), and `state` (with `input` and `result`) to make the run again."""

    run_id: str
    task: str | bytes
    status: str
    user: str | bytes | None
    key: str | bytes | None
    parent_id: str | None
    seq: int
    created_at: float
    ended_at: float | None
    open: bool
    due: float | None
    dead: bool
    state: bytes
    input: bytes
    result: bytes | None


def text(value: str) -> str | bytes:
    """The value as a column can hold it: a lone surrogate has no UTF-8, so such a text is stored as bytes."""
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")
    return value


def run_row(run: Run) -> RunRow:
    """Take a snapshot of the run."""
    return RunRow(
        run.run_id,
        text(run.task),
        run.status.value,
        None if run.user is None else text(run.user),
        None if run.key is None else text(run.key),
        run.parent_id,
        run.seq,
        run.created_at,
        run.ended_at,
        not run.closed,
        run.due,
        run.dead,
        encode_run(run),
        run.input,
        run.result,
    )


async def read_history(
    rows_after: Callable[[int, int], Awaitable[Sequence[tuple[int, int, bytes]]]],
    after: int,
    limit: int | None,
    rows_max: int,
) -> list[Record]:
    """Read a run's records with `seq` above `after`, at most `limit`, some at a time.

    Arguments:
        rows_after: gives (seq, batch, body) above a `seq`, in order, at most so many.
        rows_max: how many are asked for at once.
    """
    found: list[Record] = []
    while limit is None or len(found) < limit:
        size = rows_max if limit is None else min(rows_max, limit - len(found))
        rows = await rows_after(after, size)
        found.extend(decode_record(body, batch) for _, batch, body in rows)
        if len(rows) < size:
            break
        after = rows[-1][0]
    return found


def run_of(row: Sequence[Any]) -> Run:
    """Make the run from (run_id, state, input, result, open).

    The column says whether it is closed: the states that schema 1 stored do not.
    """
    run_id, state, argument, result, is_open = row
    run = decode_run(run_id, state, input=argument, result=result)
    run.closed = not is_open
    return run
