"""The steps of the engine's simulation, and what its programs share.

A step returns its value with a number that no other execution has: a body that sees the same number again sees a recorded result, not a
second execution.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass
from typing import Any

import durable
from durable import Context, Retry, step
from durable.testing.simulate import current_life

_numbers = itertools.count()
QUICK = Retry(4, delay=0.05)


@dataclass(frozen=True)
class Token:
    """A value, and which execution made it."""

    value: int
    execution: int


def simulated(function: Any = None, /, *, name: str | None = None, **options: Any) -> Any:
    """A task with a name that no other test's task has."""

    def decorate(body: Any) -> Any:
        return durable.task(name=name or f"sim.{body.__name__}", **options)(body)

    return decorate if function is None else decorate(function)


class Flaw(Exception):
    """What steps and bodies raise on purpose."""


def _rng() -> random.Random:
    life = current_life.get()
    return life.rng


async def _work() -> None:
    """Take some time, or none."""
    await asyncio.sleep(_rng().choice((0.0, 0.0, 0.01, 0.3)) * _rng().random())


@step
async def square(number: int) -> Token:
    if _rng().random() < 0.7:
        await _work()
    return Token(number * number, next(_numbers))


@step
def triple(number: int) -> Token:
    return Token(3 * number, next(_numbers))


@step
async def slow(number: int) -> Token:
    await asyncio.sleep(5000)
    return Token(number, next(_numbers))


@step
async def echo(value: Any) -> list[Any]:
    await _work()
    return [value, next(_numbers)]


@step
async def breaking(number: int) -> Token:
    await _work()
    raise Flaw(number, next(_numbers))


@step(retry=QUICK)
async def shaky(ctx: Context, number: int) -> Token:
    await _work()
    if _rng().random() < 0.4 and len(_tries.setdefault(ctx.step_key(), [])) < 2:
        _tries[ctx.step_key()].append(number)
        raise Flaw("try again")
    return Token(number, next(_numbers))


_tries: dict[str, list[int]] = {}


@step
async def noisy(ctx: Context, number: int) -> Token:
    ctx.emit_nowait("heard", number)
    await _work()
    await ctx.emit("said", number)
    return Token(number, next(_numbers))
