"""Limits that all processes count together: the same tests for one PostgreSQL, for several, and for the store of the simulations."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import psycopg
import pytest

from durable.clock import SYSTEM_CLOCK
from durable.config import PostgresSettings
from durable.core.records import Kind
from durable.core.status import Status
from durable.errors import RepositoryUnavailableError
from durable.store import PostgresStore
from durable.store.postgres.shards.store import ShardedStore
from durable.store.shared import Notice, SharedStore, StartAsked, StartBounds, StartRefused
from durable.testing.samples import NOW, created, finished, number_of, record, run_id
from durable.testing.shared import SharedDatabase, SharedMemoryStore

from .conftest import Opener
from .parcels import TASK, begun, parcel

#: Long enough for no test to take a part of it that matters.
HOUR = 3600.0
RATE = StartBounds(starts=3, starts_per_user=None, window=HOUR, queued=None)
PER_USER = RATE._replace(starts=None, starts_per_user=2)
QUEUE = RATE._replace(starts=None, queued=3)


class Hands:
    """A clock that is put forward; it begins where the wall clock is."""

    def __init__(self) -> None:
        self.passed = 0.0

    def now(self) -> float:
        return SYSTEM_CLOCK.now() + self.passed

    def monotonic(self) -> float:
        return SYSTEM_CLOCK.monotonic()


class Place:
    """Where several stores are open at once, each as a process would have it."""

    def __init__(self) -> None:
        self.stores: list[SharedStore] = []

    async def store(self, **settings: Any) -> SharedStore:
        """One more, which is no executor yet."""
        store = self.make(**settings)
        self.stores.append(store)
        await store.open()
        return store

    async def executor(self, **settings: Any) -> SharedStore:
        store = await self.store(**settings)
        await store.enroll(TASK)
        return store

    async def close(self) -> None:
        for store in self.stores:
            await store.close()

    def make(self, **settings: Any) -> SharedStore:
        raise NotImplementedError

    async def pass_by(self, seconds: float) -> None:
        """Let time go by, for starts."""
        raise NotImplementedError

    async def expire(self, executor: SharedStore) -> None:
        """Let a lease have passed."""
        raise NotImplementedError


class OnPostgres(Place):
    def __init__(self, url: str, schemas: Sequence[str]) -> None:
        super().__init__()
        self.url, self.schemas = url, schemas

    def make(self, **settings: Any) -> SharedStore:
        shards = [PostgresStore(self.url, PostgresSettings(schema=each, **settings)) for each in self.schemas]
        return shards[0] if len(shards) == 1 else ShardedStore(shards)

    async def sql(self, query: str, *values: object) -> list[Any]:
        """Say the same in all schemas; the rows of all."""
        rows: list[Any] = []
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            for schema in self.schemas:
                cursor = await connection.execute(query.replace("{s}", schema).encode(), values)
                rows += await cursor.fetchall() if cursor.description else []
        return rows

    async def pass_by(self, seconds: float) -> None:
        await self.sql("UPDATE {s}.starts SET at = at - %s, until = until - %s", seconds, seconds)
        await self.sql("UPDATE {s}.announced SET at = at - %s", seconds)

    async def expire(self, executor: SharedStore) -> None:
        ids = executor.executor_id.split(",")
        past = "UPDATE {s}.executors SET expires_at = clock_timestamp() - interval '1 s' WHERE executor_id = ANY(%s)"
        await self.sql(past, ids)


class InMemory(Place):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Hands()
        self.database = SharedDatabase(clock=self.clock)

    def make(self, **settings: Any) -> SharedStore:
        return SharedMemoryStore(self.database)

    async def pass_by(self, seconds: float) -> None:
        self.clock.passed += seconds

    async def expire(self, executor: SharedStore) -> None:
        self.database.executors[executor.executor_id] = (0.0, TASK)


@pytest.fixture(params=["postgres", "shards", "memory"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    made: Place
    if request.param == "memory":
        made = InMemory()
    else:
        schemas = request.getfixturevalue("postgres_schemas")
        made = OnPostgres(request.getfixturevalue("postgres_url"), schemas[: 1 if request.param == "postgres" else 3])
    yield made
    await made.close()


def asked(*numbers: int, user: str | None = None, waits: bool = False) -> list[StartAsked]:
    return [StartAsked(run_id(number), user, waits) for number in numbers]


def reasons(decided: list[StartRefused | None]) -> list[str | None]:
    return [None if each is None else each.reason for each in decided]


# -- starts


async def test_all_processes_count_in_one_window(place: Place) -> None:
    """Whoever lets in, everybody counts; the next may come when the oldest that is in the way leaves the window."""
    one, two = await place.store(), await place.store()
    assert await one.let_in(asked(1), RATE) == [None]
    await place.pass_by(1000)
    assert await two.let_in(asked(2), RATE) == [None]
    await place.pass_by(500)
    decided = await one.let_in(asked(3, 4, 5), RATE)
    assert reasons(decided) == [None, "rate", "rate"]
    for refused in decided[1:]:
        assert refused is not None and refused.retry_after == pytest.approx(HOUR - 1500, abs=30)
    await place.pass_by(HOUR - 1500 - 60)
    assert reasons(await two.let_in(asked(6), RATE)) == ["rate"]
    await place.pass_by(60)
    assert reasons(await two.let_in(asked(6, 7), RATE)) == [None, "rate"]
    [refused] = await one.let_in(asked(8), RATE)
    assert refused is not None and refused.retry_after == pytest.approx(1000, abs=30)


async def test_users_are_counted_each_for_themselves(place: Place) -> None:
    """Nobody's start counts for no user. A user's name is not taken for another's, whatever is in it."""
    store = await place.store()
    for user in ("ann", "bob", "", "=ann", "a\\u0000", "a\x00\ud800"):
        assert reasons(await store.let_in(asked(1, 2, 3, user=user), PER_USER)) == [None, None, "user_rate"], user
    assert reasons(await store.let_in(asked(*range(5)), PER_USER)) == [None] * 5
    both = PER_USER._replace(starts=1)
    assert reasons(await store.let_in(asked(1, user="ann"), both)) == ["user_rate"]
    assert reasons(await store.let_in(asked(1, 2, user="cid"), both)) == [None, "rate"]
    await place.pass_by(1000)
    [refused] = await store.let_in(asked(3, user="ann"), both)  # its own leave sooner than the one of all
    assert refused is not None and refused.reason == "rate"
    assert refused.retry_after == pytest.approx(HOUR - 1000, abs=30)


