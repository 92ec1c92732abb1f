"""Places that executors share: the same tests for one PostgreSQL, for several, and for the store of the simulations."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from durable.store import PostgresStore
from durable.store.postgres.shards.store import ShardedStore
from durable.store.shared import Notice, SharedStore, UserBounds
from durable.testing.samples import NOW, created

from .conftest import Opener
from .counting import Place
from .parcels import TASK, parcel


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


async def test_a_claim_brings_no_more_of_a_user_than_there_is_room_for(place: Place) -> None:
    """Those of users who may have none are passed over, however many stand first; those of nobody are not bounded."""
    client, executor = await place.store(), await place.executor()
    runs = [created(number, user="ann") for number in range(200)]
    runs += [created(number, user=user) for number, user in enumerate(("bob", "bob", "bob", "cid", None, None), 200)]
    assert await client.write([parcel(each) for each in runs]) == [None] * len(runs)
    found: Counter[str | None] = Counter()
    while held := (await executor.claim(TASK, 50, NOW, UserBounds(2, {"ann": 0, "bob": 1}))).held:
        some = Counter(each.run.user for each in held)
        most = 3 if isinstance(executor, ShardedStore) else 1  # of each shard
        assert not some["ann"] and some["bob"] <= most and some["cid"] <= 1
        found += some
    assert found == {"bob": 3, "cid": 1, None: 2}
    assert 2 <= len((await executor.claim(TASK, 50, NOW, UserBounds(2, {}))).held) <= 6
    assert len((await executor.claim(TASK, 50, NOW)).held) == 50
