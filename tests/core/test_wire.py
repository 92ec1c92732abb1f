"""The wire format: everything comes back as it was, and bytes that are no record are told apart."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durable.core.commands import Fail, Send, Suspend
from durable.core.records import Kind, Record
from durable.core.retry import Retry
from durable.core.run import Run
from durable.core.status import Status
from durable.core.wire import (
    _HEADER,
    WIRE_VERSION,
    decode_record,
    decode_run,
    decode_unit,
    encode_record,
    encode_run,
    encode_unit,
)
from durable.errors import DecodeError, StoreFormatError
from tests.core.machine import FAILURE, RUN_ID, give, made

any_text = st.text(st.characters(codec=None, exclude_categories=())) | st.sampled_from(
    ["\ud800", "\udfff\ud800", "\ud83d\ude00", "\0", "\ufeff"]
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**300), 10**300) | numbers | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
heads = st.dictionaries(any_text, values, max_size=4)
records = st.builds(
    Record,
    run_id=st.integers(0, 2**128 - 1).map("{:032x}".format),
    seq=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(Kind),
    at=numbers,
    attempt=st.integers(0, 2**32 - 1),
    name=any_text,
    ident=st.binary(max_size=40),
    occurrence=st.integers(0, 2**32 - 1),
    head=heads,
    payload=st.none() | st.binary(max_size=60),
)
quick = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)


def simple(**changes: Any) -> Record:
    fields: dict[str, Any] = {"name": "fetch", "ident": b"i", "head": {"a": 1}, "payload": b"p", **changes}
    return Record(RUN_ID, 7, Kind.STEP_COMPLETED, 5.0, 2, **fields)


def forged(
    *, head: bytes = b"", kind: int = int(Kind.EVENT), run_id: bytes = RUN_ID.encode(), name: bytes = b"", lie: int = 0
) -> bytes:
    """A record with these bytes in it, whatever they mean; with `lie`, its head claims to be so much longer."""
    return _HEADER.pack(run_id, 1, kind, 1, 0, 0.0, len(name), 0, len(head) + lie, 0) + name + head


@quick
@given(records)
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    """All kinds, all texts (lone surrogates too), all bytes: what is decoded equals what was encoded."""
    assert decode_record(encode_record(record)) == record


@quick
@given(st.lists(records, max_size=4), st.integers(0, 2**60))
def test_a_unit_comes_back_as_it_was(unit: list[Record], batch: int) -> None:
    """Records that became durable together come back together, marked with their batch."""
    expected = [dataclasses.replace(record, batch=batch) for record in unit]
    assert decode_unit(encode_unit(encode_record(record) for record in unit), batch) == expected


@pytest.mark.parametrize("payload", [None, b"", b"\0", b"x" * 5_000_000], ids=["none", "empty", "zero", "big"])
def test_payloads_keep_their_difference(payload: bytes | None) -> None:
    """No payload, an empty one and a big one are three things."""
    assert decode_record(encode_record(simple(payload=payload))).payload == payload


def test_the_batch_is_no_part_of_the_bytes() -> None:
    """The batch is known only once the bytes are durable, and comes from where they lie."""
    assert encode_record(simple(batch=4)) == encode_record(simple())
    assert decode_record(encode_record(simple()), 9).batch == 9


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_head_that_is_no_json_is_refused_when_it_is_written(value: float) -> None:
    """What other readers could not read is not stored."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_record(simple(head={"x": value}))


def test_no_record_is_too_long_for_its_length_fields() -> None:
    """A name as long as the field allows fits, and so do more attempts than 16 bits hold."""
    record = dataclasses.replace(simple(name="n" * 65_535, ident=b"i" * 100_000), attempt=70_000)
    assert decode_record(encode_record(record)) == record


# --- bytes that are no record ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(len(encode_record(simple()))))
def test_a_truncated_record_is_told(length: int) -> None:
    """A record that is cut anywhere is no record."""
    with pytest.raises(DecodeError):
        decode_record(encode_record(simple())[:length])


