"""What `Limits` promises, through the public API: rates, the queue, slots, and changes while it runs.

How many bodies are at work is counted by the bodies, and when runs came into being by what is stored of them. The tests that are named
after a number show that a weakness of that number in the reference's list (section 15.3) is not here.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import (
    BackpressureError,
    Child,
    Config,
    ConfigError,
    Context,
    Durable,
    Handle,
    Limits,
    NonRetryableError,
    RunFailedError,
    ShuttingDownError,
    SlotTimeoutError,
    ValidationError,
)
from durable.config import EngineSettings
from durable.store import MemoryStore
from tests.acceptance.contract_support import store_of

QUICK = Config(engine=EngineSettings(shutdown_grace_seconds=0.05, cancel_grace_seconds=0.2, idle_seconds=0.05))

Open = Callable[..., Durable]


class World:
    """What bodies see of the outside, and what it sees of them."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.at_work: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.done: list[str] = []
        self.begun: list[str] = []
        self.permits = asyncio.Semaphore(0)

    @asynccontextmanager
    async def working(self, user: str | None, name: str = "") -> AsyncIterator[None]:
        names = ["all", f"user {user}"]
        self.begun.append(name)
        for each in names:
            self.at_work[each] += 1
            self.most[each] = max(self.most[each], self.at_work[each])
        try:
            yield
        finally:
            for each in names:
                self.at_work[each] -= 1
            self.done.append(name)


world: World


@pytest.fixture(autouse=True)
async def _fresh() -> None:
    global world  # noqa: PLW0603 - bodies are module-level functions
    world = World()


class ManualClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


