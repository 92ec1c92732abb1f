"""An executor in a process of its own, which the tests start, stop, kill, and have do things.

    python -m tests.acceptance.executors_worker '{"url": ..., "schema": ..., "side": ...}'

It prints a line of JSON once it is open, then reads requests from its input, a line of JSON each, and answers each with one. It closes at
SIGTERM, or when its input ends. What happens outside the engine is a line in the side file, by a single appending write: `X word time pid`
before a step's body does anything; the step then returns that word, so that its record can be found.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import durable
from durable import Child, Config, Context, Durable, DurableError, Limits, Retry, step
from durable.config import EngineSettings, PostgresSettings
from durable.tasks.registry import find_task
from durable.tasks.task import Task

#: The side file; without one, nothing is noted.
SIDE = ""


def note(word: str) -> str:
    """Tell the side file."""
    if SIDE:
        side = os.open(SIDE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(side, f"X {word} {time.time():.6f} {os.getpid()}\n".encode())
        os.close(side)
    return word


def settings(
    schema: str, *, lease: float = 1.5, concurrency: int = 50, poll: float = 1.0, grace: float = 0.2, **limits: Any
) -> Any:
    """Of an application, as its keyword arguments."""
    return {
        "config": Config(
            postgres=PostgresSettings(schema=schema, lease_seconds=lease, poll_seconds=poll),
            engine=EngineSettings(
                max_recoveries=100_000,
                shutdown_grace_seconds=grace,
                cancel_grace_seconds=1.0,
                idle_seconds=0.1,
                concurrency=concurrency,
            ),
        ),
        "limits": Limits(**limits),
    }


def shape(function: Any = None, /, **options: Any) -> Any:
    """A task with a name that no other test's task has."""

    def decorate(body: Any) -> Any:
        return durable.task(name=f"executors_{body.__name__}", **options)(body)

    return decorate if function is None else decorate(function)


@step(name="executors_act")
async def act(word: str, seconds: float = 0.0) -> str:
    """The effect that is counted."""
    note(word)
    await asyncio.sleep(seconds)
    return word


@step(name="executors_hold")
async def hold(word: str, gate: str) -> str:
    """The same, but it lasts until there is a file."""
    note(word)
    while not Path(gate).exists():
        await asyncio.sleep(0.01)
    return word


# -- one run


@shape
async def steps(word: str, seconds: float = 0.05) -> list[str]:
    return [await act(f"{word}.{number}", seconds) for number in range(3)]


@shape
async def sleeping(word: str) -> str:
    await act(f"{word}.before")
    await durable.sleep(0.3)
    return await act(f"{word}.after")


@shape
async def signalled(ctx: Context[Any], word: str) -> list[Any]:
    await act(f"{word}.before")
    return [await ctx.wait_for("go"), await act(f"{word}.after")]


@shape(retry=Retry(3, delay=0.01))
async def retrying(ctx: Context[Any], word: str) -> int:
    await act(f"{word}.once")
    await act(f"{word}.attempt{ctx.attempt}", 0.01)
    if ctx.attempt < 3:
        raise ValueError(ctx.attempt)
    return ctx.attempt


@shape
async def failing(word: str, gate: str) -> str:
    await act(f"{word}.once")
    if not Path(gate).exists():
        raise ValueError(word)
    return await act(f"{word}.again")


@shape
async def holding(word: str, gate: str) -> str:
    return await hold(word, gate)


@shape
async def listening(ctx: Context[Any], word: str) -> str:
    await act(f"{word}.begun")
    await ctx.emit("begun", word)
    return await ctx.wait_for("go")  # type: ignore[no-any-return]


@shape
async def occupying(word: str, seconds: float = 0.0, gate: str = "") -> str:
    """Notes when it begins and when it ends; it lasts so long, or until there is a file."""
    note(f"in:{word}")
    try:
        await asyncio.sleep(seconds)
        while gate and not Path(gate).exists():
            await asyncio.sleep(0.01)
        return word
    finally:
        note(f"out:{word}")


@shape
async def quick(number: int) -> int:
    return number + 1


# -- families


@shape
async def leaf(word: str, seconds: float = 0.01) -> str:
    return await act(word, seconds)


async def gathered(children: list[Child[str]]) -> list[str]:
    return [await act(f"{children[0].result}.coordinator"), *[child.result for child in children]]


@shape(on_children_complete=gathered)
async def family(word: str, count: int = 3) -> list[Child[str]]:
    await act(f"{word}.body")
    return [leaf.child(f"{word}.{number}") for number in range(count)]


@shape
async def merge(children: list[Child[str]]) -> list[str]:
    await act(f"{children[0].result}.merged")
    return [child.result for child in children]


@shape(on_children_complete=merge)
async def merging(word: str) -> list[Child[str]]:
    return [leaf.child(f"{word}.{number}") for number in range(3)]


@shape
async def nested(word: str, depth: int) -> list[Child[Any]]:
    if not depth:
        return [leaf.child(f"{word}.{number}") for number in range(2)]
    return [nested.child(f"{word}.{number}", depth - 1) for number in range(2)]


