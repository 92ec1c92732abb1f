"""The programs of the families' simulation: one plan drawn from a seed says what a whole tree of runs does, and what comes of it.

A plan is the input of its run. `outcome` says, without any engine, what the run must come to where nobody but crashes interferes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import durable
from durable import Child, Context, Result, Retry, RunError, chain
from durable.core.status import Status
from durable.testing.simulate import Witness
from tests.simulation.engine_steps import Flaw, noisy, simulated, square

SECONDS = (0.0, 0.004, 0.05, 0.3, 3.0)
#: An attempt from which on what can be mended is.
MENDED = 3


@dataclass
class Part:
    """What one function does: calls, then children that it returns, or a failure.

    Arguments:
        acts: the calls, each with its argument.
        awaited: plans of runs that the acts "await" and "gather" call.
        ending: `value`, `fail`, `flaky` (until the last attempt of its policy) or `mend` (until it was retried).
        children: plans of runs that it returns.
        shape: in what it returns them.
    """

    acts: list[tuple[str, float]] = field(default_factory=list)
    awaited: list[Plan] = field(default_factory=list)
    ending: str = "value"
    children: list[Plan] = field(default_factory=list)
    shape: str = "list"


@dataclass
class Plan:
    """A run: of which task, with which body, and what its coordinator does, where the task has one."""

    kind: str
    number: int
    body: Part
    then: Part = field(default_factory=Part)
    attempts: int = 1
    delay: float = 0.0


@dataclass
class Returned:
    """What a body, or a coordinator, returns."""

    values: list[Any]
    children: Any
    then: Part | None = None
    number: int = 0


# -- what the tasks do


async def perform(ctx: Context, saw: Witness, part: Part, number: int) -> Returned:
    """Make the calls of a part; return what its function returns, or raise what it raises."""
    values: list[Any] = []
    awaited = iter(part.awaited)
    for at, (act, argument) in enumerate(part.acts):
        match act:
            case "step":
                values.append(saw(await square(number + at)).value)
            case "steps":
                saw(await asyncio.gather(*(square(number + at) for _ in range(3)), durable.sleep(argument)))
            case "noisy":
                values.append(saw(await noisy(number)).value)
            case "emit":
                await ctx.emit("now", [number, at])
            case "sleep":
                await durable.sleep(argument)
            case "signal":
                saw(await ctx.wait_for("go"))
            case "briefly":
                try:
                    saw(await ctx.wait_for("never", timeout=argument))
                except TimeoutError:
                    values.append("late")
            case "await":
                values.append(saw(await called(next(awaited))))
            case "gather":
                pair = await asyncio.gather(called(next(awaited)), called(next(awaited)), durable.sleep(argument))
                values.append(saw(list(pair[:2])))
            case "spawn":
                plan = next(awaited)
                saw((await task_of(plan).start(plan)).run_id)
    last = ctx.attempt >= ctx.max_attempts
    if (
        part.ending == "fail"
        or (part.ending == "flaky" and not last)
        or (part.ending == "mend" and ctx.attempt < MENDED)
    ):
        raise Flaw(number)
    children: Any = [task_of(plan).child(plan) for plan in part.children]
    if part.shape == "dict":
        children = {f"child {at}": child for at, child in enumerate(children)}
    elif part.shape == "deep":
        children = [[child] for child in children]
    return Returned(values, children)


async def called(plan: Plan) -> Any:
    """Await a run; a failure of it is a value."""
    try:
        return plainly(await task_of(plan)(plan))
    except RunError as error:
        return ["raised", type(error).__name__]


def plainly(value: Any) -> Any:
    """A result with what became of the children in it, in plain values; see `outcome`."""
    if isinstance(value, Child):
        return [str(value.status), plainly(value.result) if value.ok else None]
    if isinstance(value, Returned):
        return [value.values, plainly(value.children)]
    if isinstance(value, list):
        return [plainly(each) for each in value]
    if isinstance(value, dict):
        return [plainly(each) for each in value.values()]
    return value


async def body(ctx: Context, plan: Plan) -> Returned:
    returned = await perform(ctx, Witness(ctx), plan.body, plan.number)
    returned.then, returned.number = plan.then, plan.number
    return returned


async def finish(ctx: Context, returned: Returned) -> Returned:
    """The coordinator."""
    saw = Witness(ctx)
    saw(plainly(returned))
    assert returned.then is not None
    more = await perform(ctx, saw, returned.then, returned.number + 1000)
    return Returned([returned.values, plainly(returned.children), *more.values], more.children)


@simulated(name="fam.finishing", retry=Retry(2, delay=0.05))
async def finishing(ctx: Context, returned: Returned) -> Returned:
    return await finish(ctx, returned)


TASKS: dict[str, Any] = {}
for kind, options in {
    "plain": {}, "function": {"on_children_complete": finish}, "task": {"on_children_complete": finishing},
}.items():  # fmt: skip
    for mode in ("fail", "continue"):
        TASKS[f"{kind} {mode}"] = durable.task(name=f"fam.{kind}.{mode}", on_child_failure=mode, **options)(body)


@simulated(name="fam.generator", on_children_complete=finish)
async def generator(ctx: Context, plan: Plan) -> AsyncIterator[Any]:
    yield "begun", plan.number
    yield Result(await body(ctx, plan))


@simulated(name="fam.thread")
def thread(plan: Plan) -> Returned:
    return Returned([plan.number], [task_of(child).child(child) for child in plan.body.children])


@simulated(name="fam.link")
async def link(ctx: Context, value: Any) -> list[Any]:
    return [plainly(value), Witness(ctx)(await square(3)).value]


TASKS["generator"], TASKS["thread"] = generator, thread
TASKS["chain"] = chain(TASKS["function fail"], link, name="fam.chain")


def task_of(plan: Plan) -> Any:
    """The task of a plan, with its options."""
    options: dict[str, Any] = {"delay": plan.delay} if plan.delay else {}
    if plan.attempts > 1:
        options["retry"] = Retry(plan.attempts, delay=0.02)
    return TASKS[plan.kind].options(**options) if options else TASKS[plan.kind]


# -- what comes of a plan

Outcome = tuple[Status, Any]


def outcome(plan: Plan) -> Outcome:
    """How the run ends, and with what in plain values."""
    if plan.kind == "chain":
        status, value = outcome(Plan("function fail", plan.number, plan.body, plan.then, 1))
        return (Status.COMPLETED, [value, 9]) if status is Status.COMPLETED else (Status.FAILED, None)
    coordinated, lenient = plan.kind.split()[0] in ("function", "task", "generator"), plan.kind.endswith("continue")
    if plan.body.ending == "fail":
        return Status.FAILED, None
    values = [plan.number] if plan.kind == "thread" else _values(plan.body, plan.number)
    ends = [outcome(child) for child in plan.body.children]
    if not lenient and any(status is not Status.COMPLETED for status, _ in ends):
        return Status.CHILDREN_FAILED, None
    if not coordinated:
        return Status.COMPLETED, [values, _shaped(plan.body, ends)]
    more = [outcome(child) for child in plan.then.children]
    failed = any(status is not Status.COMPLETED for status, _ in more) and (not lenient or plan.kind.startswith("task"))
    if plan.then.ending == "fail" or failed:
        return Status.ON_CHILDREN_COMPLETE_FAILED, None
    whole = [values, _shaped(plan.body, ends), *_values(plan.then, plan.number + 1000)]
    return Status.COMPLETED, [whole, _shaped(plan.then, more)]


def _shaped(part: Part, ends: list[Outcome]) -> list[Any]:
    told: list[Any] = [[str(status), value] for status, value in ends]
    return [[each] for each in told] if part.shape == "deep" else told


def _values(part: Part, number: int) -> list[Any]:
    values: list[Any] = []
    awaited = iter(part.awaited)

    def one() -> Any:
        status, value = outcome(next(awaited))
        return value if status is Status.COMPLETED else ["raised", "RunFailedError"]

    for at, (act, _) in enumerate(part.acts):
        match act:
            case "step":
                values.append((number + at) ** 2)
            case "noisy":
                values.append(number)
            case "briefly":
                values.append("late")
            case "await":
                values.append(one())
            case "gather":
                values.append([one(), one()])
            case "spawn":
                next(awaited)
    return values


# -- drawing plans

ACTS = ("step", "step", "steps", "noisy", "emit", "sleep", "sleep", "signal", "briefly", "await", "gather", "spawn")


class Drawing:
    """Draws a plan of at most so many runs.

    Arguments:
        mends: whether what fails does so until it was retried, where a retry of the root would try it again.
    """

    def __init__(self, rng: random.Random, size: int, mends: bool) -> None:
        self.rng, self.left, self.mends = rng, size, mends
        self.number = 0

    def plan(self, depth: int, mends: bool) -> Plan:
        """A run and all that belongs to it."""
        rng = self.rng
        self.left -= 1
        self.number += 1
        number = self.number
        kind = rng.choice([*TASKS])
        deep = depth < 4
        mends = mends and not kind.endswith("continue")
        own = "chain" not in kind and mends
        plan = Plan(kind, number, Part(), attempts=rng.choice((1, 1, 2)), delay=rng.choice((0.0, 0.0, 0.0, 0.2, 4.0)))
        if kind == "chain":
            plan.attempts = 1
        plan.body = self.part(depth, own, deep, plan.attempts)
        if kind == "thread":
            plan.body.acts, plan.body.awaited, plan.body.ending, plan.body.shape = [], [], "value", "list"
        attempts = 2 if kind.startswith("task") else plan.attempts
        if kind.split()[0] in ("function", "task", "generator", "chain"):
            plan.then = self.part(depth, own, deep and rng.random() < 0.3, attempts, again=False)
        return plan

    def part(self, depth: int, mends: bool, deep: bool, attempts: int, again: bool = True) -> Part:
        """What one function does. A coordinator that is retried returns new children, and not the same `again`."""
        rng = self.rng
        part = Part(shape=rng.choice(("list", "list", "dict", "deep")))
        for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
            act = rng.choice(ACTS)
            count = {"await": 1, "gather": 2, "spawn": 1}.get(act, 0)
            if count and (not deep or self.left < count):
                continue
            part.acts.append((act, rng.choice(SECONDS)))
            part.awaited += [self.plan(depth + 1, False) for _ in range(count)]
        part.ending = rng.choice(("value", "value", "value", "value", "fail", "flaky"))
        if part.ending == "flaky" and attempts == 1:
            part.ending = "value"
        if self.mends and part.ending == "fail":
            part.ending = "mend" if mends else "value"
        if deep:
            for _ in range(min(rng.choice((0, 1, 2, 3, 6)), self.left)):
                if self.left > 0:
                    part.children.append(self.plan(depth + 1, mends and again))
        return part


def draw(rng: random.Random, size: int, mends: bool = False) -> Plan:
    """A random plan."""
    return Drawing(rng, size, mends).plan(0, mends)
