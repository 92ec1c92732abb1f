"""Places and starts of several applications on one store: what changes while they run, and a store that does not answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from durable import BackpressureError, Config, Durable, Limits, SlotTimeoutError, task
from durable.config import EngineSettings
from durable.testing.database import SharedDatabase
from durable.testing.shared import SharedMemoryStore

QUICK = Config(engine=EngineSettings(shutdown_grace_seconds=0.1, cancel_grace_seconds=0.1))


class Bodies:
    """The bodies that are at work, which go on when they are told."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.gate = asyncio.Event()
        self._changed = asyncio.Condition()

    async def work(self, user: str) -> None:
        for name in (user, "*"):
            self.now[name] += 1
            self.most[name] = max(self.most[name], self.now[name])
        async with self._changed:
            self._changed.notify_all()
        try:
            await self.gate.wait()
        finally:
            for name in (user, "*"):
                self.now[name] -= 1

    async def are(self, condition: Callable[[], bool]) -> None:
        """Wait until it is so."""
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(condition)


bodies: Bodies


@pytest.fixture(autouse=True)
def nobody_is_at_work() -> None:
    global bodies  # noqa: PLW0603 - what bodies reach
    bodies = Bodies()


@task(name="places_working")
async def working(user: str) -> None:
    await bodies.work(user)


@asynccontextmanager
async def applications(count: int, **limits: Any) -> AsyncIterator[list[Durable]]:
    database = SharedDatabase()
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                Durable(SharedMemoryStore(database, poll_seconds=0.1), config=QUICK, limits=Limits(**limits))
            )
            for _ in range(count)
        ]


async def test_other_limits_hold_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """More places let runs begin that wait; fewer let those finish that run."""
    async with applications(2, max_running=2, max_running_per_user=1) as apps:
        users = ("ann", "bob", "cid", "dan")
        handles = [await apps[turn % 2].start(working.options(user=user), user) for turn, user in enumerate(users * 3)]
        await bodies.are(lambda: bodies.now["*"] == 2)
        for app in apps:
            app.limits = replace(app.limits, max_running=5, max_running_per_user=2)
        await bodies.are(lambda: bodies.now["*"] == 5)
        for app in apps:
            app.limits = replace(app.limits, max_running=1, max_running_per_user=None)
        most = Counter(bodies.most)
        bodies.gate.set()
        await asyncio.gather(*(handle.wait(timeout=20) for handle in handles))
        assert most["*"] == 5 and max(most[user] for user in users) <= 2
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_start_that_may_not_wait_waits_for_a_place_that_another_process_has() -> None:
    """`max_queued=0`: it gets it when it is given back, and is refused when that takes too long."""
    async with applications(2, max_running=1, max_queued=0, slot_timeout=0.5) as (one, two):
        first = await one.start(working, "ann")
        await bodies.are(lambda: bodies.now["*"] == 1)
        with pytest.raises(SlotTimeoutError):
            await two.start(working, "bob")
        bodies.gate.set()
        await first.wait(timeout=20)
        two.limits = replace(two.limits, slot_timeout=20.0)
        await (await two.start(working, "bob")).wait(timeout=20)
        assert bodies.most["*"] == 1
        assert len([run async for run in one.runs()]) == 2


async def test_who_is_refused_is_refused_without_asking_until_it_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand starts that come too early are one question; those of one turn are one, too."""
    questions: list[int] = []
    let_in = SharedMemoryStore.let_in

    async def counted(store: SharedMemoryStore, asked: Any, bounds: Any) -> Any:
        questions.append(len(asked))
        return await let_in(store, asked, bounds)

    monkeypatch.setattr(SharedMemoryStore, "let_in", counted)
    async with applications(1, max_starts_per_window=3, window=60.0) as (app,):
        bodies.gate.set()
        outcomes = await asyncio.gather(*(app.start(working, "ann") for _ in range(10)), return_exceptions=True)
        refused = [each for each in outcomes if isinstance(each, BackpressureError)]
        assert len(refused) == 7 and all(59 < each.retry_after <= 60 for each in refused)
        assert questions == [10]
        for _ in range(100):
            with pytest.raises(BackpressureError):
                await app.start(working, "ann")
        assert questions == [10]
        app.limits = replace(app.limits, max_starts_per_window=4)
        await app.start(working, "ann")
        assert questions == [10, 1]
        app.limits = Limits()
        await app.start(working, "ann")
        assert questions == [10, 1], "a start without limits asks nobody"
