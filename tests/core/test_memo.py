"""The memo: what calls came to, handed back in the batches in which it was committed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable.core.memo import Divergence, Memo
from durable.core.records import Call, Kind, Record

DONE, FAILED, CANCELLED, EVENT = Kind.STEP_COMPLETED, Kind.STEP_FAILED, Kind.STEP_CANCELLED, Kind.EVENT
TIMER, WAITING, CHILD, RETRYING = Kind.TIMER_SET, Kind.WAITING, Kind.CHILD_STARTED, Kind.STEP_RETRYING


def call(name: str, occurrence: int = 0, ident: bytes = b"") -> Call:
    return (name, ident, occurrence)


class History:
    """Records of a run, written as (batch, call, kind)."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def add(self, batch: int, what: str | Call, kind: Kind = DONE, attempt: int = 1, **head: object) -> Record:
        name, ident, occurrence = call(what) if isinstance(what, str) else what
        record = Record(
            "r", len(self.records) + 1, kind, 0.0, attempt, name, ident, occurrence, dict(head), b"1", batch
        )
        self.records.append(record)
        return record

    def memo(self, attempt: int = 1) -> Memo:
        return Memo(self.records, attempt)


@pytest.fixture
def past() -> History:
    return History()


def names(records: Sequence[Record]) -> list[str]:
    return [record.name for record in records]


# --- numbering -----------------------------------------------------------------------------------------------------------------------


def test_equal_calls_are_numbered() -> None:
    """A call is known by name, arguments and how often it was made so; others do not count."""
    memo = Memo()
    made = [
        memo.number(name, ident) for name, ident in [("a", b"1"), ("a", b"1"), ("a", b"2"), ("b", b"1"), ("a", b"1")]
    ]
    assert made == [("a", b"1", 0), ("a", b"1", 1), ("a", b"2", 0), ("b", b"1", 0), ("a", b"1", 2)]


def test_a_run_without_past_replays_nothing() -> None:
    """The first attempt finds nothing to hand back and nothing to complain of."""
    memo = Memo()
    made = memo.number("a", b"")
    assert (memo.replaying, memo.result(made), memo.marker(made), memo.next_batch([made])) == (False, None, None, [])
    assert (memo.missing(), memo.leftover(), memo.events) == ((), (), [])


# --- batches of this attempt ---------------------------------------------------------------------------------------------------------


def test_results_come_back_in_their_batches(past: History) -> None:
    """What was committed together is handed back together, one batch at a time, in the order of the record."""
    for batch, name in [(1, "b"), (1, "a"), (2, "c")]:
        past.add(batch, name)
    memo = past.memo()
    made = [memo.number(name, b"") for name in "abc"]
    assert memo.replaying
    assert names(memo.next_batch(made)) == ["b", "a"]
    assert memo.replaying
    assert names(memo.next_batch(made)) == ["c"]
    assert not memo.replaying
    assert memo.next_batch(made) == []


def test_a_batch_waits_until_all_its_calls_are_made(past: History) -> None:
    """A batch is whole or not at all, and a later one does not overtake it."""
    past.add(1, "a")
    past.add(1, "b")
    past.add(2, "c")
    memo = past.memo()
    made = [memo.number("c", b""), memo.number("a", b"")]
    assert memo.next_batch(made) == []
    assert memo.missing() == (call("b"),)
    made.append(memo.number("b", b""))
    assert memo.missing() == ()
    assert names(memo.next_batch(made)) == ["a", "b"]
    assert names(memo.next_batch(made)) == ["c"]


def test_a_result_is_handed_back_once(past: History) -> None:
    """What was handed back is no longer known: an equal call is another occurrence."""
    past.add(1, "a")
    memo = past.memo()
    made = memo.number("a", b"")
    assert memo.result(made) is past.records[0]
    memo.next_batch([made])
    assert memo.result(made) is None
    assert memo.result(memo.number("a", b"")) is None


@pytest.mark.parametrize("kind", [DONE, FAILED, CANCELLED, EVENT])
def test_every_outcome_is_replayed(past: History, kind: Kind) -> None:
    """A failure, a cancelled call and an event take part in the order as results do."""
    past.add(1, "a", kind)
    past.add(2, "b")
    memo = past.memo()
    a, b = memo.number("a", b""), memo.number("b", b"")
    waiting = [b] if kind is CANCELLED else [a, b]
    assert [record.kind for record in memo.next_batch(waiting)] == [kind]
    assert names(memo.next_batch([b])) == ["b"]


