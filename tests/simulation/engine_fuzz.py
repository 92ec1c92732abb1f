"""Bodies that nobody wrote: a tree of asyncio constructs, drawn from a seed, and interpreted.

What such a body does depends on nothing but its seed and the results of its calls, so a replay must see what the body saw.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import durable
from durable import Context
from durable.testing.simulate import Witness
from tests.simulation.engine_programs import child
from tests.simulation.engine_steps import Flaw, breaking, echo, noisy, shaky, simulated, square, triple

LEAVES = (
    "step",
    "step",
    "step",
    "plain",
    "shaky",
    "noisy",
    "break",
    "child",
    "sleep",
    "emit",
    "soon",
    "signal",
    "now",
    "turn",
)
INNER = (
    "sequence",
    "sequence",
    "gather",
    "gather",
    "race",
    "timeout",
    "group",
    "failing group",
    "completed",
    "lock",
    "queue",
)
SECONDS = (0.0, 0.01, 0.05, 0.3, 1.0)


@dataclass(frozen=True)
class Node:
    """A construct with its parts; `number` tells it apart from all others."""

    kind: str
    number: int
    seconds: float
    parts: tuple[Node, ...]


def draw(rng: random.Random, size: int) -> Node:
    """A random tree of about so many leaves."""
    number = 0

    def node(left: int) -> Node:
        nonlocal number
        number += 1
        mine, seconds = number, rng.choice(SECONDS)
        if left <= 1:
            return Node(rng.choice(LEAVES), mine, seconds, ())
        count = min(left, rng.randint(1, 4))
        return Node(rng.choice(INNER), mine, seconds, tuple(node(left // count) for _ in range(count)))

    return node(size)


@simulated
async def fuzzed(ctx: Context, seed: int) -> str:
    rng = random.Random(seed)
    await Interpreter(ctx).run(draw(rng, rng.randint(2, 14)))
    return "done"


class Interpreter:
    """Runs a tree as the body of a run."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.saw = Witness(ctx)
        self.lock = asyncio.Lock()

    async def run(self, node: Node) -> None:
        """Run a node, and show what came of it."""
        await self._kinds[node.kind](self, node)

    async def _step(self, node: Node) -> None:
        self.saw(await square(node.number))

    async def _plain(self, node: Node) -> None:
        self.saw(await triple(node.number))

    async def _shaky(self, node: Node) -> None:
        self.saw(await shaky(node.number))

    async def _noisy(self, node: Node) -> None:
        self.saw(await noisy(node.number))

    async def _break(self, node: Node) -> None:
        try:
            await breaking(node.number)
        except Flaw as error:
            self.saw(error.args)

    async def _child(self, node: Node) -> None:
        self.saw(await child(node.number))

    async def _sleep(self, node: Node) -> None:
        await durable.sleep(node.seconds)
        self.saw(("slept", node.number))

    async def _emit(self, node: Node) -> None:
        await self.ctx.emit("now", node.number)
        self.saw(("emitted", node.number))

    async def _soon(self, node: Node) -> None:
        self.ctx.emit_nowait("soon", node.number)

    async def _signal(self, node: Node) -> None:
        try:
            self.saw(await self.ctx.wait_for(f"signal {node.number % 3}", timeout=node.seconds))
        except TimeoutError:
            self.saw(("no signal", node.number))

    async def _now(self, node: Node) -> None:
        self.saw(await echo([durable.now().isoformat(), durable.random()]))

    async def _turn(self, node: Node) -> None:
        await asyncio.sleep(0)

    async def _sequence(self, node: Node) -> None:
        for part in node.parts:
            await self.run(part)

    async def _gather(self, node: Node) -> None:
        await asyncio.gather(*map(self.run, node.parts))

    async def _race(self, node: Node) -> None:
        tasks = [asyncio.create_task(self.run(part)) for part in node.parts]
        try:
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self.saw(("won", [number for number, each in enumerate(tasks) if each in done]))
        finally:
            for each in tasks:
                each.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    async def _timeout(self, node: Node) -> None:
        try:
            async with durable.timeout(node.seconds):
                await self._sequence(node)
                self.saw(("in time", node.number))
        except TimeoutError:
            self.saw(("timed out", node.number))

    async def _group(self, node: Node) -> None:
        async with asyncio.TaskGroup() as group:
            for part in node.parts:
                group.create_task(self.run(part))

    async def _failing_group(self, node: Node) -> None:
        # In a task of its own: up to Python 3.12 a failed TaskGroup leaves its task marked as being cancelled, and the next timeout
        # around it raises CancelledError instead of TimeoutError.
        await asyncio.create_task(self._failing(node))

    async def _failing(self, node: Node) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for part in node.parts:
                    group.create_task(self.run(part))
                group.create_task(breaking(node.number))
        except* Flaw as errors:
            self.saw([error.args for error in errors.exceptions])

    async def _completed(self, node: Node) -> None:
        # Tasks, since `as_completed` puts bare coroutines into a set, and begins them in the order of their addresses.
        for future in asyncio.as_completed([asyncio.ensure_future(self._named(part)) for part in node.parts]):
            self.saw(("completed", await future))

    async def _named(self, node: Node) -> int:
        await self.run(node)
        return node.number

    async def _lock(self, node: Node) -> None:
        async def branch(part: Node) -> None:
            async with self.lock:
                self.saw(await square(part.number))
            await self.run(part)

        await asyncio.gather(*map(branch, node.parts))

    async def _queue(self, node: Node) -> None:
        queue: asyncio.Queue[int] = asyncio.Queue(1)

        async def consume() -> None:
            while True:
                self.saw(await triple(await queue.get()))
                queue.task_done()

        async def produce(part: Node) -> None:
            await self.run(part)
            await queue.put(part.number)

        consumer = asyncio.create_task(consume())
        try:
            await asyncio.gather(*map(produce, node.parts))
            await queue.join()
        finally:
            consumer.cancel()
            with suppress(asyncio.CancelledError):
                await consumer

    _kinds: ClassVar[dict[str, Callable[[Any, Node], Awaitable[None]]]] = {
        "step": _step, "plain": _plain, "shaky": _shaky, "noisy": _noisy, "break": _break, "child": _child, "sleep": _sleep,
        "emit": _emit, "soon": _soon, "signal": _signal, "now": _now, "turn": _turn, "sequence": _sequence, "gather": _gather,
        "race": _race, "timeout": _timeout, "group": _group, "failing group": _failing_group, "completed": _completed,
        "lock": _lock, "queue": _queue,
    }  # fmt: skip
