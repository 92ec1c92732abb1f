"""Families, which `durable` has to itself: what a family costs from `start` to the result, and how many go through.

W4r          one run that returns many children
family       a parent, two children and a coordinator, one family after another
family-task  the same with a coordinator that is a task
chain        chains of ten tasks, one after another
parents      parents of 50 children and a coordinator that is a task, all at once
mix          those parents, and as many chains of four tasks and loops that sleep, all at once
returned     one run that returns very many children: time and memory
awaited      one run whose body awaits very many children at once: time and memory

The shapes of `parents` and `mix` are those of the benchmark that comes with the TypeScript library `durable-execution`.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import durable
from benchmarks.memory import Peak
from benchmarks.peers.durable import application
from benchmarks.place import Place
from benchmarks.workloads import Figures, latency
from durable import Child, Durable, Handle, chain, task
from durable.tasks.task import Task

LINKS = 10
CHILDREN = 50  # of each parent of the mix
SECONDS = 0.001  # how long a child of the mix, and a link of its chains, takes
PAUSE = 0.1  # how long a loop of the mix sleeps before it looks
#: Executions by that benchmark's own count: a parent with its children and its coordinator; a chain of four; a loop of one turn.
OF_PARENT, OF_CHAIN, OF_LOOP = CHILDREN + 2, 5, 4

Body = Task[[int], int]


@task
async def increment(i: int) -> int:
    return i + 1


@task
async def returning(count: int) -> list[Child[int]]:
    return [increment.child(i) for i in range(count)]


@task
async def awaiting(count: int) -> int:
    return sum(await asyncio.gather(*(increment(i) for i in range(count))))


@dataclass
class Two:
    left: Child[int]
    right: Child[int]


async def add(two: Two) -> int:
    return two.left.result + two.right.result


@task
async def add_in_a_task(two: Two) -> int:
    return two.left.result + two.right.result


@task(on_children_complete=add)
async def family(i: int) -> Two:
    return Two(increment.child(i), increment.child(i))


@task(on_children_complete=add_in_a_task)
async def family_with_a_task(i: int) -> Two:
    return Two(increment.child(i), increment.child(i))


links = chain(*[increment] * LINKS, name="links")


@task
async def brief(i: int) -> int:
    await asyncio.sleep(SECONDS)
    return i + 1


@task
async def total(children: list[Child[int]]) -> int:
    return sum(child.result for child in children)


@task(on_children_complete=total)
async def parent(first: int) -> list[Child[int]]:
    return [brief.child(first + i) for i in range(CHILDREN)]


four = chain(brief, brief, brief, brief, name="four")


@task
async def is_done(turn: int) -> bool:
    return True


@task
async def loop(i: int) -> int:
    turn = 0
    while True:
        await durable.sleep(PAUSE)
        if await is_done(turn):
            return i
        turn += 1


async def in_turn(app: Durable, each: Body, count: int, expected: Callable[[int], int]) -> Figures:
    seconds = []
    for i in range(-1, count):  # the first one warms up
        began = perf_counter()
        result = await (await app.start(each, i)).wait()
        seconds.append(perf_counter() - began)
        assert result == expected(i), result
    return latency(seconds[1:])


async def large(app: Durable, body: Task[[int], Any], count: int) -> tuple[float, float]:
    """Time one run with many children, checked; return its seconds, and by how many MB memory rose at most."""
    await (await app.start(body, 2)).wait()
    gc.collect()
    with Peak() as peak:
        began = perf_counter()
        result: int | list[Child[int]] = await (await app.start(body, count)).wait()
        took = perf_counter() - began
    if isinstance(result, list):
        assert [child.result for child in result] == list(range(1, count + 1))
    else:
        assert result == count * (count + 1) // 2, result
    return took, peak.above_mb


async def many_children(app: Durable, count: int) -> Figures:
    return {"children/s": count / (await large(app, returning, count))[0]}


async def very_many_children(app: Durable, body: Task[[int], Any], count: int) -> Figures:
    seconds, peak_mb = await large(app, body, count)
    return {"s": seconds, "peak MB": peak_mb}


async def mix(app: Durable, parents: int, others: int) -> Figures:
    bodies: tuple[Body, ...] = (parent, four, loop)
    for body in bodies:
        await (await app.start(body, 0)).wait()
    began = perf_counter()
    wanted: list[tuple[Body, int, int]] = [(parent, i, sum(range(i + 1, i + CHILDREN + 1))) for i in range(parents)]
    wanted += [(four, i, i + 4) for i in range(others)]
    wanted += [(loop, i, i) for i in range(others)]
    handles: list[Handle[int]] = await asyncio.gather(*(app.start(body, i) for body, i, _ in wanted))
    results = [await handle.wait() for handle in handles]
    took = perf_counter() - began
    assert results == [expected for *_, expected in wanted]
    return {"executions/s": (parents * OF_PARENT + others * (OF_CHAIN + OF_LOOP)) / took}


async def measure(workload: str, place: Place, count: int) -> Figures:
    measures: dict[str, Callable[[Durable], Awaitable[Figures]]] = {
        "W4r": lambda app: many_children(app, count),
        "family": lambda app: in_turn(app, family, count, lambda i: 2 * (i + 1)),
        "family-task": lambda app: in_turn(app, family_with_a_task, count, lambda i: 2 * (i + 1)),
        "chain": lambda app: in_turn(app, links, count, lambda i: i + LINKS),
        "parents": lambda app: mix(app, count, 0),
        "mix": lambda app: mix(app, count, count),
        "returned": lambda app: very_many_children(app, returning, count),
        "awaited": lambda app: very_many_children(app, awaiting, count),
    }
    async with application(place) as app:
        return await measures[workload](app)
