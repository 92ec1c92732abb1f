"""The wire format of records and runs: what the log and the repository hold.

Law: the first byte of a unit is the format's version. A version once released stays readable; an unknown one is refused, never guessed at.
A unit holds the records that become durable together; it is one frame of the log, and so whole or absent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from operator import attrgetter
from struct import Struct
from struct import error as StructError
from typing import Any

from durable.core.records import Kind, Record
from durable.core.retry import ONCE, Retry
from durable.core.run import Run
from durable.core.status import Status
from durable.errors import ConfigError, DecodeError, StoreFormatError

WIRE_VERSION = 1

#: run id, seq, kind, attempt, occurrence, time, lengths of name, identity, head and payload (0 = none, else length + 1).
_HEADER = Struct("<32sIBIIdHIII")
_pack, _unpack_from, _SIZE = _HEADER.pack, _HEADER.unpack_from, _HEADER.size
_dump_head = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_KINDS = {int(kind): kind for kind in Kind}
#: What reading bytes that are no record, or no state, can raise: ValueError covers text, JSON and numbers too long to be read.
_UNREADABLE = (StructError, ValueError, RecursionError)


def encode_record(record: Record) -> bytes:
    """Encode one record; its `batch` is not part of it."""
    name = record.name.encode("utf-8", "surrogatepass") if record.name else b""
    head = _dump_head(record.head).encode("utf-8", "surrogatepass") if record.head else b""
    payload = record.payload
    size = 0 if payload is None else len(payload) + 1
    fixed = _pack(
        record.run_id.encode("ascii"),
        record.seq,
        record.kind,
        record.attempt,
        record.occurrence,
        record.at,
        len(name),
        len(record.ident),
        len(head),
        size,
    )
    return b"".join((fixed, name, record.ident, head, payload or b""))


def _decode_at(data: bytes, offset: int, batch: int) -> tuple[Record, int]:
    run_id, seq, code, attempt, occurrence, at, names, idents, heads, size = _unpack_from(data, offset)
    offset += _SIZE
    name_end = offset + names
    ident_end = name_end + idents
    head_end = ident_end + heads
    end = head_end + (size - 1 if size else 0)
    if end > len(data):
        raise DecodeError(f"record at byte {offset - _SIZE} is cut off: it needs {end} bytes, there are {len(data)}")
    kind = _KINDS.get(code)
    if kind is None:
        raise StoreFormatError(
            f"record kind {code} is not known to this version of durable; open the store with a newer one"
        )
    head = json.loads(data[ident_end:head_end].decode("utf-8", "surrogatepass")) if heads else {}
    if type(head) is not dict:
        raise DecodeError(f"the head of the record at byte {offset - _SIZE} is no JSON object")
    record = Record(
        run_id.decode("ascii"),
        seq,
        kind,
        at,
        attempt,
        data[offset:name_end].decode("utf-8", "surrogatepass"),
        data[name_end:ident_end],
        occurrence,
        head,
        data[head_end:end] if size else None,
        batch,
    )
    return record, end


def decode_record(data: bytes, batch: int = 0) -> Record:
    """The counterpart of `encode_record`. Raises `DecodeError` for bytes that are no record."""
    try:
        record, end = _decode_at(data, 0, batch)
    except DecodeError:
        raise
    except _UNREADABLE as error:
        raise DecodeError(f"these {len(data)} bytes are no record: {error}") from error
    if end != len(data):
        raise DecodeError(f"{len(data) - end} bytes follow the record")
    return record


def encode_unit(encoded: Iterable[bytes]) -> bytes:
    """Join encoded records into one unit."""
    return b"".join((bytes((WIRE_VERSION,)), *encoded))


def decode_unit(data: bytes, batch: int = 0) -> list[Record]:
    """Split a unit into its records, each marked with `batch`.

    Raises `StoreFormatError` for a version that this code does not know, `DecodeError` for bytes that are no unit.
    """
    if not data or data[0] != WIRE_VERSION:
        found = data[0] if data else None
        raise StoreFormatError(
            f"the record format is version {found}, this durable reads version {WIRE_VERSION}; use a newer durable"
        )
    records = []
    offset = 1
    try:
        while offset < len(data):
            record, offset = _decode_at(data, offset, batch)
            records.append(record)
    except DecodeError:
        raise
    except _UNREADABLE as error:
        raise DecodeError(f"byte {offset} of a unit begins no record: {error}") from error
    return records


#: Fields of a run that are plain JSON values as they are.
_PLAIN = (
    "version", "key", "user", "parent_id", "attached", "priority", "fingerprint", "timeout", "attempt",
    "attempt_base", "recoveries", "recovery_reason", "not_before", "created_at", "started_at", "ended_at", "failure",
    "dead", "reason", "joined", "depth", "unfinished", "awaiting", "join", "lenient", "returned_seq", "coordinator_id",
    "asleep", "wake_at", "closed", "retried", "trace", "attempt_trace",
)  # fmt: skip


_plain_of = attrgetter(*_PLAIN)
#: What they are in a run of which nothing is known: not stored, since most runs have most of them so.
_USUAL = _plain_of(Run(""))


def encode_run(run: Run) -> bytes:
    """Encode a run's state for a row of the repository, without `input` and `result`, which have columns of their own."""
    state: dict[str, Any] = {"wire": WIRE_VERSION, "status": run.status.value, "seq": run.seq, "task": run.task}
    for name, value, usual in zip(_PLAIN, _plain_of(run), _USUAL, strict=True):
        if value != usual:
            state[name] = value
    if run.retry is not ONCE:
        state["retry"] = run.retry.to_json()
    if run.signals:
        state["signals"] = run.signals
    if run.watchers:
        state["watchers"] = run.watchers
    return _dump_head(state).encode("utf-8", "surrogatepass")


def decode_run(run_id: str, data: bytes, *, input: bytes, result: bytes | None) -> Run:
    """The counterpart of `encode_run`."""
    try:
        state = json.loads(data.decode("utf-8", "surrogatepass"))
        if state["wire"] != WIRE_VERSION:
            raise StoreFormatError(
                f"run {run_id} is stored in format {state['wire']}, this durable reads {WIRE_VERSION}"
            )
        run = Run(run_id)
        run.seq, run.task = state["seq"], state["task"]  # what every run has
        for name in _PLAIN:
            if name in state:
                setattr(run, name, state[name])
        run.status = Status(state["status"])
        if "retry" in state:
            run.retry = Retry.from_json(state["retry"])
        run.signals = [(seq, name) for seq, name in state.get("signals", ())]
        run.watchers = list(state.get("watchers", ()))
        run.input, run.result = input, result
    except (KeyError, TypeError, ConfigError, *_UNREADABLE) as error:
        raise DecodeError(f"the stored state of run {run_id} cannot be read: {error!r}") from error
    return run
