"""The gate counts what it refuses and tells it, and keeps nothing of starts that are given up."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import replace

import pytest

import durable
from durable import (
    BackpressureError,
    Config,
    Context,
    Durable,
    Handle,
    Limits,
    RefusedError,
    ShuttingDownError,
    SlotTimeoutError,
    StorageFullError,
)
from durable.config import EngineSettings
from durable.store import MemoryStore
from tests.engine.gate import turns

QUICK = Config(engine=EngineSettings(shutdown_grace_seconds=0.05, cancel_grace_seconds=0.2))

gates: dict[str, asyncio.Event] = {}


@durable.task(name="gate_held")
async def held(name: str) -> str:
    await gates.setdefault(name, asyncio.Event()).wait()
    return name


@durable.task(name="gate_busy")
async def busy(ctx: Context, pauses: int) -> int:
    for _ in range(pauses):
        await asyncio.sleep(0)
    return pauses


class FullStore(MemoryStore):
    """Takes no new runs while it is full."""

    full = False

    def admit(self) -> None:
        super().admit()
        if self.full:
            raise StorageFullError


async def test_refusals_are_counted_and_told_by_their_reason() -> None:
    gates.clear()
    store = FullStore()
    app = Durable(store, limits=Limits(max_starts_per_window=3), config=QUICK, test_mode=True)
    told: list[tuple[str, str, str | None]] = []
    async with app:
        gate = app.engine.parts.gate
        gate.on_refused = lambda *what: told.append(what)
        mine, theirs = held.options(user="ann"), held.options(user="bob")

        async def refused(error: type[Exception], limits: Limits, task: durable.tasks.task.Task = mine) -> None:
            app.limits = limits
            with pytest.raises(error):
                await app.start(task, "a")

        for _ in range(3):
            await app.start(mine, "a")
        await refused(BackpressureError, app.limits, theirs)
        own = Limits(max_starts_per_user_window=1)
        app.limits = own
        await app.start(mine, "a")
        await refused(BackpressureError, own)
        await app.start(theirs, "a")
        app.limits = Limits(max_running=1, max_queued=1)
        await app.start(mine, "a")
        await refused(BackpressureError, app.limits)
        await refused(SlotTimeoutError, Limits(max_running=1, max_queued=0, slot_timeout=0.01))
        store.full = True
        await refused(StorageFullError, Limits())
        store.full = False
        app.limits = Limits(max_running=1, max_queued=0)
        waiting = asyncio.create_task(app.start(theirs, "a"))
        await turns()
        assert (await app.stats()).queued == 1
    with pytest.raises(ShuttingDownError):
        await waiting
    assert gate.counts.accepted == 6
    assert gate.counts.refused == dict.fromkeys(["rate", "user_rate", "queue", "slot_timeout", "store", "closing"], 1)
    assert told == [
        ("rate", "gate_held", "bob"), ("user_rate", "gate_held", "ann"), ("queue", "gate_held", "ann"),
        ("slot_timeout", "gate_held", "ann"), ("store", "gate_held", "ann"), ("closing", "gate_held", "bob"),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_happens_to_starts_no_slot_and_no_place_in_the_queue_is_lost(seed: int) -> None:
    """Starts are given up at any moment, runs are cancelled, limits change; after that as many get in as on the first day."""
    rng = random.Random(seed)
    async with Durable(MemoryStore(), config=QUICK, test_mode=True) as app:
        runs: list[Handle[int]] = []

        async def start() -> None:
            task = busy.options(user=rng.choice(["ann", "bob", "cid"]), key=rng.choice([None, None, "one", "two"]))
            with suppress(RefusedError, durable.ConflictError):
                runs.append(await app.start(task, rng.choice([0, 1, 5, 20])))

        starts: list[asyncio.Task[None]] = []
        for _ in range(120):
            match rng.randrange(10):
                case 0:
                    app.limits = Limits(
                        max_running=rng.randint(1, 4), max_running_per_user=rng.choice([None, 1, 2]),
                        max_queued=rng.choice([None, 0, 0, 1, 3]), slot_timeout=rng.choice([0.001, 5]),
                        max_starts_per_window=rng.choice([None, 5]), window=0.01,
                    )  # fmt: skip
                case 1 | 2 if starts:
                    rng.choice(starts).cancel()
                case 3 if runs:
                    with suppress(durable.TransitionError):
                        await rng.choice(runs).cancel()
                case 4 | 5:
                    await turns(rng.randrange(12))
                case _:
                    starts.append(asyncio.create_task(start()))
        app.limits = replace(app.limits, max_running=2, max_running_per_user=None)
        await asyncio.wait_for(asyncio.gather(*starts, return_exceptions=True), 20)
        for info in [info async for info in app.runs()]:
            with suppress(durable.RunError):
                await (await app.get(info.run_id)).wait(timeout=10)
        await turns()
        stats = await app.stats()
        assert (stats.running, stats.queued, app.engine.parts.scheduler.starts_waiting) == (0, 0, 0)
        gates.clear()
        app.limits = Limits(max_running=3, max_running_per_user=3, max_queued=2)
        got = await asyncio.gather(
            *(app.start(held.options(user="ann"), "last") for _ in range(9)), return_exceptions=True
        )
        assert [type(each) for each in got] == [Handle] * 5 + [BackpressureError] * 4
        gates.setdefault("last", asyncio.Event()).set()
        await asyncio.gather(*(each for each in got if isinstance(each, Handle)))
