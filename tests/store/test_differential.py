"""Random work, on a store in memory, a local one, one in PostgreSQL and one of three shards: they answer alike.

python -m tests.store.test_differential SEED LAST        # hunt from one seed to another
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from durable.config import FlushSettings, LogSettings, PostgresSettings
from durable.core.commands import Begin, ChildEnded, Command, Complete, Coordinate, Create, Fail
from durable.core.decide import decide
from durable.core.families import prunable
from durable.core.ids import family_of, family_of_key, make_run_id
from durable.core.query import RunFilter
from durable.core.records import Record
from durable.core.retry import Retry
from durable.core.run import Run, apply, fold
from durable.core.status import Status
from durable.errors import DurableError
from durable.store import LocalStore, MemoryStore, PostgresStore, Store
from durable.store.postgres.shards.store import ShardedStore
from tests.store.fate import COMMANDS, FAILURE, PATHS, payload, text
from tests.store.lockstep import DifferenceError, Lockstep, pattern
from tests.support.pgserver import PostgresServer

RECORDS_MAX = 200
#: Operations of one story at least, and at most while one kind has not succeeded.
STEPS, STEPS_MAX = 250, 1_000
SHARDS = 3
USERS = (None, None, "", "a", "é\ud800")
FIELDS = (
    "status",
    "task",
    "user",
    "key",
    "parent_id",
    "dead",
    "open",
    "due_after",
    "due_by",
    "ended_by",
    "after",
    "limit",
)


class Story:
    """One seed's work.

    Arguments:
        rng: decides everything.
        stores: where it is done.
    """

    def __init__(self, rng: random.Random, stores: Lockstep) -> None:
        self.rng = rng
        self.stores = stores
        self.now = 1_700_000_000.0
        self.created = 0
        self.runs: dict[str, Run] = {}
        self.records: dict[str, list[Record]] = {}
        self.keys: dict[tuple[str | None, str], str] = {}
        self.done: Counter[str] = Counter()
        self.kinds: dict[str, Callable[[], Awaitable[bool]]] = {
            "create": self.create, "create with a key": self.create_keyed, "create children": self.create_children,
            "create several": self.create_several, "take a key again": self.take_again, "leave a gap": self.leave_gap,
            "go on with nothing": self.go_on_with_nothing, "say it twice": self.say_twice, "end a child": self.end_child,
            "fail a child": self.fail_child, "coordinate": self.coordinate, "coordinate by a task": self.coordinate_by_task,
            "work on several": self.work_on_several, "commit nothing": self.commit_nothing,
            **{name: partial(self.command, name) for name in COMMANDS},
            "find": self.find, "find nothing": self.find_nothing, "find a key": self.find_key,
            "find no key": self.find_no_key, "history": self.history, "page of a history": self.page,
            "histories": self.histories, "next due": self.next_due, "count": self.count, "prune": self.prune,
            "ask when closed": self.ask_closed,
            **{f"query by {field}": partial(self.query, field) for field in FIELDS},
        }  # fmt: skip

    async def tell(self) -> None:
        """Do things until each kind has succeeded and there were enough."""
        for step in range(STEPS_MAX):
            missing = [kind for kind in self.kinds if not self.done[kind]]
            if step >= STEPS and not missing:
                break
            kind = self.rng.choice(missing if missing and self.rng.random() < 0.5 else list(self.kinds))
            self.now += self.rng.choice((0.0, 0.25, 1.0, 20.0))
            self.done[kind] += await self.kinds[kind]()
            if self.rng.random() < 0.01:
                await self.stores.reopen()
        missing = [kind for kind in self.kinds if not self.done[kind]]
        assert not missing, f"after {STEPS_MAX} steps these have not succeeded: {missing}"
        await self.compare_all()

    async def compare_all(self) -> None:
        """Whatever can be asked about everything, and what is known of it here."""
        await self.stores.reopen()
        wanted = RunFilter(limit=100_000)
        outcome = await self.stores.ask("all runs", lambda store: store.query(wanted))
        assert outcome == ("answer", [self.runs[run_id] for run_id in sorted(self.runs)])
        for run_id, records in self.records.items():
            found = await self.stores.ask(f"history({run_id})", partial(_history, run_id, 0, None), pattern)
            assert found[1][0] == records
            assert fold(records) == self.runs[run_id]

    # -- what is committed

    def decided(self, run: Run, *commands: Command) -> list[Record]:
        """What the last of these commands makes of a run, with what those before it made; nothing where it is refused. The run here goes
        on with it when it is committed."""
        twin, found = run.copy(), list[Record]()
        for command in commands:
            try:
                records = decide(twin, command, self.now, RECORDS_MAX)
            except DurableError:
                return []
            for record in records:
                apply(twin, record)
            found += records
        return found if commands and records else []

    async def commit(self, what: str, *units: Sequence[Record]) -> bool:
        """Commit units that fit."""
        outcome = await self.stores.commit(f"{what}: {units}", units)
        assert outcome == ("answer", None), (what, outcome, units)
        for unit in units:
            for record in unit:
                run = self.runs.setdefault(record.run_id, Run(record.run_id))
                apply(run, record)
                self.records.setdefault(record.run_id, []).append(replace(record))
                self.created += record.seq == 1
                if record.seq == 1 and run.key is not None:
                    self.keys[run.user, run.key] = run.run_id
        return True

    async def refused(self, what: str, error: str, *units: Sequence[Record]) -> bool:
        """Commit units of which one does not fit: nothing is written."""
        outcome = await self.stores.commit(f"{what}: {units}", units)
        assert outcome == ("error", error), (what, outcome, units)
        for unit in units:
            for record in unit:
                if record.run_id not in self.runs:
                    found = await self.stores.ask(f"find({record.run_id})", partial(_find, record.run_id))
                    assert found == ("answer", None), (what, found)
        return True

    def creation(self, parent: Run | None = None, *, key: str | None = None, **options: Any) -> list[Record]:
        """The record of a new run."""
        rng = self.rng
        user = rng.choice(USERS)
        create = Create(
            rng.choice(("task", "other", "täsk\ud800")), payload(rng), version=rng.choice((None, "1")), key=key, user=user,
            priority=rng.choice((0, 0, 5)), retry=rng.choice((None, Retry(3, delay=2.0))), timeout=rng.choice((None, 5.0)),
            delay=rng.choice((0.0, 0.0, 30.0)), **options,
        )  # fmt: skip
        family = None if parent is None else family_of(parent.run_id)
        if family is None and key is not None:
            family = family_of_key(user, key)
        if parent is not None:
            create.parent_id, create.depth = parent.run_id, parent.depth + 1
        records = decide(Run(make_run_id(self.now, rng.randbytes(10), family)), create, self.now, RECORDS_MAX)
        if user is not None:
            records[0].head["user"] = user  # an empty name, too, is one for a store
        return records

    def made(self, *commands: Command) -> tuple[Run, list[Record]]:
        """A new run that has come so far."""
        records = self.creation()
        run = fold(records)
        records += self.decided(run, *commands)
        return fold(records), records

    def some_runs(self) -> list[Run]:
        return self.rng.sample(list(self.runs.values()), len(self.runs))

    async def create(self) -> bool:
        return await self.commit("create", self.creation())

    async def create_keyed(self) -> bool:
        records = self.creation(key=f"{text(self.rng)}{self.created}")
        return await self.commit("create with a key", records)

    async def create_several(self) -> bool:
        return await self.commit("create several", *(self.creation() for _ in range(self.rng.randint(2, 6))))

    async def create_children(self) -> bool:
        for run in self.some_runs():
            count = self.rng.randint(1, 3)
            join = "" if run.returned_seq else self.rng.choice(("", "function", "task"))
            lenient = self.rng.random() < 0.5
            returned = self.decided(run, Complete(payload(self.rng), count, join, lenient))  # type: ignore[arg-type]
            if returned:
                keys = [f"child{self.created}.{n}" if self.rng.random() < 0.3 else None for n in range(count)]
                children = [self.creation(run, key=key, attached=True, joined=True) for key in keys]
                return await self.commit(
                    "create children", [*returned, *(record for each in children for record in each)]
                )
        return False

    async def end(self, what: str, command: Command, wanted: Status) -> bool:
        """End a child, and tell its parent, as one fact."""
        for child in self.some_runs():
            parent = self.runs.get(child.parent_id or "")
            if parent is None or not child.joined:
                continue
            ended = self.decided(child, command) or self.decided(child, Begin(), command)
            after = child.copy()
            for record in ended:
                apply(after, record)
            tells = ChildEnded(child.run_id, child.task, after.status, after.result, after.failure, after.reason)
            told = self.decided(parent, tells)
            if ended and after.status is wanted and told:
                return await self.commit(what, [*ended, *told])
        return False

    async def end_child(self) -> bool:
        return await self.end("end a child", Complete(payload(self.rng)), Status.COMPLETED)

    async def fail_child(self) -> bool:
        return await self.end("fail a child", Fail(FAILURE, retryable=False), Status.FAILED)

    async def coordinate(self) -> bool:
        for run in self.some_runs():
            if run.join == "function" and (records := self.decided(run, Coordinate())):
                return await self.commit("coordinate", records)
        _, records = self.made(Begin(), Complete(payload(self.rng), 0, "function"))
        await self.commit("return with a coordinator", records)
        return False

    async def coordinate_by_task(self) -> bool:
        for run in self.some_runs():
            created = self.creation(run, attached=True, joined=True)
            if run.join == "task" and (records := self.decided(run, Coordinate(created[0].run_id))):
                return await self.commit("coordinate by a task", [*records, *created])
        _, records = self.made(Begin(), Complete(payload(self.rng), 0, "task"))
        await self.commit("return with a coordinator", records)
        return False

    async def command(self, name: str) -> bool:
        make, fits = COMMANDS[name]
        for run in self.some_runs():
            records = self.decided(run, make(self.rng, run, self.now))
            if records and fits(run, records):
                return await self.commit(name, records)
        for path in PATHS:
            run, before = self.made(*path)
            records = self.decided(run, make(self.rng, run, self.now))
            if records and fits(run, records):
                return await self.commit(name, before, records)
        return False

    async def work_on_several(self) -> bool:
        """Units of several runs in one call, and several of one run."""
        units: list[list[Record]] = []
        for run in self.some_runs()[: self.rng.randint(2, 5)]:
            twin = run.copy()
            for _ in range(self.rng.randint(1, 3)):
                make, _ = COMMANDS[self.rng.choice(list(COMMANDS))]
                if records := self.decided(twin, make(self.rng, twin, self.now)):
                    units.append(records)
                    for record in records:
                        apply(twin, record)
        return await self.commit("work on several", *units) if len(units) > 1 else False

    async def commit_nothing(self) -> bool:
        return await self.commit("commit nothing")

    # -- what is refused

    async def take_again(self) -> bool:
        """By a run that joins no family: a child's key is its shard's."""
        roots = [name for name, run_id in self.keys.items() if self.runs[run_id].parent_id is None]
        if not roots:
            return False
        user, key = self.rng.choice(roots)
        records = self.creation(key=key)
        run_id = make_run_id(self.now, self.rng.randbytes(10), family_of_key(user, key))
        records[0].run_id = run_id
        records[0].head.pop("user", None)
        if user is not None:
            records[0].head["user"] = user
        units = [self.creation() for _ in range(self.rng.randrange(3))]
        return await self.refused("take a key again", "ConflictError", *units, records)

    async def leave_gap(self) -> bool:
        if not self.runs:
            return False
        run = self.rng.choice(list(self.runs.values()))
        records = [replace(record, seq=run.seq + 2) for record in self.records[run.run_id][-1:]]
        return await self.refused("leave a gap", "ValueError", self.creation(), records, self.creation())

    async def go_on_with_nothing(self) -> bool:
        records = self.creation()
        return await self.refused("go on with nothing", "ValueError", [replace(records[0], seq=2)], self.creation())

    async def say_twice(self) -> bool:
        """But not the creation: a store of one process need not ask for each that it is the first with this id."""
        longer = [run_id for run_id, run in self.runs.items() if run.seq > 1]
        if not longer:
            return False
        run_id = self.rng.choice(longer)
        first = self.rng.randrange(1, len(self.records[run_id]))
        again = [replace(record) for record in self.records[run_id][first:]]
        outcome = await self.stores.commit(f"say it twice: {again}", [again])
        return outcome == ("answer", None)

    async def ask_closed(self) -> bool:
        """A closed store answers nothing."""
        for store in self.stores.stores.values():
            await store.close()
        questions: list[Callable[[Store], Awaitable[Any]]] = [
            partial(_find, "x"), partial(_history, "x", 0, None), lambda store: store.query(RunFilter()),
            lambda store: store.find_key(None, "k"), lambda store: store.next_due(0.0), lambda store: store.histories(["x"]),
        ]  # fmt: skip
        for question in questions:
            assert (await self.stores.ask("when closed", question))[0] == "error"
        assert (await self.stores.commit("when closed", [self.creation()]))[0] == "error"
        await self.stores.reopen()
        return True

    # -- what is asked

    async def find(self) -> bool:
        if not self.runs:
            return False
        run_id = self.rng.choice(list(self.runs))
        return await self.stores.ask(f"find({run_id})", partial(_find, run_id)) == ("answer", self.runs[run_id])

    async def find_nothing(self) -> bool:
        unknown = self.rng.choice((make_run_id(self.now, self.rng.randbytes(10)), "", "no id \ud800\x00"))
        return await self.stores.ask(f"find({unknown!r})", partial(_find, unknown)) == ("answer", None)

    async def find_key(self) -> bool:
        if not self.keys:
            return False
        user, key = self.rng.choice(list(self.keys))
        found = await self.stores.ask(f"find_key({user!r}, {key!r})", lambda store: store.find_key(user, key))
        return found == ("answer", self.runs[self.keys[user, key]])

    async def find_no_key(self) -> bool:
        user, key = self.rng.choice(USERS), text(self.rng)
        found = await self.stores.ask(f"find_key({user!r}, {key!r})", lambda store: store.find_key(user, key))
        return found == ("answer", None)

    async def history(self) -> bool:
        run_id = self.rng.choice([*self.runs, "unknown"])
        _, (records, _) = await self.stores.ask(f"history({run_id})", partial(_history, run_id, 0, None), pattern)
        return bool(records)

    async def page(self) -> bool:
        run_id = self.rng.choice([*self.runs, "unknown"])
        after, limit = self.rng.randint(-1, 8), self.rng.choice((None, 0, 1, 2, 5))
        what = f"history({run_id}, {after}, {limit})"
        _, (records, _) = await self.stores.ask(what, partial(_history, run_id, after, limit), pattern)
        return bool(records) and after > 0 and limit is not None

    async def histories(self) -> bool:
        wanted = [*self.rng.sample(list(self.runs), min(len(self.runs), self.rng.randrange(9))), "unknown"]

        def shape(found: dict[str, list[Record]]) -> object:
            return {run_id: pattern(records) for run_id, records in found.items()}

        outcome = await self.stores.ask(f"histories({wanted})", lambda store: store.histories(wanted), shape)
        return len(outcome[1]) > 1

    async def next_due(self) -> bool:
        after = self.rng.choice((-1.0, 0.0, self.now - 30, self.now, self.now + 5))
        outcome = await self.stores.ask(f"next_due({after})", lambda store: store.next_due(after))
        return outcome[1] is not None

    async def count(self) -> bool:
        """Of everything; what a query finds is counted there."""
        outcome = await self.stores.ask("count all", lambda store: store.count(RunFilter(limit=0)))
        return outcome == ("answer", len(self.runs)) and bool(self.runs)

    async def prune(self) -> bool:
        """As few as one of the first that ended, or all; how many go at most is each store's own business."""
        ends = sorted(each.ended_at for each in self.runs.values() if each.ended_at is not None)
        if not ends:
            return False
        before = self.rng.choice((*ends[:8], self.now)) + self.rng.choice((0.0, 0.1))
        going = {run_id for family in prunable(self.runs, before) for run_id in family}
        outcome = await self.stores.ask(f"prune({before})", lambda store: store.prune(before, 100_000))
        assert outcome == ("answer", len(going)), (before, going)
        for run_id in going:
            run = self.runs.pop(run_id)
            del self.records[run_id]
            if run.key is not None:
                del self.keys[run.user, run.key]
            found = await self.stores.ask(f"find({run_id})", partial(_find, run_id))
            assert found == ("answer", None)
        return bool(going)

    async def query(self, by: str) -> bool:
        """By this field, as some run has it, and sometimes by others."""
        if not self.runs:
            return False
        fields = {by, *self.rng.sample(FIELDS, self.rng.choice((0, 0, 1, 2)))}
        run = self.rng.choice(list(self.runs.values()))
        dues = [each.due for each in self.runs.values() if each.due]
        due = self.rng.choice(dues or [self.now])
        ends = [each.ended_at for each in self.runs.values() if each.ended_at]
        values: dict[str, Any] = {
            "status": frozenset({run.status, *self.rng.sample(list(Status), self.rng.randrange(3))}),
            "task": run.task, "user": run.user, "key": run.key, "parent_id": run.parent_id, "dead": True, "open": True,
            "due_after": due - self.rng.choice((0.0, 1.0)), "due_by": due + self.rng.choice((0.0, 1.0)),
            "ended_by": self.rng.choice(ends or [self.now]), "after": run.run_id,
            "limit": self.rng.choice((-1, 0, 1, 3, 10_000)),
        }  # fmt: skip
        chosen = {field: values[field] for field in sorted(fields)}
        wanted = RunFilter(**{"limit": 100_000, **chosen})
        outcome = await self.stores.ask(f"query({wanted})", lambda store: store.query(wanted))
        matching = [each for run_id, each in sorted(self.runs.items()) if wanted.matches(each)]
        assert outcome == ("answer", matching[: max(wanted.limit, 0)]), wanted
        counted = await self.stores.ask(f"count({wanted})", lambda store: store.count(wanted))
        assert counted == ("answer", len(matching)), wanted
        return bool(matching) and chosen[by] is not None and wanted.limit > 0