async def test_who_is_refused_costs_nothing(place: Place) -> None:
    """A refusal for one reason uses up nothing of what other limits allow."""
    store = await place.store()
    both = PER_USER._replace(starts=4)
    decided = await store.let_in(asked(1, 2, 3, user="ann") + asked(4, 5, 6, user="bob") + asked(7, user="cid"), both)
    assert reasons(decided) == [None, None, "user_rate", None, None, "rate", "rate"]


async def test_a_changed_limit_holds_from_the_next_start_on(place: Place) -> None:
    store = await place.store()
    assert reasons(await store.let_in(asked(1, 2, 3, 4), RATE)) == [None, None, None, "rate"]
    more, less = RATE._replace(starts=5), RATE._replace(starts=1)
    assert reasons(await store.let_in(asked(4, 5, 6), more)) == [None, None, "rate"]
    await place.pass_by(HOUR / 2)
    [refused] = await store.let_in(asked(7), less)
    assert refused is not None and refused.retry_after == pytest.approx(HOUR / 2, abs=30)
    await place.pass_by(HOUR / 2)
    assert reasons(await store.let_in(asked(7, 8), less)) == [None, "rate"]


async def test_no_more_than_the_limit_however_many_ask_at_once(place: Place) -> None:
    """Eight processes ask for 25 each, one by one and at once."""
    stores = [await place.store() for _ in range(8)]
    numbers = itertools.count(1)
    bounds = RATE._replace(starts=60, starts_per_user=20)

    async def ask(store: SharedStore, user: str) -> list[StartRefused | None]:
        return await store.let_in(asked(next(numbers), user=user), bounds)

    asks = [ask(store, f"u{turn % 4}") for store in stores for turn in range(25)]
    decided = list(itertools.chain.from_iterable(await asyncio.gather(*asks)))
    assert reasons(decided).count(None) == 60
    assert {each.reason for each in decided if each is not None} <= {"rate", "user_rate"}


