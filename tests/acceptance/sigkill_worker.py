"""The process that gets killed: opens the store in a folder, starts runs under keys, sends signals, and waits for all of them.

    python -m tests.acceptance.sigkill_worker live FOLDER SIDE WAVES         one life, to its end
    python -m tests.acceptance.sigkill_worker nursery FOLDER SIDE KILLS SEED so many lives, each a forked process that is killed

The nursery imports everything once and opens nothing, so that a life costs a fork and not a start of Python. Lines go to the side file by
single appending writes, which a kill cannot reorder: `X run call` before a step's body runs, `R run call` once its result is durable,
`A key run` once a start was acknowledged, `E key type result` once a result came.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import durable
from durable import Config, Context, Durable, Handle, Result, Retry, RunCancelledError, TransitionError, step
from durable.config import EngineSettings, FlushSettings, LogSettings
from durable.core.query import RunFilter
from durable.core.records import Call, Kind, Record
from durable.store.base import Unit
from durable.store.local import LocalStore

CONFIG = Config(
    log=LogSettings(segment_bytes=64 * 1024, low_water_bytes=0),
    flush=FlushSettings(interval_seconds=0.03, batch_records_max=200),
    engine=EngineSettings(max_recoveries=100_000, shutdown_grace_seconds=0.2),
)
#: Kills until the next wave of runs is started.
KILLS_OF_A_WAVE = 4


def killed(function: Any = None, /, **options: Any) -> Any:
    """A task with a name that no other test's task has."""

    def decorate(body: Any) -> Any:
        return durable.task(name=f"kill.{body.__name__}", **options)(body)

    return decorate if function is None else decorate(function)


@dataclass(frozen=True)
class Total:
    """A typed result."""

    values: tuple[int, ...]
    label: str


# -- the programs


@step
async def square(number: int) -> int:
    await asyncio.sleep(random.choice((0.0, 0.001, 0.01)))
    return number * number


@step
def triple(number: int) -> int:
    return 3 * number


@step
async def slow(number: int) -> int:
    await asyncio.sleep(3600)
    return number


@step
async def breaking(number: int) -> int:
    raise KeyError(number)


@step(retry=Retry(50, delay=0.001, factor=1.0))
async def shaky(number: int) -> int:
    if random.random() < 0.3:
        raise ConnectionError("try again")
    return number


@killed
async def sequential(wave: int) -> Total:
    return Total(tuple([await square(wave + number) for number in range(8)]), "squares")


@killed
async def gathering(wave: int) -> list[int]:
    return await asyncio.gather(*(square(wave + number) for number in range(6)), triple(wave))


@killed
async def completing(wave: int) -> set[int]:
    order = []
    for future in asyncio.as_completed([asyncio.ensure_future(square(wave + number)) for number in range(5)]):
        order.append(await future)
        await triple(order[-1])
    return set(order)


@killed
async def racing(wave: int) -> str:
    calls = [asyncio.create_task(square(wave + number)) for number in range(4)]
    _, pending = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    for call in pending:
        call.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return f"{await triple(wave)}"


@killed
async def grouped(wave: int) -> tuple[int, str]:
    total = 0
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(square(wave + number)) for number in range(4)]
    total += sum(call.result() for call in calls)
    try:
        await breaking(wave)
    except KeyError as error:
        return total + await square(error.args[0]), "caught"
    return 0, "missed"


@killed
async def timed(wave: int) -> bool:
    try:
        async with durable.timeout(0.05):
            await square(wave)
            await slow(wave)
    except TimeoutError:
        await durable.sleep(0.05)
        return await square(wave) == wave * wave
    return False


@killed
async def queued(wave: int) -> list[int]:
    queue: asyncio.Queue[int] = asyncio.Queue(2)
    values: list[int] = []

    async def consume() -> None:
        while True:
            values.append(await triple(await queue.get()))
            queue.task_done()

    consumers = [asyncio.create_task(consume()) for _ in range(2)]
    for number in range(5):
        await queue.put(await square(wave + number))
    await queue.join()
    for consumer in consumers:
        consumer.cancel()
    return sorted(values)


@killed
async def child(number: int) -> int:
    return await square(number) + await shaky(1)


@killed
async def family(wave: int) -> list[int]:
    first = await child(wave)
    handle = await child.options(key=f"child of {wave}").start(wave + 50)
    await child.start(wave + 60)
    return [first, *await asyncio.gather(*(child(wave + number) for number in range(3))), len(handle.run_id)]