def _find(run_id: str, store: Store) -> Awaitable[Run | None]:
    return store.find(run_id)


def _history(run_id: str, after: int, limit: int | None, store: Store) -> Awaitable[list[Record]]:
    return store.history(run_id, after, limit)


# -- the stores


async def play(seed: int, url: str, schema: str, folder: Path) -> Counter[str]:
    """Tell one story; how often what was done."""
    rng = random.Random(seed)
    log = LogSettings(segment_bytes=64 * 1024)
    flush = rng.choice((FlushSettings(), FlushSettings(interval_seconds=0.001, batch_records_max=rng.choice((1, 20)))))

    def local() -> Store:
        return LocalStore(folder / f"store{seed}", log=log, flush=flush)

    def postgres(part: int = 0) -> PostgresStore:
        return PostgresStore(url, PostgresSettings(schema=f"{schema}_{part}"))

    def sharded() -> Store:
        return ShardedStore([postgres(part) for part in rng.sample(range(1, SHARDS + 1), SHARDS)])

    def again(make: Callable[[], Store]) -> Callable[[Store], Awaitable[Store]]:
        async def reopened(store: Store) -> Store:
            await store.close()
            made = make()
            await made.open()
            return made

        return reopened

    memory = MemoryStore()
    makers: dict[str, Callable[[], Store]] = {
        "memory": lambda: memory,
        "local": local,
        "postgres": postgres,
        "sharded": sharded,
    }
    opened: dict[str, Store] = {}
    for name, make in makers.items():
        opened[name] = make()
        await opened[name].open()
    stores = Lockstep(opened, {name: again(make) for name, make in makers.items()})
    story = Story(rng, stores)
    try:
        await story.tell()
    finally:
        await stores.close()
    return story.done