@pytest.mark.parametrize("length", range(2, 2 * len(encode_record(simple())) + 1))
def test_a_truncated_unit_is_told_or_ends_between_records(length: int) -> None:
    """A unit has no length of its own (the log's frame has): cut between records it is a shorter unit, else it is none."""
    encoded = encode_record(simple())
    unit = encode_unit([encoded, encoded])[:length]
    if length == 1 + len(encoded):
        assert len(decode_unit(unit)) == 1
    else:
        with pytest.raises(DecodeError):
            decode_unit(unit)


def test_bytes_after_a_record_are_told() -> None:
    """A record fills its bytes."""
    with pytest.raises(DecodeError, match="3 bytes follow"):
        decode_record(encode_record(simple()) + b"abc")


BROKEN = {
    "head is text that is no JSON": forged(head=b"{nope}"),
    "head is a list": forged(head=b"[1]"),
    "head is a number": forged(head=b"7"),
    "head is null": forged(head=b"null"),
    "head is no UTF-8": forged(head=b'{"\xff":1}'),
    "head is nested too deeply": forged(head=b"[" * 200_000),
    "head has a number that is too long": forged(head=b'{"a":' + b"9" * 5_000 + b"}"),
    "head is longer than the record": forged(head=b"{}", lie=1),
    "head claims 4 GiB": forged(head=b"{}", lie=2**32 - 3),
    "run id is no ASCII": forged(run_id=b"\xff" * 32),
    "name is no UTF-8": forged(name=b"\xff"),
}


@pytest.mark.parametrize("why", BROKEN)
def test_broken_bytes_are_no_record(why: str) -> None:
    """Whatever is wrong inside, it is a `DecodeError`, from a record and from a unit alike."""
    with pytest.raises(DecodeError):
        decode_record(BROKEN[why])
    with pytest.raises(DecodeError):
        decode_unit(encode_unit([BROKEN[why]]))


@pytest.mark.parametrize("kind", [0, 12, max(Kind) + 1, 255])
def test_an_unknown_kind_is_refused_not_skipped(kind: int) -> None:
    """A record of a newer version is not passed over: the run would be another one without it."""
    with pytest.raises(StoreFormatError, match=f"kind {kind} is not known"):
        decode_record(forged(kind=kind))
    with pytest.raises(StoreFormatError, match=f"kind {kind} is not known"):
        decode_unit(encode_unit([forged(kind=kind)]))


@pytest.mark.parametrize("version", [number for number in range(256) if number != WIRE_VERSION])
def test_an_unknown_version_is_refused(version: int) -> None:
    """A unit of another format is never guessed at."""
    with pytest.raises(StoreFormatError, match=f"version {version}, this durable reads version {WIRE_VERSION}"):
        decode_unit(bytes((version,)) + encode_record(simple()))


def test_no_bytes_are_no_unit() -> None:
    """A unit has at least its version; a unit of no records is just that."""
    with pytest.raises(StoreFormatError, match="version None"):
        decode_unit(b"")
    assert decode_unit(encode_unit([])) == []


@quick
@given(records, st.data())
def test_damaged_bytes_raise_nothing_else(record: Record, data: st.DataObject) -> None:
    """With any of its bytes changed, a record either decodes or raises one of the two errors for that."""
    encoded = bytearray(encode_record(record))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    for decode in (decode_record, lambda damaged: decode_unit(bytes((WIRE_VERSION,)) + damaged)):
        with contextlib.suppress(DecodeError, StoreFormatError):
            decode(bytes(encoded))


@quick
@given(st.binary(max_size=300))
def test_any_bytes_raise_nothing_else(junk: bytes) -> None:
    """Bytes that nobody wrote are no reason to crash."""
    for decode in (decode_record, decode_unit, lambda junk: decode_run(RUN_ID, junk, input=b"", result=None)):
        with contextlib.suppress(DecodeError, StoreFormatError):
            decode(junk)


# --- runs ----------------------------------------------------------------------------------------------------------------------------