def test_a_cancelled_call_keeps_its_place_in_the_batch(past: History) -> None:
    """A batch with a call that was given up is due once the code has made that call and given it up again."""
    past.add(1, "fast")
    past.add(1, "slow", CANCELLED)
    memo = past.memo()
    fast = memo.number("fast", b"")
    assert memo.next_batch([fast]) == []
    slow = memo.number("slow", b"")
    assert memo.next_batch([fast, slow]) == []
    assert memo.missing() == (), "the code lacks no call"
    assert [(record.name, record.kind) for record in memo.next_batch([fast])] == [("fast", DONE), ("slow", CANCELLED)]


def test_calls_after_the_replay_are_new(past: History) -> None:
    """Once all is handed back, further calls are not compared with anything."""
    past.add(1, "a")
    memo = past.memo()
    memo.next_batch([memo.number("a", b"")])
    new = memo.number("b", b"")
    assert (memo.result(new), memo.missing(), memo.leftover()) == (None, (), ())


def test_other_kinds_are_no_results(past: History) -> None:
    """Records of the run itself are no calls of the body."""
    for kind in set(Kind) - {DONE, FAILED, CANCELLED, EVENT}:
        past.add(1, "a", kind)
    memo = past.memo()
    assert not memo.replaying
    assert memo.result(call("a")) is None


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abc")), max_size=12), st.randoms(use_true_random=False))
def test_replay_gives_the_record_whatever_the_order_of_calls(steps: list[tuple[int, str]], random: object) -> None:
    """However calls interleave, what comes back is the record: the same batches in the same order, nothing twice."""
    past = History()
    batch, counts = 0, dict.fromkeys("abc", 0)
    for pause, name in steps:
        batch += pause
        past.add(batch, call(name, counts[name]))
        counts[name] += 1
    memo = past.memo()
    todo = [record.name for record in past.records]
    random.shuffle(todo)  # type: ignore[attr-defined]
    waiting: list[Call] = []
    seen: list[Record] = []
    for name in todo:
        waiting.append(memo.number(name, b""))
        while due := memo.next_batch(waiting):
            assert len({record.batch for record in due}) == 1
            assert len(due) == sum(record.batch == due[0].batch for record in past.records)
            seen += due
    assert seen == past.records
    assert not memo.replaying


# --- markers -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TIMER, WAITING, CHILD, RETRYING])
def test_what_a_call_has_begun_is_known(past: History, kind: Kind) -> None:
    """A timer keeps its time, a child its run, a step its last failed try: the last such record counts."""
    past.add(1, "a", kind)
    latest = past.add(2, "a", kind)
    memo = past.memo()
    assert memo.marker(memo.number("a", b"")) is latest
    assert not memo.replaying


@pytest.mark.parametrize("kind", [TIMER, WAITING, RETRYING])
def test_a_new_attempt_begins_its_calls_anew(past: History, kind: Kind) -> None:
    """A timer or a wait of an earlier attempt says nothing about this one."""
    past.add(1, "a", kind)
    assert past.memo(attempt=2).marker(call("a")) is None


def test_a_new_attempt_keeps_its_children(past: History) -> None:
    """A child is spawned once: the next attempt finds it again."""
    child = past.add(1, "a", CHILD)
    assert past.memo(attempt=2).marker(call("a")) is child


@pytest.mark.parametrize("kind", [FAILED, CANCELLED])
def test_a_new_attempt_keeps_a_child_that_failed(past: History, kind: Kind) -> None:
    """A child that did not succeed is tried again itself: the call finds it, and has no outcome yet."""
    child = past.add(1, "a", CHILD)
    past.add(2, "a", kind)
    memo = past.memo(attempt=2)
    made = memo.number("a", b"")
    assert memo.marker(made) is child
    assert (memo.result(made), memo.next_batch([made]), memo.replaying) == (None, [], False)