@contextmanager
def schemas(url: str, name: str) -> Iterator[str]:
    """Names for schemas, which are dropped in the end."""
    try:
        yield name
    finally:
        with psycopg.connect(url, autocommit=True, options="-c lock_timeout=10s") as connection:
            for part in range(SHARDS + 1):
                connection.execute(f"DROP SCHEMA IF EXISTS {name}_{part} CASCADE".encode())


@pytest.mark.parametrize("seed", [1, 2])
async def test_stores_answer_alike(seed: int, postgres_url: str, postgres_schema: str, tmp_path: Path) -> None:
    """Whatever is done, and whenever it is asked, until each kind of operation has succeeded."""
    with schemas(postgres_url, postgres_schema) as schema:
        done = await play(seed, postgres_url, schema, tmp_path)
    print(f"\n{sum(done.values())} operations of {len(done)} kinds succeeded")


def hunt(first: int, last: int) -> None:
    """Play seeds, tell of those that differ."""
    began, done, bad = time.monotonic(), Counter[str](), list[int]()
    with PostgresServer() as server:
        for seed in range(first, last + 1):
            with tempfile.TemporaryDirectory() as folder, schemas(server.url, f"d{seed}") as schema:
                try:
                    done += asyncio.run(play(seed, server.url, schema, Path(folder)))
                except (DifferenceError, AssertionError) as error:
                    bad.append(seed)
                    print(f"seed {seed}: {type(error).__name__}: {str(error)[:3_000]}", flush=True)
    seconds = time.monotonic() - began
    print(
        f"{last - first + 1} seeds, {sum(done.values())} operations of {len(done)} kinds, {seconds:.0f} s; differ: {bad}"
    )
    if bad:
        sys.exit(1)


if __name__ == "__main__":
    hunt(int(sys.argv[1]), int(sys.argv[2]))