@killed(retry=Retry(3, delay=0.01))
async def retried(ctx: Context, wave: int) -> dict[str, int]:
    value = await square(wave)
    await shaky(wave)
    if ctx.attempt < 3:
        raise ValueError(ctx.attempt)
    return {"value": value, "attempt": ctx.attempt}


@killed
async def yielding(wave: int) -> AsyncIterator[Any]:
    for number in range(4):
        yield "tick", number
        await square(wave + number)
    yield Result([wave])


@killed
async def receiving(ctx: Context, wave: int) -> list[object]:
    return [await ctx.wait_for("left"), await square(wave), *await asyncio.gather(ctx.wait_for("right"), triple(wave))]


@killed
async def endless(wave: int) -> None:
    while True:
        await durable.sleep(0.02)
        await square(wave)


PROGRAMS = (
    sequential, gathering, completing, racing, grouped, timed, queued, family, retried, yielding, receiving, endless,
)  # fmt: skip


# -- the life


class WatchedStore(LocalStore):
    """Tells the side file which results are durable: those that are found, and those that become so."""

    side: int

    async def open(self) -> None:
        await super().open()
        for run in await self.query(RunFilter(open=True, limit=1_000_000)):
            self._tell(await self.history(run.run_id))

    async def commit(self, units: Sequence[Unit]) -> None:
        await super().commit(units)
        for unit in units:
            self._tell(unit)

    def _tell(self, records: Sequence[Record]) -> None:
        lines = [f"R {place(record.run_id, record.call)}\n" for record in records if record.kind is Kind.STEP_COMPLETED]
        if lines:
            os.write(self.side, "".join(lines).encode())


def place(run_id: str, call: Call) -> str:
    """A call of a run, as one word."""
    name, ident, occurrence = call
    return f"{run_id}/{name}/{ident.hex()}/{occurrence}"


def open_side(path: str) -> int:
    """The side file, for appending."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


async def live(folder: str, side_path: str, first: int, waves: int) -> None:
    """Start all runs of the waves from `first` on, or find them, and wait for them."""
    side = open_side(side_path)
    store = WatchedStore(folder, log=CONFIG.log, flush=CONFIG.flush)
    store.side = side
    app = Durable(store, config=CONFIG, test_mode=True)
    app.engine.on_step = lambda run_id, call: void(os.write(side, f"X {place(run_id, call)}\n".encode()))
    async with app:
        names = [(program, wave) for wave in range(first, waves) for program in PROGRAMS]
        random.shuffle(names)
        await asyncio.gather(*(one(app, side, program, wave) for program, wave in names))
        async for info in app.runs():  # children that live on their own
            if not info.closed:
                await (await app.get(info.run_id)).wait()


def void(_: object) -> None:
    """Nothing comes of it."""


async def one(app: Durable, side: int, program: Any, wave: int) -> None:
    """One run, from its start to its result."""
    key = f"{program.name}-{wave}"
    handle: Handle[Any] = await program.options(key=key).start(wave)
    os.write(side, f"A {key} {handle.run_id}\n".encode())
    with suppress(TransitionError):  # it has ended already, before a kill perhaps
        if program is receiving:
            await handle.send("right", [wave])
            await handle.send("left", (wave, "left"))
    if program is endless:
        await asyncio.sleep(random.random() * 0.2)
        await handle.cancel("enough")
    try:
        result = await handle
        text = f"{type(result).__name__} {result!r}"
    except RunCancelledError as error:
        text = f"{type(error).__name__}"
    os.write(side, f"E {key} {text}\n".encode())


def nursery(folder: str, side_path: str, kills: int, rng: random.Random) -> None:
    """Fork a life, kill it at a random moment, and so on."""
    for number in range(kills):
        waves = number // KILLS_OF_A_WAVE + 1
        begun = time.monotonic()
        pid = os.fork()
        if pid == 0:
            try:
                random.seed(rng.random() + number)
                asyncio.run(live(folder, side_path, max(0, waves - 2), waves))
                time.sleep(60)  # all was done: wait for the kill
            except BaseException:  # noqa: BLE001 - a forked process may not go back to where it came from
                traceback.print_exc()
            finally:
                os._exit(3)
        seconds = rng.choice((0.015, 0.05, 0.15, 0.3)) * rng.random()
        time.sleep(max(0.0, seconds - (time.monotonic() - begun)))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"life {number} ended by itself with status {status}")


def main(arguments: list[str]) -> None:
    """See the module."""
    mode, folder, side, number = arguments[0], arguments[1], arguments[2], int(arguments[3])
    if mode == "nursery":
        nursery(folder, side, number, random.Random(int(arguments[4])))
    else:
        asyncio.run(live(folder, side, 0, number))


if __name__ == "__main__":
    main(sys.argv[1:])