@pytest.mark.parametrize("kind", [FAILED, CANCELLED])
def test_a_child_that_was_tried_again_has_its_new_outcome(past: History, kind: Kind) -> None:
    """What it came to at first is neither handed back nor in the way, and what was recorded of it last counts."""
    past.add(1, "a", CHILD)
    past.add(2, "a", kind)
    again = past.add(3, "a", CHILD, attempt=2)
    done = past.add(4, "a", DONE, attempt=2)
    memo = past.memo(attempt=2)
    made = memo.number("a", b"")
    assert memo.marker(made) is again
    assert memo.next_batch([made]) == [done]
    assert not memo.replaying


# --- earlier attempts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DONE, EVENT])
def test_completed_steps_of_earlier_attempts_are_kept(past: History, kind: Kind) -> None:
    """What was recorded is never run again, in whichever attempt it was."""
    kept = past.add(1, "a", kind)
    memo = past.memo(attempt=2)
    made = memo.number("a", b"")
    assert not memo.replaying
    assert memo.result(made) is kept
    assert memo.next_batch([made]) == [kept]
    assert memo.result(made) is None


@pytest.mark.parametrize("kind", [FAILED, CANCELLED])
def test_failed_steps_of_earlier_attempts_run_again(past: History, kind: Kind) -> None:
    """A retry is for what failed."""
    past.add(1, "a", kind)
    memo = past.memo(attempt=2)
    assert memo.result(memo.number("a", b"")) is None


def test_earlier_attempts_serve_whoever_calls(past: History) -> None:
    """Earlier results bind no order: the oldest batch that is waited for comes first, and of it what is waited for, by seq."""
    past.add(1, "never called again")
    for batch, name in [(2, "a"), (2, "b"), (3, "c")]:
        past.add(batch, name)
    memo = past.memo(attempt=2)
    c, b, a = (memo.number(name, b"") for name in "cba")
    assert memo.next_batch([]) == []
    assert names(memo.next_batch([c])) == ["c"]
    assert names(memo.next_batch([b, a])) == ["a", "b"]
    assert memo.next_batch([a, b, c]) == []
    assert memo.leftover() == ()


def test_earlier_attempts_go_before_this_one(past: History) -> None:
    """On replay of a second attempt the results of the first come first, as they did."""
    past.add(1, "a")
    past.add(5, "b", attempt=2)
    memo = past.memo(attempt=2)
    made = [memo.number("b", b""), memo.number("a", b"")]
    assert names(memo.next_batch(made)) == ["a"]
    assert names(memo.next_batch(made)) == ["b"]


def test_the_result_of_this_attempt_replaces_an_earlier_one(past: History) -> None:
    """Where both attempts recorded a call, this one's is what the body saw."""
    past.add(1, "a")
    mine = past.add(2, "a", FAILED, attempt=2)
    memo = past.memo(attempt=2)
    made = memo.number("a", b"")
    assert memo.result(made) is mine
    assert memo.next_batch([made]) == [mine]
    assert memo.next_batch([made]) == []


# --- calls that the code gained ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DONE, FAILED, CANCELLED, EVENT])
def test_the_result_of_a_gained_call_has_no_place_in_the_order(past: History, kind: Kind) -> None:
    """A call that was added to the code while the run was replayed comes back to whoever calls for it, whatever came before."""
    past.add(1, "a")
    past.add(2, "b")
    past.add(3, "gained", kind, added=True)
    memo = past.memo()
    gained = memo.number("gained", b"")
    assert [record.kind for record in memo.next_batch([gained])] == [kind]
    assert names(memo.next_batch([gained, memo.number("a", b"")])) == ["a"]
    assert memo.leftover() == (call("b"),)


def test_a_gained_call_may_be_lost_again(past: History) -> None:
    """Taking the new call out of the code once more is no divergence."""
    past.add(1, "gained", added=True)
    memo = past.memo()
    assert (memo.replaying, memo.leftover(), memo.missing()) == (False, (), ())


@pytest.mark.parametrize(("kind", "kept"), [(DONE, True), (EVENT, True), (FAILED, False), (CANCELLED, False)])
def test_a_gained_call_is_as_any_other_to_the_next_attempt(past: History, kind: Kind, kept: bool) -> None:
    """Having been added later does not keep a failed step from running again."""
    past.add(1, "gained", kind, added=True)
    assert (past.memo(attempt=2).result(call("gained")) is not None) == kept


