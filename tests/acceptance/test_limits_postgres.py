"""Limits over several real processes on one PostgreSQL: what runs at once is counted outside the engine, in one file that all append to."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from durable.core.query import RunFilter
from tests.acceptance.executors import Executor, Place, closed, store_of, until

LEASE = 1.5


@pytest.fixture
async def place(postgres_url: str, postgres_schema: str, tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(postgres_url, postgres_schema, tmp_path)
    try:
        yield made
    finally:
        await made.close()


def inside(place: Place, dead: dict[int, float] | None = None) -> Iterator[Counter[str]]:
    """After each line: how many bodies are at work, of each user, and `*` in all. Those of a process that was killed end with it."""
    bodies: set[tuple[str, int]] = set()
    for word, at, pid in place.effects():
        kind, _, rest = word.partition(":")
        for each in list(bodies):
            if dead and at > dead.get(each[1], at):
                bodies.discard(each)
        (bodies.add if kind == "in" else bodies.discard)((rest, pid))
        now = Counter(body.split(":")[0] for body, _ in bodies)
        now["*"] = len(bodies)
        yield now


def most(place: Place, dead: dict[int, float] | None = None) -> Counter[str]:
    """The most there have been at once."""
    found: Counter[str] = Counter()
    for now in inside(place, dead):
        found |= now
    return found


def words(count: int, *users: str) -> list[str]:
    return [f"{users[number % len(users)]}:{number}" for number in range(count)]


async def storm(executor: Executor, some: list[str], *args: Any) -> list[Any]:
    found: list[Any] = await executor.ask("storm", task="executors_occupying", words=some, args=list(args))
    return found


# -- places


async def test_no_more_run_at_once_than_may_in_all_processes_together(place: Place) -> None:
    """Three processes of which each could run all; five bodies at once, two of one user; and as many as may, do."""
    crew = await place.crew(3, max_running=5, max_running_per_user=2, lease=30)
    some = words(90, "ann", "bob", "cid", "")
    await asyncio.gather(*(storm(each, some[turn::3], 0.05) for turn, each in enumerate(crew)))
    async with place.client() as app:
        await closed(place, app)
    found = most(place)
    assert found.pop("*") == 5
    assert max(found[user] for user in ("ann", "bob", "cid")) == 2
    assert Counter(place.words()) == Counter(f"{kind}:{word}" for word in some for kind in ("in", "out"))
    assert len({pid for *_, pid in place.effects()}) > 1, "one process did it all"


async def test_one_at_a_time_is_one_at_a_time(place: Place) -> None:
    """The bound that is used as a lock."""
    crew = await place.crew(3, max_running=1, lease=30)
    await asyncio.gather(*(storm(each, words(8, f"u{turn}"), 0.01) for turn, each in enumerate(crew)))
    async with place.client() as app:
        await closed(place, app)
    assert most(place)["*"] == 1


async def test_of_a_user_who_has_much_to_do_others_are_not_kept_waiting(place: Place) -> None:
    """A thousand runs of ann stand first, of which one may run: bob's begin at once all the same."""
    async with place.client() as app:
        crew = await place.crew(1, execute=False)
        await storm(crew[0], words(1000, "ann"), 0.0, str(place.gate))
        late = await storm(crew[0], words(5, "bob"), 0.0)
        await place.crew(2, max_running=8, max_running_per_user=1, lease=30)
        await asyncio.gather(*[(await app.get(run_id)).wait(timeout=30) for run_id in late])
        assert most(place)["ann"] == most(place)["bob"] == 1
        held = await place.sql("SELECT count(*) FROM {s}.runs WHERE owner IS NOT NULL AND status = 'ready'")
        assert held[0][0] <= 8, "runs are taken hold of that may not begin"


async def test_the_places_of_a_process_that_is_killed_are_free_after_its_lease(place: Place) -> None:
    """Before, nobody gets them; then those that it ran go on elsewhere."""
    one = await place.executor(max_running=3, lease=LEASE)
    await storm(one, words(3, "ann"), 0.0, str(place.gate))
    await place.acted("in:ann:0", "in:ann:1", "in:ann:2")
    two = await place.executor(max_running=3, lease=LEASE)
    await storm(two, [f"bob:{number}" for number in range(3)], 0.0)
    assert await place.sql("SELECT sum(held) FROM {s}.places") == [(3,)]
    await one.kill()
    died = time.time()
    place.open_gate()
    async with place.client() as app:
        await closed(place, app)
    firsts = [at for word, at, pid in place.effects() if pid == two.pid]
    assert min(firsts) > died, "it took a place that another one had"
    assert most(place, {one.pid: died})["*"] <= 3
    assert {word for word in place.words() if word.startswith("out:ann")} == {
        f"out:ann:{number}" for number in range(3)
    }