async def test_random_starts_against_a_list(place: Place) -> None:
    """What is let in, why not and until when, is what a list of all starts says."""
    stores = [await place.store() for _ in range(2)]
    draw = random.Random(5)
    bounds = StartBounds(starts=7, starts_per_user=3, window=HOUR, queued=None)
    starts: list[tuple[float, str | None]] = []
    now, number = 0.0, 0

    def in_the_way(of: list[float], most: int) -> float:
        inside = sorted(at for at in of if at > now - HOUR)
        return inside[-most] + HOUR - now if len(inside) >= most else 0.0

    for _ in range(60):
        await place.pass_by(step := draw.choice((0, 0, 300, 900, 1700)))
        now += step
        users = [draw.choice((None, "a", "b", "c")) for _ in range(draw.randint(1, 5))]
        number += len(users)
        batch = [StartAsked(run_id(number + place), user, False) for place, user in enumerate(users)]
        decided = await draw.choice(stores).let_in(batch, bounds)
        for user, found in zip(users, decided, strict=True):
            own = in_the_way([at for at, whose in starts if whose == user], 3) if user is not None else 0.0
            total = in_the_way([at for at, _ in starts], 7)
            if total or own:
                assert found is not None and found.reason == ("rate" if total else "user_rate")
                assert found.retry_after == pytest.approx(max(total, own), abs=60)
            else:
                assert found is None
                starts.append((now, user))
    assert len(starts) > 30


async def test_what_left_the_window_is_gone(postgres_url: str, postgres_schema: str) -> None:
    """The table holds no more than one window's starts."""
    place = OnPostgres(postgres_url, [postgres_schema])
    try:
        store = await place.store()
        for number in range(5):
            bounds = StartBounds(starts=1000, starts_per_user=1000, window=HOUR, queued=1000)
            await store.let_in(asked(*range(100 * number, 100 * number + 100), user="ann", waits=True), bounds)
            assert await place.sql("SELECT count(*) FROM {s}.starts") == [(200,)]
            assert await place.sql("SELECT count(*) FROM {s}.announced") == [(100,)]
            await place.pass_by(HOUR + 60)
    finally:
        await place.close()


async def test_a_clock_that_was_set_back_keeps_nobody_out_for_long(postgres_url: str, postgres_schema: str) -> None:
    place = OnPostgres(postgres_url, [postgres_schema])
    try:
        store = await place.store()
        await store.let_in(asked(1, 2, 3), RATE)
        await place.pass_by(-1.5 * HOUR)
        assert reasons(await store.let_in(asked(4), RATE)) == [None]
    finally:
        await place.close()


# -- the queue


async def test_the_queue_is_what_waits_and_what_is_announced(place: Place) -> None:
    """Runs count that are there and due, have not begun and were started by no run; and starts that will bring such."""
    one, two = await place.store(), await place.executor()
    await one.write([
        parcel(created(1)), parcel(created(2, not_before=NOW + 10**9)), parcel(created(3, parent=run_id(1))),
        parcel(*finished(4)), parcel(created(5, not_before=NOW - 10)),
    ])  # fmt: skip
    await two.write([parcel(*begun(6))])
    decided = await one.let_in(asked(7, waits=True) + asked(8) + asked(9, 10, waits=True), QUEUE)
    assert reasons(decided) == [None, None, "queue", "queue"]
    assert all(each is None or each.retry_after > 0 for each in decided)
    await one.write([parcel(created(7))])  # it is there now, and still counts once
    assert reasons(await two.let_in(asked(9, waits=True), QUEUE)) == ["queue"]
    [held] = (await two.claim(TASK, 1, NOW)).held
    assert reasons(await one.let_in(asked(9, waits=True), QUEUE)) == ["queue"], "who holds it may have no place for it"
    number = number_of(held.run.run_id)
    begins = parcel(record(number, 2, Kind.STARTED), epochs={number: held.epoch})
    assert await two.write([begins]) == [None]
    assert reasons(await one.let_in(asked(9, 10, waits=True), QUEUE)) == [None, "queue"]