# --- events --------------------------------------------------------------------------------------------------------------------------


def test_events_of_all_attempts_are_known(past: History) -> None:
    """The body can ask what was emitted before, in earlier attempts and inside steps too."""
    past.add(1, "tick", EVENT)
    past.add(2, "inner", EVENT, step="fetch")
    past.add(3, "tock", EVENT, attempt=2)
    assert names(past.memo(attempt=2).events) == ["tick", "inner", "tock"]


def test_an_event_of_a_step_is_no_call_of_the_body(past: History) -> None:
    """The step is not run again, so that its events are not waited for."""
    past.add(1, "tick", EVENT, step="fetch")
    memo = past.memo()
    assert not memo.replaying
    assert memo.result(call("tick")) is None


# --- a recovery handler takes over ---------------------------------------------------------------------------------------------------


def test_loosened_results_serve_whoever_calls(past: History) -> None:
    """A body that takes recovery into its own hands may call in any order, and leave calls out."""
    for batch, name in enumerate("abc"):
        past.add(batch, name)
    memo = past.memo()
    memo.loosen()
    assert (memo.replaying, memo.leftover()) == (False, ())
    made = memo.number("c", b"")
    assert names(memo.next_batch([made])) == ["c"]


def test_loosening_drops_what_did_not_complete(past: History) -> None:
    """Failed and cancelled calls run again, and events are emitted again: they are no calls to a handler."""
    past.add(1, "failed", FAILED)
    past.add(2, "cancelled", CANCELLED)
    past.add(3, "tick", EVENT)
    past.add(4, "done", DONE)
    past.add(5, "gained", FAILED, added=True)
    earlier = History()
    earlier.records = [*past.records]
    earlier.add(5, "tock", EVENT, attempt=2)
    for memo in (past.memo(), earlier.memo(attempt=2)):
        memo.loosen()
        assert [
            name for name in ("failed", "cancelled", "tick", "tock", "gained", "done") if memo.result(call(name))
        ] == ["done"]
        assert "tick" in names(memo.events)


# --- code and record differ ----------------------------------------------------------------------------------------------------------


def diverging(past: History, code: str, steps: str, unknown: str = "") -> Divergence:
    """Let code make the calls that it is not kept from; `unknown` are those that the record does not have."""
    memo = past.memo()
    made = [memo.number(name, b"") for name in code]
    while memo.next_batch(made):
        pass
    found = memo.diverged([each for each in made if each[0] in unknown], lambda name: name in steps)
    assert found.recorded == memo.missing()
    return found


@pytest.fixture
def two(past: History) -> History:
    past.add(1, "a")
    past.add(2, "b")
    return past


def test_a_renamed_step_is_told(two: History) -> None:
    """The record has a step that no code defines any more."""
    found = diverging(two, "x", steps="xb", unknown="x")
    assert found == Divergence((call("a"),), (call("x"),), "a was renamed or removed")


def test_changed_arguments_are_told(two: History) -> None:
    """The step is there, called with something else."""
    memo = two.memo()
    made = memo.number("a", b"other")
    found = memo.diverged([made], lambda name: True)
    assert found == Divergence((call("a"),), (made,), "the arguments of a call changed")


def test_changed_arguments_of_a_later_call_are_told(two: History) -> None:
    """The step that is called wrongly need not be the next one of the record."""
    memo = two.memo()
    made = memo.number("b", b"other")
    assert memo.diverged([made], lambda name: True).guess == "the arguments of a call changed"


def test_reordered_calls_are_told(two: History) -> None:
    """The code made a recorded call too early."""
    found = diverging(two, "b", steps="ab")
    assert found == Divergence((call("a"),), (call("b"),), "the order of calls changed, or a call was removed")


def test_an_added_step_is_told_apart(two: History) -> None:
    """A step that was added since breaks no record: it may be run."""
    found = diverging(two, "x", steps="abx", unknown="x")
    assert found == Divergence((call("a"),), (call("x"),), "a call was added before the recorded ones", added=True)