@pytest.fixture(params=["memory", "folder"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Makes an application; called again, another one on the same store."""
    make_store = store_of(request, tmp_path)
    return lambda config=QUICK, **limits: Durable(make_store(), config=config, limits=Limits(**limits))


def in_memory(clock: ManualClock, **limits: Any) -> Durable:
    """An application for which only the clock that the test moves counts."""
    return Durable(MemoryStore(), config=QUICK, limits=Limits(**limits), clock=clock)


@durable.task(name="limits_quick")
async def quick(ctx: Context, n: int) -> int:
    async with world.working(ctx.user, str(n)):
        return n


@durable.task(name="limits_held")
async def held(ctx: Context, name: str = "") -> str:
    """At work until the gate is open."""
    async with world.working(ctx.user, name):
        await world.gate.wait()
        return name


@durable.task(name="limits_short")
async def short(ctx: Context, name: str) -> str:
    """At work for a moment, in which others could come to work too."""
    async with world.working(ctx.user, name):
        await asyncio.sleep(0.005)
        return name


async def until(what: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.002)


async def stored(app: Durable) -> int:
    return len([info async for info in app.runs()])


async def all_of(starts: list[Any]) -> tuple[list[Handle[Any]], list[BaseException]]:
    """Do all of it at once; return the runs, and what refused the others."""
    got = await asyncio.gather(*starts, return_exceptions=True)
    for error in got:
        assert isinstance(error, Handle | durable.RefusedError), error
    return [each for each in got if isinstance(each, Handle)], [each for each in got if isinstance(each, Exception)]


# --- rates


@pytest.mark.parametrize("with_users", [False, True])
async def test_two_hundred_at_once_never_exceed_the_rate(make: Open, with_users: bool) -> None:
    """Never more than the limit in any window, by the times of what is stored, and all get in in as few windows as can be."""
    most, window, told = 60, 0.5, list[tuple[float, int | None]]()
    async with make(max_starts_per_window=most, window=window) as app:

        async def client(n: int) -> Handle[int]:
            task = quick.options(user=f"user {n % 7}") if with_users else quick
            while True:
                try:
                    return await app.start(task, n)
                except BackpressureError as error:
                    told.append((error.retry_after, error.limit))
                    await asyncio.sleep(error.retry_after)

        began = time.monotonic()
        handles = await asyncio.gather(*map(client, range(200)))
        took = time.monotonic() - began
        assert sorted([await handle for handle in handles]) == list(range(200))
        created = sorted([(await handle.info()).created_at.timestamp() for handle in handles])
    assert len(created) == 200
    assert all(0 < wait <= window and limit == most for wait, limit in told)
    for first, over in zip(created, created[most:], strict=False):
        assert over - first >= window - 1e-5  # stored in microseconds
    assert 3 * window <= took < 4 * window + 2


async def test_who_waits_as_long_as_was_said_is_let_in() -> None:
    """And nine tenths of it are not enough; several times over, with starts spread over the window."""
    clock = ManualClock()
    async with in_memory(clock, max_starts_per_window=3, window=10.0) as app:
        for step in (0.0, 2.0, 3.5):
            clock.time += step
            await app.start(quick, 1)
        for expected in (4.5, 2.0, 3.5, 4.5):
            with pytest.raises(BackpressureError) as refused:
                await app.start(quick, 2)
            wait = refused.value.retry_after
            assert wait == pytest.approx(expected)
            clock.time += 0.9 * wait
            with pytest.raises(BackpressureError) as again:
                await app.start(quick, 2)
            assert again.value.retry_after == pytest.approx(0.1 * wait)
            clock.time += 0.1 * wait + 1e-6
            await app.start(quick, 2)


async def test_retry_after_is_right_by_the_clock_on_the_wall(make: Open) -> None:
    """Within ten per cent, with nobody moving the clock."""
    async with make(max_starts_per_window=5, window=2.0) as app:
        await asyncio.gather(*(app.start(quick, n) for n in range(5)))
        with pytest.raises(BackpressureError) as refused:
            await app.start(quick, 5)
        asked, wait = time.monotonic(), refused.value.retry_after
        while True:
            tried = time.monotonic()  # what the start itself takes is no part of the wait
            with suppress(BackpressureError):
                await app.start(quick, 6)
                break
            await asyncio.sleep(0.001)
        assert tried - asked == pytest.approx(wait, rel=0.1)


async def test_rates_of_users_and_of_all_together() -> None:
    """A user's own limit stops that user only; nobody's start counts for all alone; the longer wait is told where both refuse."""
    clock = ManualClock()
    async with in_memory(clock, max_starts_per_window=5, max_starts_per_user_window=2, window=10.0) as app:
        for _ in range(2):
            await app.start(quick.options(user="ann"), 1)
            clock.time += 1
        with pytest.raises(BackpressureError, match=r"limits\.max_starts_per_user_window") as refused:
            await app.start(quick.options(user="ann"), 1)
        assert (refused.value.retry_after, refused.value.limit) == (pytest.approx(8), 2)
        await app.start(quick.options(user="bob"), 1)
        await app.start(quick, 1)
        await app.start(quick, 1)
        clock.time += 1
        with pytest.raises(BackpressureError, match=r"limits\.max_starts_per_window") as refused:
            await app.start(quick.options(user="bob"), 1)
        assert (refused.value.retry_after, refused.value.limit) == (pytest.approx(7), 5)
        clock.time += 7 + 1e-6  # ann's first is over, and the first of all
        await app.start(quick.options(user="ann"), 1)
        with pytest.raises(BackpressureError) as refused:
            await app.start(quick.options(user="ann"), 1)
        assert refused.value.retry_after == pytest.approx(1, rel=1e-5)
        assert await stored(app) == 6


async def test_what_is_refused_leaves_nothing(make: Open) -> None:
    """No run, no key, and no place in the window: refused for an hour, the next is let in as soon as the first is over."""
    async with make(max_starts_per_window=2, window=0.3) as app:
        await app.start(quick, 1)
        await app.start(quick, 2)
        refused = [app.start(quick.options(key=f"key {n}"), n) for n in range(20)]
        handles, errors = await all_of(refused)
        assert not handles and all(isinstance(error, BackpressureError) for error in errors)
        assert await stored(app) == 2
        assert [await app.find(f"key {n}") for n in range(20)] == [None] * 20
        await asyncio.sleep(max(error.retry_after for error in errors if isinstance(error, BackpressureError)))
        handle = await app.start(quick.options(key="key 3"), 4)  # the key is free for another input, too
        assert await handle == 4


async def test_a_key_that_has_a_run_is_never_refused(make: Open) -> None:
    """It counts for nothing, also when many ask at once; the one that creates the run counts once."""
    async with make(max_starts_per_window=2, max_running=1, max_queued=1, window=60.0) as app:
        handles, errors = await all_of([app.start(held.options(key="one"), "a") for _ in range(50)])
        assert not errors and len({handle.run_id for handle in handles}) == 1
        await app.start(held, "b")
        with pytest.raises(BackpressureError):
            await app.start(held, "c")
        assert (await app.start(held.options(key="one"), "a")).run_id == handles[0].run_id
        with pytest.raises(durable.ConflictError):
            await app.start(held.options(key="one"), "another input")
        world.gate.set()
        assert await handles[0] == "a"


@durable.task(name="limits_guarded", validate=lambda n: n > 0)
async def guarded(n: int) -> int:
    return n


async def test_w36_a_wrong_input_is_refused_before_anything_counts(make: Open) -> None:
    """By annotation, by `validate`, by the name of a user, or because it cannot be stored: none costs a start."""
    async with make(max_starts_per_window=1, max_running=1, max_queued=0, window=60.0) as app:
        wrong: Any = "not a number"
        for n in (wrong, None, -1, object()):
            with pytest.raises(ValidationError):
                await app.start(guarded, n)
        for user in ("", "u" * 501, 5):
            with pytest.raises(ConfigError, match="user"):
                await app.start(guarded.options(user=user), 1)  # type: ignore[arg-type]
        assert await stored(app) == 0
        assert await (await app.start(guarded, 1)) == 1
        with pytest.raises(ValidationError):  # still told what is wrong, now that nothing is let in
            await app.start(guarded, -1)


@durable.task(name="limits_family")
async def family(ctx: Context, size: int) -> list[Child[int]]:
    started = await quick.start(-1)
    awaited = await quick(-2)
    assert (await started, awaited) == (-1, -2)
    return [quick.child(n) for n in range(size)]


@durable.task(name="limits_twice", retry=durable.Retry(3, delay=0))
async def twice(ctx: Context) -> int:
    if ctx.attempt < 3:
        raise ValueError("once more")
    return ctx.attempt


@durable.step
async def starts_another() -> int:
    return await (await quick.options(key="from a step").start(-3))


@durable.task(name="limits_stepping")
async def stepping() -> int:
    return await starts_another()


async def test_children_and_retries_do_not_count(make: Open) -> None:
    """Nor what a body starts for itself, nor what its steps start; for the rate and for the queue."""
    async with make(max_starts_per_window=3, max_running=1, max_queued=0, slot_timeout=5, window=60.0) as app:
        children = await (await app.start(family, 40))
        assert [child.result for child in children] == list(range(40))
        assert await (await app.start(twice)) == 3
        assert await (await app.start(stepping)) == -3
        with pytest.raises(BackpressureError):
            await app.start(quick, 1)


async def test_recovery_does_not_count(make: Open) -> None:
    """What had not ended goes on, however many; the queue that it makes refuses who comes after, not them."""
    async with make(max_running=2) as app:
        handles = [await app.start(held, str(n)) for n in range(10)]
    world.gate.set()
    async with make(max_running=2, max_starts_per_window=1, max_queued=1, window=60.0) as app:
        for handle in handles:
            await (await app.get(handle.run_id)).wait(timeout=10)
        assert await (await app.start(quick, 1)) == 1


# --- the queue


@pytest.mark.parametrize(("running", "waiting"), [(3, 7), (1, 1), (10, 50)])
async def test_the_queue_holds_exactly_as_many_as_it_may(make: Open, running: int, waiting: int) -> None:
    """Of two hundred at once as many are let in as can run and may wait; refused ones are told when to come again."""
    async with make(max_running=running, max_queued=waiting, window=2.0) as app:
        handles, errors = await all_of([app.start(held, str(n)) for n in range(200)])
        assert len(handles) == running + waiting == await stored(app)
        for error in errors:
            assert isinstance(error, BackpressureError)
            assert error.limit == waiting and 0.1 <= error.retry_after <= 2.0
        await until(lambda: world.at_work["all"] == running)
        stats = await app.stats()
        assert (stats.running, stats.queued) == (running, waiting)
        world.gate.set()
        await asyncio.gather(*handles)
        assert world.most["all"] == running
        again, refused = await all_of([app.start(quick, n) for n in range(running)])
        assert len(again) == running and not refused


async def test_each_run_that_begins_makes_room_for_one(make: Open) -> None:
    async with make(max_running=1, max_queued=2) as app:
        handles = [await app.start(held, str(n)) for n in range(3)]
        for n in range(3, 8):
            with pytest.raises(BackpressureError):
                await app.start(held, "too many")
            await handles[n % 3].cancel()  # once the one that runs, then such as wait
            await until(lambda n=n: world.at_work["all"] == 1)  # type: ignore[misc]
            while True:
                with suppress(BackpressureError):
                    handles[n % 3] = await app.start(held, str(n))
                    break
                await asyncio.sleep(0.002)
        world.gate.set()
        await asyncio.gather(*handles)
        assert world.most["all"] == 1


async def test_a_delay_counts_for_the_queue_when_it_is_over(make: Open) -> None:
    """Delayed runs are let in however many wait, and are not refused when they are due; from then on they count."""
    async with make(max_running=1, max_queued=1) as app:
        first = await app.start(held, "first")
        second = await app.start(held, "second")
        late = [await app.start(held.options(delay=0.05), f"late {n}") for n in range(5)]
        await until(lambda: world.at_work["all"] == 1)
        async with asyncio.timeout(10):
            while (await app.stats()).queued < 6:
                await asyncio.sleep(0.005)
        with pytest.raises(BackpressureError):
            await app.start(held, "one more")
        world.gate.set()
        await asyncio.gather(first, second, *late)
        assert await (await app.start(quick, 1)) == 1


async def test_the_estimate_follows_the_pace_of_the_queue() -> None:
    """Runs that each take two seconds: who is refused is told to come again in about two."""
    clock = ManualClock()
    async with in_memory(clock, max_running=1, max_queued=3) as app:
        names = iter(range(1000))

        async def fill() -> BackpressureError:
            while True:
                try:
                    await app.start(permitted, str(next(names)))
                except BackpressureError as error:
                    return error

        await fill()
        for done in range(12):
            clock.time += 2
            world.permits.release()
            await until(lambda done=done: len(world.begun) == done + 2)  # type: ignore[misc]
            error = await fill()
        assert error.retry_after == pytest.approx(2, rel=0.1)
        clock.time += 1000
        assert (await fill()).retry_after == 60  # it has stood still, for longer than the window
        for _ in range(50):
            world.permits.release()


@durable.task(name="limits_permitted")
async def permitted(ctx: Context, name: str) -> None:
    async with world.working(ctx.user, name):
        await world.permits.acquire()


# --- slots


async def test_never_more_at_work_than_there_are_slots(make: Open) -> None:
    """In all and of each user, and all of them get their turn."""
    async with make(max_running=6, max_running_per_user=2) as app:
        handles = await asyncio.gather(
            *(app.start(short.options(user=f"{n % 5}"), str(n)) for n in range(100)),
            *(app.start(short, str(n)) for n in range(100, 120)),
        )
        assert [await handle for handle in handles] == [str(n) for n in range(120)]
    assert world.most["all"] == 6  # there was always somebody who might
    assert {world.most[f"user {n}"] for n in range(5)} == {2}
    assert len(world.done) == 120


async def test_a_greedy_user_starves_nobody(make: Open) -> None:
    """A thousand runs of one user stand before ten of others, which begin as if they stood alone."""
    async with make(max_running=3, max_running_per_user=2) as app:
        greedy = [await app.start(held.options(user="greedy"), f"greedy {n}") for n in range(300)]
        for n in range(10):
            assert await (await app.start(short.options(user=f"small {n}"), f"small {n}")).wait(timeout=5)
        assert world.at_work["user greedy"] == world.most["user greedy"] == 2
        assert (await app.stats()).queued == 298
        world.gate.set()
        await asyncio.gather(*greedy)
    assert [name for name in world.begun if "greedy" in name] == [f"greedy {n}" for n in range(300)]


async def test_without_a_bound_of_users_they_take_their_turns_in_order(make: Open) -> None:
    async with make(max_running=1) as app:
        handles = [await app.start(held.options(user="greedy"), f"greedy {n}") for n in range(30)]
        handles += [await app.start(short.options(user="small"), "small")]
        handles += [await app.start(short.options(user="urgent", priority=1), "urgent")]
        world.gate.set()
        await asyncio.gather(*handles)
    assert world.begun == ["greedy 0", "urgent", *(f"greedy {n}" for n in range(1, 30)), "small"]


async def test_a_process_may_bound_itself_further(make: Open) -> None:
    """`engine.concurrency` is a bound of the process, `max_running` one of all."""
    config = replace(QUICK, engine=replace(QUICK.engine, concurrency=2))
    async with make(config=config, max_running=50) as app:
        handles = [await app.start(held, str(n)) for n in range(20)]
        await until(lambda: world.at_work["all"] == 2)
        world.gate.set()
        await asyncio.gather(*handles)
    assert world.most["all"] == 2


@durable.task(name="limits_waits_for")
async def waits_for(ctx: Context, depth: int) -> int:
    """Awaits children that are its user's as well, one in the other, and one by its handle."""
    async with world.working(None):
        if depth == 0:
            return 0
        by_handle = await quick.start(0)
        return 1 + await waits_for(depth - 1) + await by_handle


async def test_who_is_awaited_needs_no_place_of_its_own(make: Open) -> None:
    """A user with one place: the body that has it awaits others of the same user, which could not begin otherwise."""
    async with make(max_running=2, max_running_per_user=1) as app:
        assert await (await app.start(waits_for.options(user="ann"), 5)).wait(timeout=10) == 5


@durable.task(name="limits_waits_for_a_signal")
async def waits_for_a_signal(ctx: Context) -> object:
    return await ctx.wait_for("go")


async def test_who_only_waits_gives_the_users_place_to_another(make: Open) -> None:
    async with make(max_running=10, max_running_per_user=1) as app:
        waiting = await app.start(waits_for_a_signal.options(user="ann"))
        assert await (await app.start(quick.options(user="ann"), 7)).wait(timeout=10) == 7
        await waiting.send("go", 8)
        assert await waiting.wait(timeout=10) == 8


# --- starts that wait for a slot themselves


async def test_a_start_waits_for_its_slot_where_no_run_may_wait(make: Open) -> None:
    """In turn; its run begins at once when it has one; and nothing waits in the store."""
    async with make(max_running=2, max_queued=0, slot_timeout=30) as app:
        first = [await app.start(permitted, str(n)) for n in range(2)]
        starts = []
        for n in range(2, 12):
            starts.append(asyncio.create_task(app.start(permitted, str(n))))
            await asyncio.sleep(0)
        await until(lambda: len(world.begun) == 2)
        assert await stored(app) == 2 and not any(start.done() for start in starts)
        for n in range(10):
            world.permits.release()
            handle = await asyncio.wait_for(starts[n], 5)
            assert (await handle.info()).status == "running"
            assert await stored(app) == 3 + n
        world.permits.release()
        world.permits.release()
        await asyncio.gather(*first, *[await start for start in starts])
    assert world.begun == [str(n) for n in range(12)]
    assert world.most["all"] == 2


async def test_users_wait_for_their_own_slots(make: Open) -> None:
    """Who waits because of their own bound is in nobody's way."""
    async with make(max_running=3, max_running_per_user=1, max_queued=0, slot_timeout=30) as app:
        first = await app.start(held.options(user="greedy"), "greedy")
        more = [asyncio.create_task(app.start(held.options(user="greedy"), "greedy")) for _ in range(20)]
        for n in range(10):
            assert await (await app.start(quick.options(user="small"), n)) == n
        assert world.most["user greedy"] == 1 and not any(start.done() for start in more)
        world.gate.set()
        await asyncio.gather(first, *[await start for start in more])
    assert world.most["user greedy"] == 1


async def test_a_start_waits_no_longer_than_it_may(make: Open) -> None:
    async with make(max_running=1, max_queued=0, slot_timeout=0.1) as app:
        first = await app.start(held)
        began = time.monotonic()
        with pytest.raises(SlotTimeoutError, match="max_queued=0") as refused:
            await app.start(held.options(key="mine"))
        assert refused.value.timeout == 0.1
        assert time.monotonic() - began == pytest.approx(0.1, abs=0.08)
        assert await stored(app) == 1 and await app.find("mine") is None
        same = [
            app.start(held.options(key="mine")) for _ in range(10)
        ]  # one holds the key while it waits: nobody waits longer for that
        began = time.monotonic()
        handles, errors = await all_of(same)
        assert not handles and all(isinstance(error, SlotTimeoutError) for error in errors)
        assert time.monotonic() - began < 0.3
        world.gate.set()
        await first
        assert await (await app.start(quick, 1)) == 1


async def test_a_start_that_waits_for_a_slot_counts_when_it_begins() -> None:
    """Not when it asks: no window has more than the limit, by the times of what is stored. Who is too many already does not wait at all."""
    clock = ManualClock()
    async with in_memory(clock, max_running=1, max_queued=0, max_starts_per_window=2, window=10.0) as app:
        first = await app.start(permitted, "0")
        second = asyncio.create_task(app.start(permitted, "1"))
        await until(lambda: len(world.begun) == 1)
        clock.time += 9
        world.permits.release()
        await first
        await second
        clock.time += 2  # the first is over, the second counts from when it began
        third = asyncio.create_task(app.start(permitted, "2"))
        await asyncio.sleep(0)
        world.permits.release()
        await third
        with pytest.raises(BackpressureError) as refused:
            await app.start(permitted, "3")
        assert refused.value.retry_after == pytest.approx(8)
        world.permits.release()


async def test_closing_ends_the_wait(make: Open) -> None:
    """W35: nobody who waits is left without an answer."""
    async with make(max_running=1, max_queued=0, slot_timeout=30) as app:
        await app.start(held)
        starts = [asyncio.create_task(app.start(held)) for _ in range(20)]
        await asyncio.sleep(0.01)
    for start in starts:
        with pytest.raises(ShuttingDownError):
            await asyncio.wait_for(start, 1)


@pytest.mark.parametrize("moment", range(12))
async def test_a_start_that_is_given_up_while_it_waits_costs_nothing(make: Open, moment: int) -> None:
    """At whatever moment: its slot, if it had one by then, goes to the next."""
    async with make(max_running=1, max_queued=0, slot_timeout=30) as app:
        first = await app.start(permitted, "first")
        waiting = asyncio.create_task(app.start(permitted, "given up"))
        await until(lambda: world.begun == ["first"])
        world.permits.release()
        for _ in range(moment):
            await asyncio.sleep(0)
        waiting.cancel()
        world.permits.release()
        world.permits.release()
        assert await (await asyncio.wait_for(app.start(permitted, "next"), 5)) is None
        await first


# --- changes while it runs


async def test_limits_can_be_read_and_changed_while_it_runs(make: Open) -> None:
    """More slots begin runs that wait, fewer let those that run finish; both at once."""
    async with make(max_running=2) as app:
        assert app.limits == Limits(max_running=2)
        handles = [await app.start(held.options(user=f"{n % 2}"), str(n)) for n in range(12)]
        await until(lambda: world.at_work["all"] == 2)
        app.limits = replace(app.limits, max_running=8, max_running_per_user=3)
        assert app.limits.max_running == 8
        await until(lambda: world.at_work["all"] == 6)
        app.limits = replace(app.limits, max_running_per_user=None)
        await until(lambda: world.at_work["all"] == 8)
        app.limits = replace(app.limits, max_running=1)
        world.gate.set()
        await asyncio.gather(*handles)
        world.most.clear()
        await asyncio.gather(*[await app.start(short, str(n)) for n in range(10)])
        assert world.most["all"] == 1


async def test_a_change_counts_for_who_waits_for_a_slot(make: Open) -> None:
    async with make(max_running=1, max_queued=0, slot_timeout=30) as app:
        await app.start(held)
        start = asyncio.create_task(app.start(held))
        await asyncio.sleep(0.01)
        app.limits = replace(app.limits, max_running=2)
        await asyncio.wait_for(start, 5)
        app.limits = replace(app.limits, max_queued=1)
        await app.start(held)
        with pytest.raises(BackpressureError):
            await app.start(held)
        world.gate.set()


async def test_rates_can_be_changed_and_what_was_counted_counts_on() -> None:
    clock = ManualClock()
    async with in_memory(clock, max_starts_per_window=4, window=10.0) as app:
        for _ in range(4):
            await app.start(quick, 1)
            clock.time += 1
        app.limits = replace(app.limits, max_starts_per_window=2)
        with pytest.raises(BackpressureError) as refused:
            await app.start(quick, 1)
        assert refused.value.retry_after == pytest.approx(8)  # the third of four is the last but one
        app.limits = replace(app.limits, max_starts_per_window=5)
        await app.start(quick, 1)
        with pytest.raises(BackpressureError):
            await app.start(quick, 1)
        app.limits = replace(app.limits, window=2.0)
        await app.start(quick, 1)
        app.limits = Limits()
        for _ in range(20):
            await app.start(quick, 1)


async def test_wrong_limits_are_refused_and_change_nothing(make: Open) -> None:
    app = make(max_running=3)
    wrong: Any = {"max_running": 5}
    with pytest.raises(ConfigError, match="limits"):
        app.limits = wrong
    with pytest.raises(ConfigError, match=r"limits\.max_running"):
        app.limits = replace(app.limits, max_running=0)
    app.limits = replace(app.limits, max_running=4)  # before it is opened
    async with app:
        handles = [await app.start(held, str(n)) for n in range(20)]
        await until(lambda: world.at_work["all"] == 4)
        world.gate.set()
        await asyncio.gather(*handles)
    assert world.most["all"] == 4


# --- weaknesses of the reference


@durable.step
async def brittle(n: int) -> int:
    attempts[n] += 1
    if attempts[n] == 1:
        raise NonRetryableError("the first time")
    return n


@durable.step
async def sound(n: int) -> int:
    attempts[-n] += 1
    return n


@durable.task(name="limits_brittle")
async def breaks_once(n: int) -> int:
    return await sound(n) + await brittle(n)


attempts: defaultdict[int, int] = defaultdict(int)


async def test_w30_and_w31_what_failed_is_a_dead_letter_that_outlives_the_process_and_is_not_lost_by_a_retry(
    make: Open,
) -> None:
    """In the store, with its history; retried it goes on from the step that failed, and ends."""
    attempts.clear()
    async with make() as app:
        handle = await app.start(breaks_once, 5)
        with pytest.raises(RunFailedError):
            await handle
    async with make() as app:
        assert [letter.run_id async for letter in app.dead_letters.list()] == [handle.run_id]
        await app.dead_letters.retry(handle.run_id)
        assert await (await app.get(handle.run_id)).wait(timeout=10) == 10
        assert [letter async for letter in app.dead_letters.list()] == []
    assert dict(attempts) == {5: 2, -5: 1}


async def test_w33_no_refusal_uses_up_a_place_in_the_queue(make: Open) -> None:
    """Time-outs, cancellations, refusals by the rate, keys that have a run: after a thousand of them as many get in as at first."""
    async with make(max_running=2, max_queued=3) as app:
        for _ in range(5):
            world.gate.clear()
            handles, errors = await all_of([app.start(held, str(n)) for n in range(50)])
            assert (len(handles), len(errors)) == (5, 45)
            app.limits = replace(app.limits, max_queued=0, slot_timeout=0.01)
            _, errors = await all_of([app.start(held, str(n)) for n in range(50)])
            assert [type(error) for error in errors] == [SlotTimeoutError] * 50
            app.limits = replace(app.limits, max_starts_per_window=1, max_queued=3)
            await all_of([app.start(held, str(n)) for n in range(50)])
            app.limits = Limits(max_running=2, max_queued=3)
            await all_of([app.start(held.options(key=f"{handles[0].run_id}"), "key") for _ in range(5)])
            for handle in handles[2:]:
                await handle.cancel()
            world.gate.set()
            await asyncio.gather(*handles[:2])
            await until(lambda: world.at_work["all"] == 0)
            async with asyncio.timeout(10):
                while (await app.stats()).queued or (await app.stats()).running:
                    await asyncio.sleep(0.002)


async def test_w34_a_start_costs_no_more_with_a_long_window_and_many_users() -> None:
    """Rates that are far away make starts hardly slower; that users are forgotten and that a window's length costs nothing is shown in
    `tests/guard/test_window.py`."""

    async def seconds_for(limits: Limits) -> float:
        async with Durable(MemoryStore(), limits=limits) as app:
            began = time.perf_counter()
            await asyncio.gather(*(app.start(quick.options(user=f"{n % 500}"), n) for n in range(2_000)))
            return time.perf_counter() - began

    bounded = Limits(max_starts_per_window=10**6, max_starts_per_user_window=10**6, window=3600.0, max_queued=10**6)
    assert await seconds_for(bounded) < 2 * await seconds_for(Limits()) + 0.5


async def test_w35_all_that_fit_begin_when_slots_become_free(make: Open) -> None:
    """Not one for each that ends, and not by name: several users' waiters begin together."""
    async with make(max_running=8, max_running_per_user=4, max_queued=0, slot_timeout=30) as app:
        first = [await app.start(held.options(user=user), user) for user in "aaaabbbb"]
        starts = [asyncio.create_task(app.start(short.options(user=user), user)) for user in "aabbccddee"]
        await asyncio.sleep(0.01)
        assert not any(start.done() for start in starts)
        world.gate.set()
        handles = await asyncio.wait_for(asyncio.gather(*starts), 10)
        assert [await handle for handle in (*first, *handles)] == list("aaaabbbbaabbccddee")
