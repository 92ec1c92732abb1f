"""Starts that all processes count together: the same tests for one PostgreSQL, for several, and for the store of the simulations."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from durable.core.records import Kind
from durable.core.status import Status
from durable.errors import RepositoryUnavailableError
from durable.store.postgres.shards.store import ShardedStore
from durable.store.shared import SharedStore, StartAsked, StartBounds, StartRefused
from durable.testing.samples import NOW, created, finished, number_of, record, run_id

from .counting import HOUR, OnPostgres, Place, asked, reasons
from .parcels import TASK, begun, parcel

RATE = StartBounds(starts=3, starts_per_user=None, window=HOUR, queued=None)
PER_USER = RATE._replace(starts=None, starts_per_user=2)
QUEUE = RATE._replace(starts=None, queued=3)


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
