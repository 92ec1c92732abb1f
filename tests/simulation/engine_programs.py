"""The programs of the engine's simulation: what people write with asyncio, each with a result that no crash may change.

What a body sees it shows to its `Witness`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import durable
from durable import RERUN, Context, NonRetryableError, Result, Retry, RunError, RunFailedError
from durable.testing.simulate import Witness, current_life
from tests.simulation.engine_steps import Flaw, Token, breaking, echo, noisy, shaky, simulated, slow, square, triple

# -- one call after the other, and several at once


@simulated
async def sequential(ctx: Context, count: int) -> list[int]:
    saw = Witness(ctx)
    return [saw(await square(number)).value for number in range(count)]


@simulated
async def gathering(ctx: Context, count: int) -> list[int]:
    saw = Witness(ctx)

    async def branch(number: int) -> int:
        first = saw(await square(number))
        second = saw(await (square if number % 2 else triple)(first.value))
        return second.value

    return await asyncio.gather(*(branch(number) for number in range(count)))


@simulated
async def completing(ctx: Context, count: int) -> list[int]:
    saw, values = Witness(ctx), []
    for future in asyncio.as_completed([square(number) for number in range(count)]):
        token = saw(await future)
        values.append(token.value)
        saw(await triple(token.value))
    return sorted(values)


@simulated
async def racing(ctx: Context, count: int) -> str:
    saw = Witness(ctx)
    for turn in range(2):
        calls = [asyncio.create_task(square(number + 10 * turn)) for number in range(count)]
        done, pending = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        saw(sorted((call.result().value, call.result().execution) for call in done))
        for call in pending:
            call.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        saw(await echo(sorted(call.result().value for call in done)))
    return "done"


@simulated
async def grouped(ctx: Context, count: int) -> list[int]:
    saw = Witness(ctx)
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(square(number)) for number in range(count)]
    more = await durable.map(square, range(count, 2 * count), limit=2)
    return [saw(call.result()).value for call in calls] + [saw(token).value for token in more]


@simulated
async def group_failing(ctx: Context, count: int) -> str:
    saw = Witness(ctx)

    async def branch(number: int) -> None:
        saw(await square(number))
        saw(await slow(number))

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(branch(number))
            group.create_task(breaking(count))
    except* Flaw as errors:
        saw([error.args for error in errors.exceptions])
    return f"{saw(await square(7)).value} after all"


@simulated
async def queued(ctx: Context, count: int) -> list[int]:
    saw, values = Witness(ctx), []
    queue: asyncio.Queue[Token | None] = asyncio.Queue(maxsize=2)

    async def produce(first: int) -> None:
        for number in range(first, first + count):
            await queue.put(saw(await square(number)))

    async def consume() -> None:
        while (token := await queue.get()) is not None:
            values.append(saw(await triple(token.value)).value)

    consumers = [asyncio.create_task(consume()) for _ in range(2)]
    await asyncio.gather(produce(0), produce(100))
    for _ in consumers:
        await queue.put(None)
    await asyncio.gather(*consumers)
    return sorted(values)


@simulated
async def locked(ctx: Context, count: int) -> int:
    saw, lock, total = Witness(ctx), asyncio.Lock(), 0

    async def branch(number: int) -> None:
        nonlocal total
        saw(await square(number))
        async with lock:
            before = total
            total = before + saw(await square(number)).value

    await asyncio.gather(*(branch(number) for number in range(count)))
    return total


# -- time, signals, other runs


@simulated
async def timed(ctx: Context, seconds: float) -> list[object]:
    saw, late = Witness(ctx), []
    for number in range(2):
        try:
            async with durable.timeout(seconds):
                saw(await square(number))
                saw(await slow(number))
        except TimeoutError:
            late.append(number)
    await durable.sleep(seconds)
    sleeper = asyncio.create_task(durable.sleep(seconds / 2))
    saw(await square(9))
    await sleeper
    saw([str(durable.uuid4()), durable.random()])
    saw(await echo(durable.now().isoformat()))
    return late


@simulated
async def receiving(ctx: Context) -> list[object]:
    saw = Witness(ctx)
    first = saw(await ctx.wait_for("first"))
    both = await asyncio.gather(ctx.wait_for("left"), ctx.wait_for("right"), square(3))
    saw(both)
    try:
        await ctx.wait_for("never", timeout=0.5)
    except TimeoutError:
        saw("late")
    return [first, both[0], both[1]]


@simulated
async def child(ctx: Context, number: int) -> int:
    saw = Witness(ctx)
    await asyncio.sleep(0)
    return saw(await square(number)).value + 1


@simulated
async def bad_child(ctx: Context, number: int) -> int:
    await square(number)
    raise Flaw(number)


@simulated
async def family(ctx: Context, count: int) -> list[int]:
    saw = Witness(ctx)
    first = saw(await child(50))
    rest = await asyncio.gather(*(child(number) for number in range(count)), square(2))
    saw(list(rest))
    try:
        await bad_child(1)
    except RunFailedError as error:
        saw(error.error_type)
    with suppress(TimeoutError):
        async with durable.timeout(0.5):
            await endless(1)
    return [first, *rest[:-1]]


@simulated
async def endless(ctx: Context, number: int) -> None:
    while True:
        await square(number)
        await durable.sleep(3)


@simulated
async def spawning(ctx: Context, count: int) -> list[int]:
    saw = Witness(ctx)
    handles = [await child.start(number) for number in range(count)]
    handles.append(await child.options(key=f"of {ctx.run_id}").start(70))
    handles.append(await child.options(key=f"of {ctx.run_id}").start(70))
    life = current_life.get()
    for handle in handles:
        life.oracle.promise(saw(handle.run_id), "start in a body", bool)
    assert handles[-1].run_id == handles[-2].run_id
    return [saw(await square(number)).value for number in range(count)]


# -- events, failures, recovery by hand


@simulated
async def emitting(ctx: Context, count: int) -> int:
    saw, life = Witness(ctx), current_life.get()
    for number in range(count):
        ctx.emit_nowait("soon", number)
        await ctx.emit("now", [number])
        if not life.over:
            life.emitted(ctx.run_id, "now", [number])
        saw(await noisy(number))
    await asyncio.gather(*(ctx.emit("many", number) for number in range(count)), square(1))
    return count


@simulated
async def yielding(ctx: Context, count: int) -> AsyncIterator[Any]:
    saw = Witness(ctx)
    for number in range(count):
        yield "tick", number
        saw(await square(number))
    yield Result(count)


@simulated(retry=Retry(3, delay=0.1))
async def retried(ctx: Context, number: int) -> list[int]:
    saw = Witness(ctx)
    value = saw(await square(number)).value
    await shaky(number)
    if ctx.attempt < 3:
        raise Flaw(ctx.attempt)
    try:
        await breaking(number)
    except Flaw as error:
        saw(error.args)
    return [value, ctx.attempt]


@simulated
async def manual(ctx: Context, limit: int) -> int:
    done = len([event for event in ctx.previous_events if event.name == "tick"])
    for number in range(done, limit):
        await square(number)
        await ctx.emit("tick", number)
        current_life.get().emitted(ctx.run_id, "tick", number)
    return limit


async def _recover(ctx: Context, limit: int) -> Any:
    return RERUN if len(ctx.previous_events) < limit else limit


@simulated(recovery=_recover)
async def handled(ctx: Context, limit: int) -> int:
    done = len(ctx.previous_events)
    for number in range(done, limit):
        await square(number)
        await ctx.emit("tick", number)
        current_life.get().emitted(ctx.run_id, "tick", number)
    return limit


@simulated(auto_recover=False)
async def returning(ctx: Context, count: int) -> int:
    saw = Witness(ctx)
    for number in range(count):
        saw(await square(number))
        await durable.sleep(0.3)
    return count


@simulated(timeout=3.0, retry=Retry(2, delay=0.0))
async def late(ctx: Context, number: int) -> None:
    saw = Witness(ctx)
    saw(await square(number))
    saw(await slow(number))


@simulated(delay=0.7, priority=3)
async def delayed(ctx: Context, number: int) -> int:
    return Witness(ctx)(await square(number)).value


@simulated(retry=Retry(2, delay=0.0))
async def failing(ctx: Context, number: int) -> int:
    saw = Witness(ctx)
    value = saw(await square(number)).value
    if ctx.attempt < 4:
        raise Flaw(ctx.attempt)
    return value


@simulated
async def hopeless(ctx: Context, number: int) -> int:
    await asyncio.gather(square(number), triple(number))
    raise NonRetryableError("it cannot be done")


@simulated
async def patient(ctx: Context, count: int) -> int:
    saw = Witness(ctx)
    for number in range(count):
        saw(await square(number))
        await durable.sleep(0.2)
        saw(await asyncio.gather(square(number), square(number), triple(number)))
    return count


@simulated
def plain(number: int) -> int:
    return number + 1


@simulated
async def nested(ctx: Context, depth: int) -> int:
    if depth == 0:
        return saw_value(await square(2))
    try:
        results = await asyncio.gather(nested(depth - 1), child(depth), plain(depth))
    except RunError:
        return -1
    return sum(results)


def saw_value(token: Token) -> int:
    return token.value