@shape
async def awaiting(word: str) -> list[str]:
    own = await act(f"{word}.own")
    return [own, *await asyncio.gather(leaf(f"{word}.left"), leaf(f"{word}.right"))]


@shape
async def deep(word: str, depth: int) -> str:
    await act(f"{word}.{depth}")
    return str(await deep(word, depth - 1)) if depth else word


@shape
async def mapping(word: str) -> list[str]:
    return await durable.map(leaf, [f"{word}.{number}" for number in range(6)], limit=3)


@shape
async def louder(word: str) -> str:
    return await act(f"{word}!", 0.01)


chained = durable.chain(leaf, louder, louder, name="executors_chained")


@shape
async def holders(word: str, gate: str) -> list[Child[str]]:
    return [holding.child(f"{word}.{number}", gate) for number in range(4)]


@shape
async def holder_of_holders(word: str, gate: str) -> list[Child[Any]]:
    return [holders.child(f"{word}.{number}", gate) for number in range(2)]


@shape
async def awaits_holders(word: str, gate: str) -> list[str]:
    await act(f"{word}.own")
    return list(await asyncio.gather(*(holding(f"{word}.{number}", gate) for number in range(4))))


@shape
async def shares(word: str, key: str) -> list[Child[str]]:
    """One child of its own, one that a key names."""
    await act(f"{word}.body")
    return [leaf.child(f"{word}.own"), leaf.options(key=key).child(key, 0.05)]


@shape
async def awaits_shared(word: str, key: str) -> list[str]:
    await act(f"{word}.body")
    return [await leaf.options(key=key)(key, 0.05), await act(f"{word}.end")]


@shape
async def awaits_named(key: str, seconds: float) -> str:
    """Waits for a run that somebody else has started."""
    return await leaf.options(key=key)(key, seconds)


SHAPES: tuple[Any, ...] = (steps, family, merging, awaiting, sleeping, signalled, retrying, mapping)


# -- the process


class Worker:
    """Does what it is asked."""

    def __init__(self, app: Durable) -> None:
        self._app = app

    async def start(self, task: str, args: list[Any], times: int = 1, **options: Any) -> list[str]:
        """Start a run so many times at once; the ids."""
        definition = find_task(task)
        assert definition is not None, task
        chosen: Any = Task(definition)
        if options:
            chosen = chosen.options(**options)
        handles = await asyncio.gather(*(self._app.start(chosen, *args) for _ in range(times)))
        return [handle.run_id for handle in handles]

    async def storm(self, task: str, words: list[str], args: list[Any]) -> list[Any]:
        """Start a run for each of these words at once, of the user that it begins with; ids, or why not and when to try again."""
        definition = find_task(task)
        assert definition is not None, task

        async def one(word: str) -> Any:
            try:
                return (
                    await self._app.start(
                        Task(definition).options(user=word.split(":", maxsplit=1)[0] or None), word, *args
                    )
                ).run_id
            except durable.BackpressureError as error:
                return [error.limit, error.retry_after]

        return await asyncio.gather(*map(one, words))

    async def tell(self, run: str, verb: str, args: list[Any]) -> Any:
        """Have a handle do something."""
        return await getattr(await self._app.get(run), verb)(*args)

    async def events(self, run: str) -> list[str]:
        """The names of a run's events, to its end."""
        return [event.name async for event in (await self._app.get(run)).events()]


async def answer(number: int, asked: Coroutine[Any, Any, Any], say: Callable[[Any], None]) -> None:
    """Do what was asked, and say what came of it."""
    try:
        say({"to": number, "is": await asked})
    except DurableError as error:
        say({"to": number, "error": type(error).__name__, "text": str(error)})


async def work(url: str, schema: str, *, execute: bool = True, version: str | None = None, **options: Any) -> None:
    """One life."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    versioned = (
        None if version is None else durable.task(name="executors_versioned", version=version or None)(_versioned)
    )
    app = Durable(url, execute=execute, test_mode=True, **settings(schema, **options))
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    asked: set[asyncio.Task[None]] = set()

    def say(what: Any) -> None:
        print(json.dumps(what), flush=True)

    async def obey(worker: Worker) -> None:
        while line := await lines.readline():
            request = json.loads(line)
            number, verb = request.pop("number"), request.pop("do")
            asked.add(asyncio.create_task(answer(number, getattr(worker, verb)(**request), say)))
        over.set()

    async with app:
        say({"executor": app.engine.store.executor_id})  # type: ignore[attr-defined]
        obeying = asyncio.create_task(obey(Worker(app)))
        await over.wait()
    obeying.cancel()
    del versioned


async def _versioned(word: str) -> str:
    return await act(word)


def main(text: str) -> None:
    """See the module."""
    global SIDE  # noqa: PLW0603 - what a process of its own is told
    options = json.loads(text)
    SIDE = options.pop("side")

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(work(**options))


if __name__ == "__main__":
    main(sys.argv[1])