async def test_an_announced_run_that_does_not_come_counts_for_ten_seconds(place: Place) -> None:
    store = await place.store()
    assert reasons(await store.let_in(asked(1, 2, 3, 4, waits=True), QUEUE)) == [None, None, None, "queue"]
    await place.pass_by(5)
    assert reasons(await store.let_in(asked(4, waits=True), QUEUE)) == ["queue"]
    await place.pass_by(6)
    assert reasons(await store.let_in(asked(4, waits=True), QUEUE)) == [None]


async def test_the_queue_is_never_longer_than_it_may_be(place: Place) -> None:
    """Four processes start and store what is let in, one begins them; never more than 5 wait."""
    starters = [await place.store() for _ in range(4)]
    executor = await place.executor()
    bounds = RATE._replace(starts=None, queued=5)
    numbers, let_in = itertools.count(1), 0
    started: set[str] = set()
    taken: set[str] = set()

    async def start(store: SharedStore) -> None:
        nonlocal let_in
        for _ in range(20):
            number = next(numbers)
            if await store.let_in(asked(number, waits=True), bounds) == [None]:
                let_in += 1
                assert await store.write([parcel(created(number))]) == [None]
                started.add(run_id(number))
                found = await store.read(list(started))
                assert sum(each.run.status is Status.READY for each in found.values()) <= 5

    async def take() -> None:
        while len(taken) < 30:
            held = (await executor.claim(TASK, 2, NOW)).held
            await asyncio.sleep(0.01)
            numbers = {number_of(each.run.run_id): each.epoch for each in held}
            begins = [parcel(record(number, 2, Kind.STARTED), epochs={number: numbers[number]}) for number in numbers]
            assert await executor.write(begins) == [None] * len(begins)
            taken.update(each.run.run_id for each in held)

    taking = asyncio.create_task(take())
    try:
        while len(taken) < 30:
            await asyncio.gather(*map(start, starters))
    finally:
        taking.cancel()
    assert let_in >= 30


# -- places


async def test_never_more_places_than_there_are(place: Place) -> None:
    one, two, three = [await place.executor() for _ in range(3)]
    assert await one.take_places({"": (4, 10), "=ann": (1, 2)}) == {"": 4, "=ann": 1}
    assert await two.take_places({"": (4, 10), "=ann": (5, 2)}) == {"": 4, "=ann": 1}
    assert await three.take_places({"": (4, 10), "=ann": (1, 2)}) == {"": 2, "=ann": 0}
    assert await one.take_places({"": (1, 10)}) == {"": 0}
    await two.give_places({"": 3})
    assert await three.take_places({"": (2, 10)}) == {"": 2}
    assert await one.take_places({"": (1, 9)}) == {"": 0}, "a smaller bound holds for who takes next"
    assert await one.take_places({"": (5, 10)}) == {"": 1}
    await one.give_places({"": 5, "=ann": 1})
    await one.give_places({"": 1})
    assert await three.take_places({"": (9, 10), "=ann": (9, 2)}) == {"": 5, "=ann": 1}


async def test_places_go_with_the_executor(place: Place) -> None:
    """When it leaves, becomes another, or its lease has passed, swept or not; and who is none has none."""
    one, two = await place.executor(), await place.executor()
    everything = {"": (10, 10)}
    assert await (await place.store()).take_places(everything) == {"": 0}
    assert await one.take_places(everything) == {"": 10}
    await one.leave()
    assert await one.take_places(everything) == {"": 0}
    assert await two.take_places(everything) == {"": 10}
    await two.enroll(TASK)
    await one.enroll(TASK)
    assert await one.take_places(everything) == {"": 10}
    await place.expire(one)
    assert await one.take_places(everything) == {"": 0}
    assert await two.take_places({"": (4, 10)}) == {"": 4}
    await two.sweep()
    assert await two.take_places({"": (6, 10)}) == {"": 6}
    await one.give_places({"": 10})
    assert await two.take_places({"": (1, 10)}) == {"": 0}


