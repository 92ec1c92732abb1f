"""Programs that crash before and after every commit, and go on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import durable
from durable import Context, Durable, Retry, step, task
from durable.store.memory import MemoryStore
from durable.testing.crash import crash_everywhere


@dataclass
class Total:
    values: tuple[int, ...]
    label: str


@step
async def square(number: int) -> int:
    return number * number


@step
async def combine(values: list[int]) -> Total:
    return Total(tuple(values), "sum")


@task(name="everywhere_sequential")
async def sequential(count: int) -> Total:
    return await combine([await square(number) for number in range(count)])


async def test_sequential_steps_survive_every_crash() -> None:
    """A crash at any commit of a sequence of steps changes neither result nor repeats a recorded step."""
    report = await crash_everywhere(sequential, 4)
    assert report.result == Total((0, 1, 4, 9), "sum")
    assert report.crashes == 2 * report.commits >= 12


@task(name="everywhere_gathering")
async def gathering(count: int) -> list[int]:
    return await asyncio.gather(*[square(number) for number in range(count)])


async def test_gathered_steps_survive_every_crash() -> None:
    """Concurrent steps replay as they ran."""
    assert (await crash_everywhere(gathering, 5)).result == [0, 1, 4, 9, 16]


@task(name="everywhere_completing")
async def completing(count: int) -> list[int]:
    order = []
    for future in asyncio.as_completed([square(number) for number in range(count)]):
        order.append(await future)
    await combine(order)
    return sorted(order)


async def test_as_completed_survives_every_crash() -> None:
    """What depends on the order of completion sees the same order after a crash."""
    assert (await crash_everywhere(completing, 5)).result == [0, 1, 4, 9, 16]


@task(name="everywhere_inner")
async def inner(number: int) -> int:
    return await square(number) + 1


@task(name="everywhere_outer")
async def outer(count: int) -> list[int]:
    first = await inner(10)
    return [first, *await asyncio.gather(*[inner(number) for number in range(count)])]


async def test_child_runs_survive_every_crash() -> None:
    """Awaited children are started once and their results come back."""
    assert (await crash_everywhere(outer, 3)).result == [101, 1, 2, 5]


@task(name="everywhere_counting")
async def counting(ctx: Context, limit: int) -> int:
    done = len([event for event in ctx.previous_events if event.name == "tick"])
    for number in range(done + 1, limit + 1):
        await ctx.emit("tick", {"n": number})
    return limit


async def test_manual_recovery_survives_every_crash() -> None:
    """A body that looks at its previous events goes on from the last one."""
    assert (await crash_everywhere(counting, 4)).result == 4


class Flaky(Exception):
    pass


@step(retry=Retry(3, delay=0.0))
async def shaky(ctx: Context, number: int) -> str:
    return ctx.step_key()


@task(name="everywhere_retried", retry=Retry(3, delay=0.0))
async def retried(ctx: Context, number: int) -> tuple[int, int]:
    value = await square(number)
    await shaky(number)
    if ctx.attempt < 3:
        raise Flaky(ctx.attempt)
    return value, ctx.attempt


async def test_task_retries_survive_every_crash() -> None:
    """Attempts are counted over crashes, and completed steps are kept over attempts."""
    assert (await crash_everywhere(retried, 7)).result == (49, 3)


@task(name="everywhere_worldly")
async def worldly(ctx: Context) -> list[str]:
    stamps = [durable.now().isoformat(), str(durable.uuid4()), str(durable.random())]
    await square(1)
    await durable.sleep(0.0)
    again = [str(durable.uuid4()), durable.now().isoformat()]
    await combine([len(set(stamps + again))])
    assert len(set(stamps + again)) >= 4
    return ["ok"]


async def test_recorded_time_and_randomness_survive_every_crash() -> None:
    """now(), uuid4() and random() let a replay find its calls again."""
    assert (await crash_everywhere(worldly)).result == ["ok"]


@task(name="everywhere_racing")
async def racing() -> str:
    calls = [asyncio.create_task(square(number)) for number in range(3)]
    done, pending = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    first = sorted(call.result() for call in done)
    for call in pending:
        call.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    await combine(first)
    return "done"


async def test_races_survive_every_crash() -> None:
    """The calls that lost a race are cancelled again on replay, and the winner is the same."""
    assert (await crash_everywhere(racing)).result == "done"


@step
async def failing(number: int) -> int:
    raise KeyError(number)


@task(name="everywhere_catching")
async def catching() -> str:
    try:
        await failing(3)
    except KeyError as error:
        await square(4)
        return f"caught {error.args[0]}"
    return "missed"


async def test_caught_failures_survive_every_crash() -> None:
    """A step that failed raises its own exception on replay, and is not run again."""
    assert (await crash_everywhere(catching)).result == "caught 3"


@task(name="everywhere_grouped")
async def grouped() -> list[int]:
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(square(number)) for number in range(4)]
    async with durable.timeout(60):
        more = await durable.map(square, range(4, 10), limit=2)
    return [call.result() for call in calls] + more


async def test_task_groups_timeouts_and_map_survive_every_crash() -> None:
    """TaskGroup, durable.timeout and durable.map replay as they ran."""
    assert (await crash_everywhere(grouped)).result == [number * number for number in range(10)]


@task(name="everywhere_receiver")
async def receiver(ctx: Context) -> list[object]:
    return [await ctx.wait_for("go"), await ctx.wait_for("go")]


async def test_signals_are_taken_in_order() -> None:
    """What was sent first is received first, also when it was sent before anybody waited."""
    async with Durable(MemoryStore()) as app:
        handle = await app.start(receiver)
        for number in range(2):
            await handle.send("go", number)
        assert await handle.wait() == [0, 1]
