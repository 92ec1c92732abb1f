"""The scheduler with its queue and its places against a model that looks at everybody each time."""

from __future__ import annotations

import time
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from durable import Limits
from durable.core.run import Run
from durable.engine.entry import Entry
from durable.engine.recoveries import Recoveries
from durable.engine.scheduler import PRIORITY_SECONDS, Scheduler
from durable.guard.places import LocalPlaces
from durable.guard.queue import FairQueue


class StandingClock:
    def now(self) -> float:
        return 1_000_000.0

    def monotonic(self) -> float:
        return 0.0


class Slots(RuleBasedStateMachine):
    """Runs come, end, are cancelled and awaited, and limits change: the same begin as the model says, in the same order."""

    @initialize(slots=st.integers(1, 4), running=st.integers(1, 4), own=st.none() | st.integers(1, 3))
    def open(self, slots: int, running: int, own: int | None) -> None:
        self.slots = slots
        self.limits = Limits(max_running=running, max_running_per_user=own)
        self.places = LocalPlaces(self.limits)
        self.begun: list[str] = []
        self.scheduler = Scheduler(StandingClock(), slots, self.places, self._begin, lambda: None, Recoveries(9))
        self.entries: dict[str, Entry] = {}
        self.free: set[str] = set()
        self.waiting: list[str] = []
        self.running: list[str] = []
        self.expected: list[str] = []

    def _begin(self, entry: Entry) -> None:
        self.begun.append(entry.run.run_id)

    def _may_begin(self, run_id: str) -> bool:
        counted = [each for each in self.running if each not in self.free]
        user = self.entries[run_id].run.user
        own = self.limits.max_running_per_user
        theirs = sum(self.entries[each].run.user == user for each in counted)
        return len(counted) < min(self.slots, self.limits.max_running) and (user is None or own is None or theirs < own)

    def _fill(self) -> None:
        while True:
            able = [each for each in self.waiting if self._may_begin(each)]
            if not able:
                return
            first = min(able, key=self._standing)
            self.waiting.remove(first)
            self.running.append(first)
            self.expected.append(first)

    def _standing(self, run_id: str) -> tuple[float, str]:
        run = self.entries[run_id].run
        return run.created_at - PRIORITY_SECONDS * run.priority, run_id

    @rule(user=st.sampled_from(["a", "b", "c", None]), created_at=st.integers(0, 200), priority=st.integers(0, 2))
    def come(self, user: str | None, created_at: int, priority: int) -> None:
        run_id = f"run {len(self.entries):04}"
        entry = self.entries[run_id] = Entry(Run(run_id, user=user, created_at=float(created_at), priority=priority))
        self.waiting.append(run_id)
        self._fill()
        self.scheduler.schedule(entry)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from(self.running))
        self.running.remove(run_id)
        self._fill()
        self.scheduler.release(self.entries[run_id])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(run_id)
        self.scheduler.forget(self.entries[run_id])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def is_awaited(self, data: st.DataObject) -> None:
        """By a body: it begins at once, and counts for nobody."""
        run_id = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(run_id)
        self.free.add(run_id)
        self.running.append(run_id)
        self.expected.append(run_id)
        self.scheduler.hasten(self.entries[run_id])

    @rule(slots=st.integers(1, 4), running=st.integers(1, 4), own=st.none() | st.integers(1, 3))
    def change(self, slots: int, running: int, own: int | None) -> None:
        self.slots = slots
        self.limits = replace(self.limits, max_running=running, max_running_per_user=own)
        self._fill()
        self.places.change(self.limits)
        self.scheduler.change(slots)

    @invariant()
    def they_agree(self) -> None:
        assert self.begun == self.expected
        assert self.scheduler.queued == self.scheduler.starts_waiting == len(self.waiting)
        assert self.scheduler.running == sum(each not in self.free for each in self.running)
        if self.scheduler.free:
            assert not any(map(self._may_begin, self.waiting))


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), max_size=30), st.data())
def test_who_was_dropped_is_never_first(pushed: list[tuple[str, int]], data: st.DataObject) -> None:
    queue = FairQueue[int]()
    turns = [queue.push(float(at), f"{number:03}", user, number) for number, (user, at) in enumerate(pushed)]
    kept = list(range(len(turns)))
    for number in data.draw(st.permutations(kept)) if kept else []:
        if data.draw(st.booleans()) and queue.first() is not None:
            queue.set_aside()
        queue.drop(turns[number])
        queue.drop(turns[number])
        kept.remove(number)
        assert len(queue) == len(kept)
        queue.freed_all()
        first = queue.first()
        assert (None if first is None else first.what) == min(
            kept, key=lambda each: (pushed[each][1], each), default=None
        )
    assert queue.ready == len(queue) == 0


def test_a_turn_costs_no_more_behind_many_who_can_have_none() -> None:
    """W35: a free slot is given away without looking through all who wait for another."""

    def seconds_for(waiting: int) -> float:
        places = LocalPlaces(Limits(max_running=3, max_running_per_user=1))
        begun: list[Entry] = []
        scheduler = Scheduler(StandingClock(), 3, places, begun.append, lambda: None, Recoveries(9))
        for number in range(waiting):
            scheduler.schedule(Entry(Run(f"greedy {number:06}", user="greedy", created_at=float(number))))
        small = [Entry(Run(f"small {n:06}", user=f"user {n}", created_at=1e6 + n)) for n in range(2_000)]
        started = time.perf_counter()
        for entry in small:
            scheduler.schedule(entry)
        while begun[-1] is not small[-1]:
            scheduler.release(begun[-1])
        taken = time.perf_counter() - started
        assert begun[1:] == small  # the greedy one has one place, and keeps it
        return taken

    assert min(seconds_for(50_000) for _ in range(3)) < 5 * min(seconds_for(500) for _ in range(3))