async def test_others_hear_that_places_were_given_back(place: Place) -> None:
    one, two = await place.executor(), await place.executor()
    heard: list[Notice] = []
    came = asyncio.Event()

    def hear(notice: Notice) -> None:
        heard.append(notice)
        came.set()

    for store in (one, two):
        store.listen(hear if store is two else lambda notice: None)
    assert await one.take_places({"": (3, 3)}) == {"": 3}
    async with asyncio.timeout(30):
        while not any(each.work and each.runs == frozenset() for each in heard):
            came.clear()
            await one.give_places({"": 1})
            await one.take_places({"": (1, 3)})
            await asyncio.wait_for(came.wait(), 10)


async def test_random_places_against_a_table(place: Place) -> None:
    """Executors come, go, take and give, in turn; each time they get what a table of all says."""
    draw = random.Random(7)
    crew = [await place.executor() for _ in range(3)]
    names = ("", "=a", "=b")
    bound = dict.fromkeys(names, 6)
    held = [dict.fromkeys(names, 0) for _ in crew]
    for _ in range(120):
        who = draw.randrange(3)
        match draw.choice("ttttggggebl"):
            case "t":
                wanted = {name: draw.randint(1, 4) for name in names if draw.random() < 0.7}
                got = await crew[who].take_places({name: (count, bound[name]) for name, count in wanted.items()})
                for name, count in wanted.items():
                    free = bound[name] - sum(each[name] for each in held)
                    assert got[name] == max(min(count, free), 0)
                    held[who][name] += got[name]
            case "g":
                given = {name: draw.randint(1, held[who][name]) for name in names if held[who][name]}
                await crew[who].give_places(given)
                for name, count in given.items():
                    held[who][name] -= count
            case "b":
                bound[draw.choice(names)] = draw.randint(1, 9)
            case kind:
                await (crew[who].enroll(TASK) if kind == "e" else crew[who].leave())
                if kind == "l":
                    await crew[who].enroll(TASK)
                held[who] = dict.fromkeys(names, 0)


async def test_places_are_never_taken_twice_at_once(place: Place) -> None:
    """Six executors take and give as fast as they can; what all have at any time is what there is."""
    crew = [await place.executor() for _ in range(6)]
    out = highest = 0

    async def work(store: SharedStore, seed: int) -> None:
        nonlocal out, highest
        draw = random.Random(seed)
        for _ in range(25):
            got = (await store.take_places({"": (draw.randint(1, 3), 5)}))[""]
            out += got
            highest = max(highest, out)
            assert out <= 5
            await asyncio.sleep(0)
            if got:
                out -= got
                await store.give_places({"": got})

    await asyncio.gather(*(work(store, seed) for seed, store in enumerate(crew)))
    assert highest == 5


async def test_what_was_asked_for_without_an_answer_is_set_right(open_postgres: Opener, store: PostgresStore) -> None:
    """Who no longer waits for the answer holds what it has been told; the next that it says of places sets that right."""
    other = await open_postgres()
    await other.enroll(TASK)
    taking = asyncio.create_task(store.take_places({"": (3, 3)}))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    await store.take_places({"=ann": (1, 1)})
    assert await other.take_places({"": (3, 3)}) == {"": 3}


# -- away


async def test_the_ledger_lies_on_the_first_shard(postgres_url: str, postgres_schemas: list[str]) -> None:
    """Where that is away nobody is let in by limits, and no places are taken; the others do not matter for rates."""
    place = OnPostgres(postgres_url, postgres_schemas)
    try:
        store = await place.executor()
        assert isinstance(store, ShardedStore)
        first, second, _ = store.shards
        await second.close()
        assert reasons(await store.let_in(asked(1, 2), RATE)) == [None, None]
        assert reasons(await store.let_in(asked(3, 4, 5, 6, waits=True), QUEUE)) == [None, None, None, "queue"]
        store._fan.reaches[0].lost("the test says so")
        with pytest.raises(RepositoryUnavailableError):
            await store.let_in(asked(3), RATE)
        with pytest.raises(RepositoryUnavailableError):
            await store.take_places({"": (1, 1)})
        assert first.executor_id
    finally:
        await place.close()