def full() -> Run:
    """A run of which every field has been set."""
    run = made(
        Status.RUNNING,
        version="2",
        key="k\ud800",
        fingerprint="f",
        user="u",
        parent_id="p",
        attached=True,
        joined=True,
        depth=2,
        priority=-3,
        timeout=9.0,
        delay=5.0,
        trace="00-a-b-01",
    )
    run.attempt_trace = "00-a-c-01"
    give(run, Send("a", b"1", 5), Send("b", None, 5), Fail(FAILURE), Suspend("why", FAILURE))
    run.result, run.started_at, run.ended_at, run.dead, run.recoveries, run.recovery_reason = (
        b"r",
        2.5,
        9.5,
        True,
        2,
        "crash",
    )
    run.unfinished, run.awaiting, run.join, run.lenient, run.returned_seq, run.coordinator_id = (
        3,
        1,
        "task",
        True,
        4,
        "c",
    )
    run.asleep, run.wake_at, run.closed = True, 0.0, True
    run.watchers = ["w"]
    return run


@pytest.mark.parametrize("status", Status)
def test_a_run_comes_back_as_it_was(status: Status) -> None:
    """A run that goes through a row comes back equal, wherever it stands."""
    for run in (made(status), full()):
        assert decode_run(run.run_id, encode_run(run), input=run.input, result=run.result) == run


def test_every_field_of_a_run_is_stored() -> None:
    """A field that is added to `Run` cannot be forgotten: it is in the row's state or in a column of its own."""
    run, usual = full(), Run(RUN_ID)
    run.attempt, run.attempt_base, run.retried, run.retry = 4, 2, 1, Retry(3)
    columns = {"run_id", "input", "result"}
    names = {field.name for field in dataclasses.fields(Run)} - columns
    assert [name for name in names if getattr(run, name) == getattr(usual, name)] == []
    assert set(json.loads(encode_run(run))) == names | {"wire"}


@quick
@given(any_text, any_text, st.lists(st.tuples(st.integers(1, 2**31), any_text)), heads, st.integers(1, 10**9))
def test_a_run_of_odd_texts_comes_back(
    key: str, task: str, signals: list[tuple[int, str]], failure: dict[str, Any], attempts: int
) -> None:
    """Keys, names and messages of any characters survive."""
    run = Run(RUN_ID, key=key, task=task, signals=signals, failure=failure, retry=Retry(attempts))
    assert decode_run(RUN_ID, encode_run(run), input=run.input, result=run.result) == run


def test_a_run_of_an_unknown_version_is_refused() -> None:
    """A row of another format is never guessed at."""
    state = json.loads(encode_run(made())) | {"wire": 99}
    with pytest.raises(StoreFormatError, match="in format 99"):
        decode_run(RUN_ID, json.dumps(state).encode(), input=b"", result=None)


@pytest.mark.parametrize(
    "change",
    [
        {"status": "dreaming"},
        {"status": []},
        {"retry": []},
        {"retry": None},
        {"retry": [0, 1, 2, 60, 0]},
        {"retry": ["x", 1, 2, 60, 0]},
        {"signals": 3},
        {"signals": [[1]]},
    ],
    ids=str,
)
def test_a_state_with_a_wrong_part_is_told(change: dict[str, Any]) -> None:
    """A row that something else has written to names its run and does not pass for one."""
    state = json.loads(encode_run(made())) | change
    with pytest.raises(DecodeError, match=RUN_ID):
        decode_run(RUN_ID, json.dumps(state).encode(), input=b"", result=None)


def test_a_new_run_stores_only_what_tells_it_apart() -> None:
    """What most runs have alike is not stored, and is there again when the run is read."""
    run = Run(RUN_ID, seq=1, task="crawl", created_at=5.0)
    assert sorted(json.loads(encode_run(run))) == ["created_at", "seq", "status", "task", "wire"]
    assert decode_run(RUN_ID, encode_run(run), input=run.input, result=None) == run


@pytest.mark.parametrize("name", ["seq", "status", "task", "wire"])
def test_a_state_with_a_missing_part_is_told(name: str) -> None:
    """What every run has is not made up."""
    state = json.loads(encode_run(made()))
    del state[name]
    with pytest.raises(DecodeError, match=name):
        decode_run(RUN_ID, json.dumps(state).encode(), input=b"", result=None)


@pytest.mark.parametrize("state", [b"", b"{", b"[]", b"7", b"null", b'"x"', b"\xff", b"[" * 200_000, b"9" * 5_000])
def test_bytes_that_are_no_state_are_told(state: bytes) -> None:
    """Whatever is wrong, it is a `DecodeError`."""
    with pytest.raises(DecodeError):
        decode_run(RUN_ID, state, input=b"", result=None)