async def test_who_waits_for_a_run_that_only_its_key_names_is_woken(place: Place) -> None:
    """Another run needs the place meanwhile. That one does not know who waits for it, so who waits is not put to sleep."""
    one = await place.executor(max_running=2, lease=30)
    await one.ask("start", task="executors_leaf", args=["k", 4.0], key="k")
    await place.acted("k")
    two = await place.executor(max_running=2, lease=30)
    [waits] = await two.ask("start", task="executors_awaits_named", args=["k", 4.0])
    async with place.client() as app:

        async def waited_for() -> bool:
            return bool(await place.sql("SELECT 1 FROM {s}.records WHERE run_id = %s AND seq = 3", waits))

        await until(waited_for, "that it waits")
        await storm(two, words(1, "ann"), 0.0)
        assert await (await app.get(waits)).wait(timeout=30) == "k"
        await closed(place, app)


async def test_places_that_nobody_uses_are_given_back(place: Place) -> None:
    """A busy process holds some in advance; an idle one none."""
    crew = await place.crew(2, max_running=1000, lease=30)
    await storm(crew[0], words(100, "ann"), 0.2)
    rows = await place.sql("SELECT sum(held) FROM {s}.places")
    assert rows[0][0] >= 100
    async with place.client() as app:
        await closed(place, app)

    async def none_is_held() -> bool:
        return await place.sql("SELECT COALESCE(sum(held), 0) FROM {s}.places") == [(0,)]

    await until(none_is_held, "that all places are given back", 10)
    assert await storm(crew[1], words(1, "bob"), 0.0)
    await place.acted("out:bob:0")


# -- starts


async def test_no_window_has_more_starts_than_may_be(place: Place) -> None:
    """Two hundred starts at once from three processes, and those that are refused come again when they were told to."""
    limit, window = 40, 3.0
    crew = await place.crew(3, execute=False, max_starts_per_window=limit, window=window)
    left = {each.pid: words(67, "ann") for each in crew}
    started = 0
    told: list[float] = []

    async def insist(executor: Executor) -> None:
        nonlocal started
        for _ in range(3):
            answers = await storm(executor, left[executor.pid])
            refused = [each for each in answers if not isinstance(each, str)]
            started += len(answers) - len(refused)
            if not refused:
                return
            assert all(bound == limit for bound, _ in refused)
            told.extend(wait for _, wait in refused)
            left[executor.pid] = left[executor.pid][: len(refused)]
            await asyncio.sleep(min(wait for _, wait in refused))

    await asyncio.gather(*map(insist, crew))
    assert all(0 < wait <= window for wait in told)
    async with place.client() as app:
        runs = await store_of(app).query(RunFilter(limit=1000))
    assert len(runs) == started
    assert started >= 3 * limit - 20, "who was told to come again was refused"
    times = sorted(run.created_at for run in runs)
    # A run is made a moment after it was let in, in one process sooner than in another.
    moment = 0.3
    for first, over in zip(times, times[limit:], strict=False):
        assert over - first > window - moment


async def test_when_to_come_again_is_true_within_a_tenth(place: Place) -> None:
    """Who comes before that is refused still; who comes after is let in."""
    limit, window = 5, 4.0
    one, two = await place.crew(2, execute=False, max_starts_per_window=limit, window=window)
    await storm(one, words(2, "ann"))
    await asyncio.sleep(1.0)
    await storm(two, words(3, "ann"))
    asked_at = time.monotonic()
    [[_, wait]] = await storm(two, words(1, "ann"))
    assert 0 < wait < window - 1.0
    fresh = await place.executor(execute=False, max_starts_per_window=limit, window=window)
    await asyncio.sleep(asked_at + 0.9 * wait - time.monotonic())
    [[_, rest]] = await storm(fresh, words(1, "ann"))
    assert rest < 0.2 * wait
    await asyncio.sleep(asked_at + 1.1 * wait - time.monotonic())
    assert [isinstance(each, str) for each in await storm(two, words(2, "ann"))] == [True, True]
    assert not isinstance((await storm(one, words(1, "ann")))[0], str)


async def test_no_more_wait_than_may_whoever_started_them(place: Place) -> None:
    """With all slots taken, of sixty starts by three processes seven may wait."""
    one = await place.executor(max_running=2, lease=30)
    await storm(one, words(2, "ann"), 0.0, str(place.gate))
    await place.acted("in:ann:0", "in:ann:1")
    clients = [
        *await place.crew(2, execute=False, max_running=2, max_queued=7, lease=30),
        await place.executor(max_running=2, max_queued=7, lease=30),
    ]
    answers = await asyncio.gather(*(storm(each, words(20, f"u{turn}")) for turn, each in enumerate(clients)))
    let_in = [each for some in answers for each in some if isinstance(each, str)]
    refused = [each for some in answers for each in some if not isinstance(each, str)]
    assert len(let_in) == 7
    assert all(bound == 7 and wait > 0 for bound, wait in refused)
    assert await place.sql("SELECT count(*) FROM {s}.runs WHERE status = 'ready'") == [(7,)]
    place.open_gate()
    async with place.client() as app:
        await closed(place, app)
    assert most(place)["*"] <= 2
    assert all(isinstance(each, str) for each in await storm(clients[0], words(5, "ann")))
