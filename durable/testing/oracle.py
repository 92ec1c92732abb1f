"""`Oracle`: what the world outside of the engine knows of its runs, and how it judges a store by that.

Law: it notes what was acknowledged or seen when that happens; later all of it must be there, unchanged. A broken promise is noted,
and raised when the life is over: so no finding depends on what a body makes of an exception.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from durable.core.query import RunFilter
from durable.core.records import ENDS, Call, Kind, Record
from durable.core.run import JOINING, Run, apply, fold
from durable.store.base import Store, Unit
from durable.testing.kin import family_faults

#: Shows in a run's history that a promise was kept.
Holds = Callable[[Sequence[Record]], bool]
_ALL_RUNS = RunFilter(limit=1_000_000)


class SimulationError(AssertionError):
    """A promise was broken."""


class Oracle:
    """What the world outside of the engine knows."""

    #: Tells what is wrong between runs of one family.
    family_faults = staticmethod(family_faults)

    def __init__(self) -> None:
        #: Records that are durable for sure, because a commit returned or a store showed them.
        self.known: dict[str, list[Record]] = {}
        #: What was promised to somebody: run, in words, and how to see it in the run's history.
        self.promises: list[tuple[str, str, Holds]] = []
        #: Events that a subscriber saw.
        self.seen: dict[tuple[str, int], str] = {}
        self.executions: Counter[tuple[str, Call]] = Counter()
        self.violations: list[str] = []
        self.checks = 0
        #: The runs as their known records make them.
        self._runs: dict[str, Run] = {}
        #: Calls of a run's body, and those of its coordinator, which are others: told apart by `Run.returned_seq`.
        self._completed: set[tuple[str, int, Call]] = set()
        self._failed: dict[tuple[str, int, Call], int] = {}
        self._sights: dict[tuple[str, int], list[object]] = {}

    def blame(self, text: str) -> None:
        """Note a broken promise; it is raised when the life is over."""
        self.violations.append(text)

    def promise(self, run_id: str, what: str, holds: Holds) -> None:
        """Note what somebody may rely on from now on."""
        self.promises.append((run_id, what, holds))

    def committed(self, units: Iterable[Unit]) -> None:
        """The store acknowledged these records."""
        for unit in units:
            for record in unit:
                self._learn(record, "was acknowledged")

    def _learn(self, record: Record, how: str) -> None:
        known = self.known.setdefault(record.run_id, [])
        if record.seq <= len(known):
            if known[record.seq - 1] != record:
                self.blame(
                    f"record {record.seq} of run {record.run_id} {how} as {record}, it was {known[record.seq - 1]}"
                )
        elif record.seq == len(known) + 1:
            known.append(record)
            run = self._runs[record.run_id] = apply(self._runs.get(record.run_id, Run(record.run_id)), record)
            if record.kind is Kind.STEP_COMPLETED:
                self._completed.add((record.run_id, run.returned_seq, record.call))
            elif record.kind is Kind.STEP_FAILED:
                self._failed[record.run_id, run.returned_seq, record.call] = record.attempt
        else:
            self.blame(f"record {record.seq} of run {record.run_id} {how} after {len(known)}: a gap")

    def executed(self, run_id: str, call: Call) -> None:
        """A step's body is about to run."""
        self.executions[run_id, call] += 1
        run = self._runs.get(run_id, Run(run_id))
        if run.started_at is None:
            self.blame(f"step {call} of run {run_id} runs before its attempt is durable")
        if run.status in JOINING and run.unfinished:
            self.blame(f"step {call} of run {run_id} runs although {run.unfinished} children have not ended")
        if (run_id, run.returned_seq, call) in self._completed:
            self.blame(f"step {call} of run {run_id} runs again although its result is durable")
        if self._failed.get((run_id, run.returned_seq, call)) == run.attempt:
            self.blame(f"step {call} of run {run_id} runs again although its failure is durable in this attempt")
        if run.ended:
            self.blame(f"step {call} of run {run_id} runs although the run has ended durably")

    def sight(self, run_id: str, attempt: int, position: int, value: object) -> None:
        """A body saw a value: the same in each life, at the same position."""
        sights = self._sights.setdefault((run_id, attempt), [])
        if position == len(sights):
            sights.append(value)
        elif sights[position] != value:
            before = sights[position]
            self.blame(f"the body of run {run_id} saw {before!r} at {position} of attempt {attempt}, and now {value!r}")

    def noticed(self, run_id: str, seq: int, name: str) -> None:
        """A subscriber saw an event."""
        before = self.seen.setdefault((run_id, seq), name)
        if before != name:
            self.blame(f"event {seq} of run {run_id} was {before!r} and is now {name!r}")

    async def inspect(self, store: Store) -> None:
        """Compare a store that has just been opened with all that is known."""
        self.checks += 1
        runs = {run.run_id: run for run in await store.query(_ALL_RUNS)}
        for run_id in (*self.known, *(promise[0] for promise in self.promises), *(key[0] for key in self.seen)):
            if run_id not in runs:
                self.blame(f"run {run_id} was acknowledged, and is lost")
        histories = {run_id: await store.history(run_id) for run_id in runs}
        for run_id, run in runs.items():
            self._inspect_run(run, histories[run_id])
        for fault in self.family_faults(runs, histories):
            self.blame(fault)
        for run_id, what, holds in self.promises:
            if run_id in histories and not holds(histories[run_id]):
                self.blame(f"{what} (run {run_id}) was acknowledged, and is lost")
        for (run_id, seq), name in self.seen.items():
            history = histories.get(run_id, [])
            if len(history) < seq or history[seq - 1].event_name != name:
                self.blame(f"event {seq} {name!r} of run {run_id} was seen, and is lost")
        self.verify()

    def _inspect_run(self, run: Run, history: list[Record]) -> None:
        if [record.seq for record in history] != list(range(1, len(history) + 1)):
            self.blame(f"the records of run {run.run_id} are {[record.seq for record in history]}")
            return
        known = self.known.get(run.run_id, [])
        if len(known) > len(history):
            self.blame(
                f"run {run.run_id} has {len(history)} records, but {len(known)} were acknowledged: {known[len(history) :]}"
            )
        for record in history:
            self._learn(record, "is found")
        if fold(history) != run:
            self.blame(f"the state of run {run.run_id} is {run}, its records make {fold(history)}")
        kinds = [record.kind for record in history]
        open_again = sum(record.kind is Kind.RESUMED and record.head.get("reason") == "retry" for record in history)
        ends = sum(kind in ENDS for kind in kinds)
        if ends - open_again != run.ended:
            self.blame(f"run {run.run_id} has {ends} ends and {open_again} retries, and is {run.status}")
        for record, following in pairwise(history):
            follows = (Kind.RESUMED, Kind.DISCARDED, *((Kind.CLOSED,) if record.kind in ENDS else ()))
            if record.kind in (*ENDS, Kind.CLOSED) and following.kind not in follows:
                self.blame(f"run {run.run_id} goes on with {following} after {record.kind.name}")
        if any(record.kind is Kind.SUSPENDED and "NonDeterminism" in str(record.head) for record in history):
            self.blame(
                f"run {run.run_id} of {run.task} was parked, although its code is the same: {history[-1].head.get('message')}"
            )
        taken = Counter(record.head["signal"] for record in history if "signal" in record.head)
        taken.subtract(record.head["unread"] for record in history if "unread" in record.head)
        if any(count > 1 for count in taken.values()):
            self.blame(f"run {run.run_id} took a signal twice: {taken}")
        calls = Counter(
            (each.call, each.seq > run.returned_seq, 0 if each.kind is Kind.STEP_COMPLETED else each.attempt)
            for each in history
            if each.kind in (Kind.STEP_COMPLETED, Kind.STEP_FAILED)
        )
        for call, count in calls.items():
            if count > 1:
                self.blame(f"run {run.run_id} has {count} results of the call {call}")
        given_up: set[object] = set()
        for record in history:
            which = (record.call, record.attempt, record.seq > run.returned_seq)
            if record.kind is Kind.STEP_CANCELLED:
                given_up.add(which)
            elif record.kind in (Kind.STEP_COMPLETED, Kind.STEP_FAILED) and which in given_up:
                self.blame(
                    f"record {record.seq} of run {run.run_id} is the result of a call that was given up: {record}"
                )

    def verify(self) -> None:
        """Raise the first broken promise, if there is one."""
        if self.violations:
            raise SimulationError(self.violations[0])
