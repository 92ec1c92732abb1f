"""The projection: how runs and records become rows, and rows become runs.

Law: a row is a snapshot that nothing changes later; a run that goes through a row comes back equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from durable.core.run import Run
from durable.core.wire import decode_run, encode_run

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


def run_of(row: Sequence[Any]) -> Run:
    """Make the run from (run_id, state, input, result, open).

    The column says whether it is closed: the states that schema 1 stored do not.
    """
    run_id, state, argument, result, is_open = row
    run = decode_run(run_id, state, input=argument, result=result)
    run.closed = not is_open
    return run
