"""`REACTIONS`: what follows from each record."""

from __future__ import annotations

import pytest

from durable.core.react import REACTIONS, Effect
from durable.core.records import ENDS, RESULTS, Kind
from durable.core.status import TRANSITIONS, Status, Verb
from tests.core.machine import asked, give, made

COORDINATED = Status.WAITING_FOR_ON_CHILDREN_COMPLETE


def test_every_kind_has_an_entry() -> None:
    """A new kind cannot be forgotten: what follows from it is written down, if only that nothing does."""
    assert set(REACTIONS) == set(Kind)


def test_every_effect_follows_from_something() -> None:
    """The engine handles no effect that no record has."""
    assert {effect for effects in REACTIONS.values() for effect in effects} == set(Effect)


def test_the_table_cannot_be_changed() -> None:
    """Nobody adds an effect from elsewhere."""
    with pytest.raises(TypeError):
        REACTIONS[Kind.EVENT] = ()  # type: ignore[index]


@pytest.mark.parametrize(("status", "verb"), sorted(TRANSITIONS), ids=str)
def test_each_transition_has_the_effect_that_its_status_needs(status: Status, verb: Verb) -> None:
    """A run whose turn comes is scheduled, one whose body begins is executed, one that ends is settled, and no body is left."""
    run, command = asked(status, verb)
    record = give(run, command)[-1]
    effects = REACTIONS[record.kind]
    assert (Effect.SETTLE in effects) == run.ended
    assert (Effect.EXECUTE in effects) == run.executing
    assert (Effect.REST in effects) == (verb is Verb.SLEEP), "else the body has ended by itself, or was stopped before"
    goes_on_later = run.status is COORDINATED and verb in (Verb.RETRY, Verb.RELEASE, Verb.REJOIN)
    assert run.asleep == (Effect.REST in effects or goes_on_later)
    if run.status is Status.READY or verb in (Verb.RETRY, Verb.RELEASE, Verb.REJOIN):
        assert (Effect.SCHEDULE in effects) == (record.kind is not Kind.RELEASED), (
            "a released run is another executor's to schedule"
        )
    if status in (Status.RUNNING, COORDINATED) and record.kind in (
        Kind.SUSPENDED,
        Kind.CANCELLED,
    ):
        assert Effect.INTERRUPT in effects


def test_only_ends_are_settled() -> None:
    """Nobody is told of an end that is none, and each end is told."""
    assert {kind for kind, effects in REACTIONS.items() if Effect.SETTLE in effects} == ENDS


def test_a_new_run_is_scheduled() -> None:
    """Creating a run is enough for it to be run."""
    assert made().status is Status.READY
    assert REACTIONS[Kind.CREATED] == (Effect.SCHEDULE,)


def test_results_are_delivered_but_a_cancelled_call_is_not() -> None:
    """What a call came to is handed to it; a call that the body gave up waits for nothing."""
    assert {kind for kind, effects in REACTIONS.items() if Effect.DELIVER in effects} == RESULTS - {
        Kind.STEP_CANCELLED
    } | {Kind.EVENT}
