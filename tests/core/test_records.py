"""Records: their kinds, names and sets."""

from __future__ import annotations

import pytest

from durable.core.records import CALLS, ENDS, RESERVED_NAMES, RESULTS, Kind, Record

#: The wire numbers as released. A line may be added, none changed or removed.
NUMBERS = {
    "CREATED": 1,
    "STARTED": 2,
    "RETRYING": 3,
    "RECOVERED": 4,
    "WAITING": 5,
    "SUSPENDED": 6,
    "RESUMED": 7,
    "COMPLETED": 8,
    "FAILED": 9,
    "TIMED_OUT": 10,
    "CANCELLED": 11,
    "EVENT": 13,
    "CHILDREN_STARTED": 14,
    "CHILDREN_FAILED": 15,
    "STEP_COMPLETED": 20,
    "STEP_FAILED": 21,
    "STEP_CANCELLED": 22,
    "STEP_RETRYING": 23,
    "TIMER_SET": 24,
    "CHILD_STARTED": 25,
    "SIGNAL": 26,
    "CHILD_ENDED": 27,
    "RELEASED": 28,
    "ASLEEP": 29,
    "DISCARDED": 30,
    "AWAKE": 31,
    "COORDINATING": 32,
    "CLOSED": 33,
    "WATCHED": 34,
}
VISIBLE = {
    "created",
    "started",
    "retrying",
    "recovered",
    "waiting",
    "suspended",
    "resumed",
    "completed",
    "failed",
    "timed_out",
    "children_failed",
    "cancelled",
}


def record(kind: Kind) -> Record:
    return Record("r", 1, kind, 1.0, 1, "tick", b"i", 2)


def test_wire_numbers_never_change() -> None:
    """A number once written means the same for ever."""
    assert {kind.name: kind.value for kind in Kind} == NUMBERS


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_a_name_for_subscribers(kind: Kind) -> None:
    """An event has the name that the body gave it, every other record its own; those of steps are seen only on request."""
    seen = record(kind)
    if kind is Kind.EVENT:
        assert (seen.event_name, seen.visible) == ("tick", True)
    else:
        assert seen.visible == (seen.event_name in VISIBLE) == (not seen.event_name.startswith("step:"))


def test_names_of_the_engine_are_reserved() -> None:
    """No body can emit what looks like a fact of the engine or like the stream's own events."""
    assert VISIBLE | {"ready", "error", "heartbeat", "gap", "server_shutting_down"} == RESERVED_NAMES


def test_a_call_is_name_arguments_and_occurrence() -> None:
    """The identity of a call is the three together."""
    assert record(Kind.STEP_FAILED).call == ("tick", b"i", 2)


def test_the_sets_of_kinds_do_not_contradict() -> None:
    """Results belong to calls, and what ends a run belongs to none."""
    assert RESULTS < CALLS
    assert not CALLS & ENDS
