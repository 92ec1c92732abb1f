"""Quiet: when a run has done all that it can do for now."""

from __future__ import annotations

import asyncio

from durable.engine.turns import QUIET_TURNS, Turns, Watch


async def settled(depth: int) -> None:
    """Something that takes so many turns of the loop."""
    for _ in range(depth):
        await asyncio.sleep(0)


async def test_quiet_comes_when_nothing_is_left_to_run() -> None:
    """Quiet is not called in the middle of a chain of turns, and comes as soon as it has ended."""
    order: list[str] = []
    done = asyncio.Event()
    turns = Turns(asyncio.get_running_loop())
    watch = Watch(lambda: (order.append("quiet"), done.set())[1])

    async def busy() -> None:
        await settled(QUIET_TURNS // 2)
        order.append("busy ended")

    task = asyncio.create_task(busy())
    turns.touch(watch)
    turns.arm(watch)
    await done.wait()
    await task
    assert order == ["busy ended", "quiet"]


async def test_a_loop_that_is_never_idle_does_not_hold_quiet_up_for_ever() -> None:
    """After QUIET_TURNS turns without an act of the run it is quiet, whatever others do."""
    counted = 0
    done = asyncio.Event()
    turns = Turns(asyncio.get_running_loop())

    async def others() -> None:
        nonlocal counted
        while not done.is_set():
            counted += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    watch = Watch(done.set)
    turns.touch(watch)
    turns.arm(watch)
    await task
    assert QUIET_TURNS <= counted <= QUIET_TURNS + 3


async def test_a_disarmed_watch_is_not_called() -> None:
    """Nobody is told of a run whose attempt is over, and the loop is left alone."""
    turns = Turns(asyncio.get_running_loop())
    called: list[bool] = []
    watch = Watch(lambda: called.append(True))
    turns.arm(watch)
    turns.disarm(watch)
    await settled(3)
    assert called == []
    assert not watch.armed