def test_an_added_step_in_the_middle_is_told_apart(two: History) -> None:
    """What was replayed before does not count."""
    found = diverging(two, "ax", steps="abx", unknown="x")
    assert found == Divergence((call("b"),), (call("x"),), "a call was added before the recorded ones", added=True)


def test_removed_calls_are_left_over(two: History) -> None:
    """A body that ends without its recorded calls has lost some."""
    two.add(3, "c")
    memo = two.memo()
    assert memo.leftover() == (call("a"), call("b"), call("c"))
    memo.next_batch([memo.number("a", b"")])
    memo.number("c", b"")
    assert memo.leftover() == (call("b"),)
    assert memo.missing() == (call("b"),)


def test_several_gone_steps_are_named_in_order(past: History) -> None:
    """The guess names each step that is gone, once."""
    past.add(1, "b")
    past.add(1, "a")
    past.add(1, call("a", 1))
    assert diverging(past, "x", steps="x", unknown="x").guess == "a, b was renamed or removed"


def test_only_replayed_calls_are_compared(two: History) -> None:
    """A call of the same name that was already handed back does not look like changed arguments."""
    memo = two.memo()
    memo.next_batch([memo.number("a", b"")])
    made = memo.number("a", b"other")
    assert memo.diverged([made], lambda name: True).added


def test_every_guess_has_its_own_words(two: History) -> None:
    """The guesses can be told apart by who reads them."""
    guesses = [
        diverging(two, code, steps, unknown).guess
        for code, steps, unknown in [("x", "x", "x"), ("b", "ab", ""), ("x", "abx", "x")]
    ]
    assert all(one != other for one, other in itertools.combinations(guesses, 2))


# --- a body that may go another way --------------------------------------------------------------------------------------------------


def test_a_relaxed_record_serves_whoever_calls_and_misses_nothing(past: History) -> None:
    """Results come to whoever calls, the oldest first; what is not called is not missed, and what is new is no divergence."""
    past.add(1, "a")
    past.add(2, "b")
    past.add(3, "said", Kind.EVENT)
    memo = past.memo()
    assert memo.replaying
    memo.relax()
    assert (memo.replaying, memo.repeating, memo.leftover()) == (False, True, ())
    second, first = memo.number("b", b""), memo.number("a", b"")
    assert memo.result(memo.number("said", b"")) is not None
    assert names(memo.next_batch([second, first])) == ["a"]
    assert names(memo.next_batch([second])) == ["b"]


def test_a_relaxed_body_repeats_itself_until_it_does_something_new(past: History) -> None:
    """From the first call that is not recorded on, the body no longer repeats what it did."""
    past.add(1, "a")
    memo = past.memo()
    memo.relax()
    memo.number("new", b"")
    assert not memo.repeating


def test_a_call_given_up_after_its_outcome_was_recorded_has_no_other(past: History) -> None:
    """The record that it was given up takes the place of the outcome that the body never got, also when that was alone in its batch."""
    past.add(1, "a")
    past.add(2, "b")
    past.add(2, "c")
    past.add(3, "a", Kind.STEP_CANCELLED)
    past.add(4, "b", Kind.STEP_CANCELLED)
    memo = past.memo()
    calls = {name: memo.number(name, b"") for name in "abc"}
    found = memo.result(calls["a"])
    assert found is not None
    assert found.kind is Kind.STEP_CANCELLED
    assert names(memo.next_batch([calls["c"]])) == ["c"]
    assert [record.kind for record in memo.next_batch([])] == [Kind.STEP_CANCELLED]


def test_what_a_recovery_handler_recorded_has_no_place_in_the_order(past: History) -> None:
    """The body gets it where it makes the same call, and need not make it."""
    past.add(1, "asked", handler=True)
    past.add(2, "left")
    memo = past.memo()
    assert memo.leftover() == (call("left"),)
    asked, left = memo.number("asked", b""), memo.number("left", b"")
    assert [record.call for record in memo.next_batch({asked, left})] == [asked]
    assert [record.call for record in memo.next_batch({left})] == [left]


def test_what_a_recovery_handler_gave_up_the_body_may_want(past: History) -> None:
    """Else the body's call would wait to be given up, too."""
    past.add(1, "slow", CANCELLED, handler=True)
    memo = past.memo()
    assert memo.result(memo.number("slow", b"")) is None
    assert not memo.replaying
