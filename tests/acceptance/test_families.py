"""The contract, section *Families*: children in what a task returns, coordinators, `on_child_failure`, chains, and what refuses them."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import durable
from durable import (
    RERUN,
    Child,
    Config,
    ConfigError,
    ConflictError,
    Context,
    DefinitionError,
    Durable,
    Handle,
    NotStorableError,
    Result,
    Retry,
    RunCancelledError,
    RunFailedError,
    RunTimedOutError,
    Status,
    TransitionError,
    ValidationError,
    chain,
    step,
)
from durable.config import EngineSettings, PayloadSettings
from durable.store import MemoryStore
from durable.testing.crash import crash_everywhere
from tests.acceptance.contract_support import lives, store_of, until_status

MakeApp = Callable[..., Durable]
QUICK = Config(engine=EngineSettings(shutdown_grace_seconds=0.05, cancel_grace_seconds=0.1))

#: What happened outside the engine, in this order.
notes: list[Any] = []
#: Tasks that a test made: one that nobody refers to is not known to the engine.
kept: list[Any] = []


@pytest.fixture(autouse=True)
def _no_notes() -> None:
    notes.clear()
    kept.clear()


@pytest.fixture(params=["memory", "folder", "postgres"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> MakeApp:
    """Makes an application; called again, another one on the same store."""
    make_store = store_of(request, tmp_path)

    def make(config: Config = QUICK, **options: Any) -> Durable:
        return Durable(make_store(), config=config, **options)

    return make


@pytest.fixture(params=["memory", "folder", "postgres"])
async def app(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Durable]:
    async with Durable(store_of(request, tmp_path)()) as opened:
        yield opened


def family(function: Any = None, /, **options: Any) -> Any:
    """A task with a name that no other test's task has."""

    def decorate(body: Any) -> Any:
        kept.append(durable.task(name=f"accept_family_{body.__name__}", **options)(body))
        return kept[-1]

    return decorate if function is None else decorate(function)


async def closed(handle: Handle[Any]) -> durable.RunInfo:
    """Wait until the run is closed."""
    async with asyncio.timeout(5):
        while not (info := await handle.info()).closed:
            await asyncio.sleep(0.002)
    return info


async def names(handle: Handle[Any]) -> list[str]:
    """The names of the run's events."""
    return [event.name async for event in handle.events()]


async def by_task(app: Durable, task: Any) -> list[durable.RunInfo]:
    """All runs of a task."""
    return [info async for info in app.runs(task=task)]


# -- leaves


@family
async def double(n: int) -> int:
    notes.append(("double", n))
    return 2 * n


@family
async def slowly(n: int, seconds: float) -> int:
    await asyncio.sleep(seconds)
    return n


@family
async def fails(message: str) -> int:
    raise LookupError(message)


@family(timeout=0.01)
async def times_out() -> int:
    await asyncio.sleep(60)
    return 0


@family
async def blocks(ctx: Context, name: str = "go") -> Any:
    notes.append(("blocks", name))
    return await ctx.wait_for(name)


@family
async def nothing() -> None:
    return None


# -- where children may be


@dataclass
class Pair:
    label: str
    left: Child[int]
    right: Child[int] | None = None


@dataclass(frozen=True, slots=True)
class Frozen:
    child: Child[int]
    rest: tuple[Child[int], ...] = ()


class Named(NamedTuple):
    label: str
    child: Child[int]


@dataclass
class Deep:
    pairs: dict[str, list[Pair]]
    extra: tuple[int, dict[str, Child[int]]]


@family
async def returns_dataclass() -> Pair:
    return Pair("both", double.child(1), double.child(2))


@family
async def returns_half() -> Pair:
    return Pair("one", double.child(1))


@family
async def returns_frozen() -> Frozen:
    return Frozen(double.child(1), (double.child(2), double.child(3)))


@family
async def returns_named() -> Named:
    return Named("named", double.child(1))


@family
async def returns_list() -> list[Child[int]]:
    return [double.child(n) for n in range(1, 5)]


@family
async def returns_tuple() -> tuple[str, Child[int], Child[int]]:
    return "a", double.child(1), double.child(2)


@family
async def returns_dict() -> dict[str, Child[int]]:
    return {"z": double.child(1), "a": double.child(2)}


@family
async def returns_deep() -> Deep:
    pairs = {"z": [Pair("1", double.child(1), double.child(2)), Pair("2", double.child(3))], "a": []}
    return Deep(pairs, (7, {"last": double.child(4)}))


@family
async def returns_child() -> Child[int]:
    return double.child(1)


@family
async def returns_untyped():  # type: ignore[no-untyped-def]
    return {"list": [double.child(1), (double.child(2), {"three": double.child(3)})]}


@pytest.mark.parametrize(
    ("parent", "numbers", "read"),
    [
        (returns_dataclass, [1, 2], lambda v: isinstance(v, Pair) and [v.left.result, v.right.result]),
        (returns_half, [1], lambda v: isinstance(v, Pair) and v.right is None and [v.left.result]),
        (
            returns_frozen,
            [1, 2, 3],
            lambda v: (
                isinstance(v, Frozen) and isinstance(v.rest, tuple) and [v.child.result, *(c.result for c in v.rest)]
            ),
        ),
        (returns_named, [1], lambda v: isinstance(v, Named) and v.label == "named" and [v.child.result]),
        (returns_list, [1, 2, 3, 4], lambda v: isinstance(v, list) and [c.result for c in v]),
        (returns_tuple, [1, 2], lambda v: isinstance(v, tuple) and v[0] == "a" and [c.result for c in v[1:]]),
        (returns_dict, [1, 2], lambda v: list(v) == ["z", "a"] and [c.result for c in v.values()]),
        (
            returns_deep,
            [1, 2, 3, 4],
            lambda v: (
                isinstance(v, Deep)
                and v.pairs["a"] == []
                and v.extra[0] == 7
                and [
                    v.pairs["z"][0].left.result,
                    v.pairs["z"][0].right.result,
                    v.pairs["z"][1].left.result,
                    v.extra[1]["last"].result,
                ]
            ),
        ),
        (returns_child, [1], lambda v: isinstance(v, Child) and [v.result]),
        (
            returns_untyped,
            [1, 2, 3],
            lambda v: [v["list"][0].result, v["list"][1][0].result, v["list"][1][1]["three"].result],
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_children_may_be_anywhere_in_the_value(app: Durable, parent: Any, numbers: list[int], read: Any) -> None:
    """The result is the returned value, in its type and order, with its children resolved."""
    handle = await parent.start()
    value = await handle
    assert read(value) == [2 * n for n in numbers]
    runs = await handle.children()
    assert [(await run.info()).task_name for run in runs] == [double.name] * len(numbers)
    assert [await run for run in runs] == [2 * n for n in numbers]
    for run in runs:
        info = await run.info()
        assert info.parent_id == handle.run_id and info.closed
    assert sorted(notes) == [("double", n) for n in numbers], "each child ran once"
    again = await (await app.get(handle.run_id))
    assert read(again) == [2 * n for n in numbers]


async def test_children_in_a_pydantic_model(app: Durable) -> None:
    """Of which the fields are annotated `Child[int]`."""
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model(
        "AcceptModel", child=(Child[int], ...), others=(list[Child[int]], ...), label=(str, "x"), __module__=__name__
    )
    globals()["AcceptModel"] = model

    async def body() -> Any:
        return model(child=double.child(1), others=[double.child(2), double.child(3)])

    body.__annotations__["return"] = model
    handle = await durable.task(name="accept_family_pydantic")(body).start()
    value = await handle
    assert isinstance(value, model) and value.label == "x"
    assert [value.child.result, *(child.result for child in value.others)] == [2, 4, 6]


async def test_a_resolved_child(app: Durable) -> None:
    """What can be asked of it, and that it survives being copied and pickled."""
    handle = await returns_dataclass.start()
    value = await handle
    [left, right] = await handle.children()
    for child, run, result in ((value.left, left, 2), (value.right, right, 4)):
        assert (child.run_id, child.status, child.ok, child.result, child.error) == (
            run.run_id,
            Status.COMPLETED,
            True,
            result,
            None,
        )
        assert isinstance(child.status, Status)
    assert value.left != value.right
    copied, pickled = copy.deepcopy(value), pickle.loads(pickle.dumps(value))
    assert copied.left.result == pickled.left.result == 2


async def test_a_child_that_is_not_resolved(app: Durable) -> None:
    """Says what to do, also outside a run, where calling the task calls the plain function."""
    seen: list[str] = []

    @family
    async def asks_early() -> Child[int]:
        child = double.child(1)
        for name in ("run_id", "status", "ok", "result", "error"):
            with pytest.raises(TransitionError) as caught:
                getattr(child, name)
            seen.append(str(caught.value))
        return child

    assert (await (await asks_early.start())).result == 2
    assert len(seen) == 5 and all(seen)
    plain = await returns_dataclass()
    with pytest.raises(TransitionError):
        plain.left.result
    assert notes == [("double", 1)], "a plain call starts nothing"


async def test_order_is_the_order_of_the_value(app: Durable) -> None:
    """Whichever ends first."""

    @family
    async def racing() -> list[Child[int]]:
        return [slowly.child(n, 0.05 - 0.01 * n) for n in range(5)]

    handle = await racing.start()
    assert [child.result for child in await handle] == [0, 1, 2, 3, 4]
    assert [await run for run in await handle.children()] == [0, 1, 2, 3, 4]


async def test_children_run_in_parallel(app: Durable) -> None:
    """All are running at once, and the parent waits."""

    @family
    async def parallel() -> list[Child[Any]]:
        return [blocks.child(f"go{n}") for n in range(10)]

    handle = await parallel.start()
    await until_status(handle, "waiting_for_children")
    children = await handle.children()
    for child in children:
        await until_status(child, "running")
    for n, child in enumerate(children):
        await child.send(f"go{n}", n)
    assert [child.result for child in await handle] == list(range(10))


async def test_the_same_child_twice(app: Durable) -> None:
    """One object in two places is one run; the same call made twice is two."""

    @family
    async def twice() -> Pair:
        child = double.child(4)
        return Pair("twice", child, child)

    @family
    async def two() -> Pair:
        return Pair("two", double.child(4), double.child(4))

    handle = await twice.start()
    value = await handle
    assert value.left.result == value.right.result == 8 and value.left.run_id == value.right.run_id
    assert len(await handle.children()) == 1 and notes == [("double", 4)]
    handle = await two.start()
    value = await handle
    assert value.left.run_id != value.right.run_id and len(await handle.children()) == 2


async def test_a_child_made_once_and_returned_by_two_runs(app: Durable) -> None:
    """Is two runs, or a clear error; but never one run that two parents wait for."""
    shared = double.child(4)

    @family
    async def shares() -> Child[int]:
        return shared

    first = await shares.start()
    assert (await first).result == 8
    second = await shares.start()
    try:
        value = await second
    except RunFailedError:
        return
    assert value.result == 8
    assert value.run_id not in [child.run_id for child in await first.children()], (
        "the second run got the first one's child"
    )
    assert len(await second.children()) == 1


async def test_a_child_that_a_failed_attempt_returned_is_not_started(app: Durable) -> None:
    """Only what the successful attempt returns is started."""

    @family(retry=Retry(3, delay=0.001))
    async def second_try(ctx: Context) -> list[Child[int]]:
        children = [double.child(ctx.attempt)]
        if ctx.attempt < 3:
            raise ValueError("again")
        return children

    handle = await second_try.start()
    assert [child.result for child in await handle] == [6]
    assert notes == [("double", 3)] and len(await by_task(app, double)) == 1


# -- no children


@dataclass
class Many:
    label: str
    children: list[Child[int]] = field(default_factory=list)


def total(many: Many) -> int:
    notes.append("total")
    return sum(child.result for child in many.children)


@family(on_children_complete=total)
async def summing(numbers: list[int]) -> Many:
    return Many("sum", [double.child(n) for n in numbers])


@family
async def plain_many(numbers: list[int]) -> Many:
    return Many("plain", [double.child(n) for n in numbers])


async def test_no_children(app: Durable) -> None:
    """Without coordinator the run is complete; with one it runs all the same."""
    handle = await plain_many.start([])
    assert await handle == Many("plain")
    assert "waiting" not in await names(handle)
    handle = await summing.start([])
    assert await handle == 0 and notes == ["total"]
    assert await handle.children() == []
    assert (await closed(handle)).status == "completed"


# -- coordinators


async def total_async(many: Many) -> int:
    return sum(child.result for child in many.children)


async def total_with_context(ctx: Context, many: Many) -> list[Any]:
    await ctx.emit("combining", {"n": len(many.children)})
    return [ctx.run_id, sum(child.result for child in many.children)]


def total_sync_with_context(ctx: Context, many: Many) -> list[Any]:
    return [ctx.run_id, sum(child.result for child in many.children)]


@family
async def total_task(many: Many) -> int:
    return sum(child.result for child in many.children)


@family
async def total_task_with_context(ctx: Context, many: Many) -> list[Any]:
    return [ctx.task_name, sum(child.result for child in many.children)]


def add_one(value: Any) -> Any:
    return value.result + 1 if isinstance(value, Child) else value + 1


@family(on_children_complete=add_one)
async def total_task_with_coordinator(many: Many) -> int:
    return sum(child.result for child in many.children)


@family(on_children_complete=add_one)
async def total_parent_with_coordinator(many: Many) -> Child[int]:
    return double.child(sum(child.result for child in many.children))


async def total_by_children(many: Many) -> Many:
    return Many("again", [double.child(child.result) for child in many.children])


def parent_with(name: str, coordinator: Any, **options: Any) -> Any:
    """A parent of doubles with this coordinator."""

    async def parent(numbers: list[int]) -> Many:
        return Many("sum", [double.child(n) for n in numbers])

    kept.append(durable.task(name=f"accept_family_with_{name}", on_children_complete=coordinator, **options)(parent))
    return kept[-1]


SIMPLE = {
    "function": parent_with("function", total),
    "async": parent_with("async", total_async),
    "task": parent_with("task", total_task),
    "lambda": parent_with("lambda", lambda many: sum(child.result for child in many.children)),
}


@pytest.mark.parametrize("kind", SIMPLE)
@pytest.mark.parametrize("numbers", [[1, 2, 3], []], ids=["children", "none"])
async def test_coordinator(app: Durable, kind: str, numbers: list[int]) -> None:
    """A function, sync or async, or a task: its result is the run's."""
    handle = await SIMPLE[kind].start(numbers)
    assert await handle == 2 * sum(numbers)
    info = await closed(handle)
    assert (info.status, info.error) == ("completed", None)
    assert [(await run.info()).task_name for run in await handle.children()][: len(numbers)] == [double.name] * len(
        numbers
    )


@pytest.mark.parametrize("coordinator", [total_with_context, total_sync_with_context])
async def test_coordinator_with_context(app: Durable, coordinator: Any) -> None:
    """A function runs as part of the run: its context is the run's, and so are its events."""
    parent = parent_with(coordinator.__name__, coordinator)
    handle = await parent.start([1, 2])
    assert await handle == [handle.run_id, 6]
    if coordinator is total_with_context:
        events = [(event.name, event.data) async for event in handle.events()]
        assert ("combining", {"n": 2}) in events and events[-1][0] == "completed"


async def test_coordinator_task_with_context(app: Durable) -> None:
    """A task that coordinates sees its own context."""
    handle = await parent_with("task_context", total_task_with_context).start([1, 2])
    assert await handle == [total_task_with_context.name, 6]


@pytest.mark.parametrize("numbers", [[1, 2], []], ids=["children", "none"])
async def test_coordinator_with_a_coordinator(app: Durable, numbers: list[int]) -> None:
    """A task that coordinates may have a coordinator of its own, with children and without."""
    handle = await parent_with("nested", total_task_with_coordinator).start(numbers)
    assert await handle == 2 * sum(numbers) + 1
    handle = await parent_with("nested_parent", total_parent_with_coordinator).start(numbers)
    assert await handle == 4 * sum(numbers) + 1


@pytest.mark.parametrize("kind", ["function", "task"])
async def test_coordinator_that_returns_children(app: Durable, kind: str) -> None:
    """Its children are started, too, and the run's result is what it returned, resolved."""
    coordinator = total_by_children if kind == "function" else family(total_by_children)
    handle = await parent_with(f"children_by_{kind}", coordinator).start([1, 2])
    value = await handle.wait(timeout=10)
    assert isinstance(value, Many) and value.label == "again"
    assert [child.result for child in value.children] == [4, 8]
    assert (await closed(handle)).status == "completed"
    again = await (await app.get(handle.run_id))
    assert [child.result for child in again.children] == [4, 8]


async def test_coordinator_with_steps_and_children_in_its_body(app: Durable) -> None:
    """A coordinator function may do what a body may: steps, awaited children, durable.sleep, events, map."""

    @step(name="accept_family_note")
    async def note(n: int) -> int:
        notes.append(("note", n))
        return n

    async def busy(ctx: Context, many: Many) -> list[int]:
        first = await note(many.children[0].result)
        await durable.sleep(0.01)
        awaited = await double(10)
        await ctx.emit("half")
        return [first, awaited, *await durable.map(double, [child.result for child in many.children], limit=1)]

    handle = await parent_with("busy", busy).start([1, 2])
    assert await handle == [2, 20, 4, 8]
    assert notes.count(("note", 2)) == 1


async def test_coordinator_is_retried_as_the_task_says(app: Durable) -> None:
    """`retry=` of a coordinator that is a task holds for it, and the body of the parent is not run again."""

    @family(retry=Retry(3, delay=0.001))
    async def shaky(ctx: Context, many: Many) -> int:
        notes.append(("attempt", ctx.attempt))
        if ctx.attempt < 3:
            raise ConnectionError("again")
        return sum(child.result for child in many.children)

    handle = await parent_with("shaky", shaky).start([1])
    assert await handle == 2
    assert notes == [("double", 1), ("attempt", 1), ("attempt", 2), ("attempt", 3)]


@pytest.mark.parametrize("kind", ["function", "task"])
async def test_coordinator_that_fails(app: Durable, kind: str) -> None:
    """The run shows its failure, and the children stay completed."""

    async def broken(many: Many) -> int:
        raise ZeroDivisionError("in the coordinator")

    coordinator = broken if kind == "function" else family(broken)
    handle = await parent_with(f"broken_{kind}", coordinator).start([1])
    with pytest.raises(RunFailedError) as caught:
        await handle.wait(timeout=5)
    assert caught.value.error_type == "builtins.ZeroDivisionError" and "in the coordinator" in caught.value.message
    assert "raise ZeroDivisionError" in caught.value.traceback
    info = await closed(handle)
    assert info.status == "on_children_complete_failed" and "in the coordinator" in (info.error or "")
    assert await (await handle.children())[0].status() == "completed"


@pytest.mark.parametrize("kind", ["function", "task"])
async def test_coordinator_that_times_out(app: Durable, kind: str) -> None:
    """A task that coordinates has its own time limit. The function of a task with a limit is bounded as well, and never hangs."""

    async def endless(many: Many) -> int:
        await asyncio.sleep(60)
        return 0

    if kind == "function":
        parent = parent_with("endless_function", endless, timeout=0.1)
    else:
        parent = parent_with("endless_task", family(timeout=0.1)(endless))
    handle = await parent.start([1])
    with pytest.raises((RunFailedError, RunTimedOutError)):
        await handle.wait(timeout=5)
    assert (await closed(handle)).status == "on_children_complete_failed"


# -- failing children

KINDS = {"failed": fails, "timed_out": times_out, "cancelled": blocks}
ERRORS = {"failed": RunFailedError, "timed_out": RunTimedOutError, "cancelled": RunCancelledError}


def outcomes(children: list[Child[Any]]) -> list[Any]:
    notes.append("coordinated")
    return [
        [str(child.status), child.ok, None if child.error is None else type(child.error).__name__] for child in children
    ]


async def bad_family(kind: str) -> list[Child[Any]]:
    bad = fails.child("inner") if kind == "failed" else KINDS[kind].child()
    return [double.child(1), bad, slowly.child(3, 0.05)]


async def strict_family(kind: str) -> list[Child[Any]]:
    bad = fails.child("inner") if kind == "failed" else KINDS[kind].child()
    return [blocks.child("never"), bad, slowly.child(3, 30)]


continuing = durable.task(name="accept_family_continuing", on_child_failure="continue", on_children_complete=outcomes)(
    bad_family
)
continuing_alone = durable.task(name="accept_family_continuing_alone", on_child_failure="continue")(bad_family)
stopping = durable.task(name="accept_family_stopping", on_children_complete=outcomes)(strict_family)
stopping_alone = durable.task(name="accept_family_stopping_alone")(strict_family)


async def cancel_second(handle: Handle[Any], kind: str) -> None:
    if kind == "cancelled":
        await until_status(handle, "waiting_for_children")
        await (await handle.children())[1].cancel("not needed")


@pytest.mark.parametrize("kind", KINDS)
async def test_continue_with_a_coordinator(app: Durable, kind: str) -> None:
    """It runs when all have ended and sees every outcome."""
    handle = await continuing.start(kind)
    await cancel_second(handle, kind)
    assert await handle.wait(timeout=5) == [
        ["completed", True, None],
        [kind, False, ERRORS[kind].__name__],
        ["completed", True, None],
    ]
    assert notes.count("coordinated") == 1
    assert (await closed(handle)).status == "completed"


@pytest.mark.parametrize("kind", KINDS)
async def test_continue_without_a_coordinator(app: Durable, kind: str) -> None:
    """The result is the value with every outcome; the failed child's result raises what waiting for it raises."""
    handle = await continuing_alone.start(kind)
    await cancel_second(handle, kind)
    good, bad, slow = await handle.wait(timeout=5)
    assert (good.result, slow.result, bad.ok, bad.status) == (2, 3, False, kind)
    with pytest.raises(ERRORS[kind]) as by_child:
        bad.result
    with pytest.raises(ERRORS[kind]) as by_handle:
        await (await app.get(bad.run_id))
    assert str(by_child.value) == str(by_handle.value) == str(bad.error)
    if kind == "failed":
        assert (bad.error.error_type, bad.error.message) == ("builtins.LookupError", "inner")
        assert "raise LookupError" in bad.error.traceback
    if kind == "cancelled":
        assert "not needed" in str(bad.error)


@pytest.mark.parametrize("parent", [stopping, stopping_alone], ids=["coordinator", "alone"])
@pytest.mark.parametrize("kind", KINDS)
async def test_fail(app: Durable, parent: Any, kind: str) -> None:
    """The first child that fails ends the parent, cancels its unfinished siblings, and no coordinator runs."""
    handle = await parent.start(kind)
    await cancel_second(handle, kind)
    with pytest.raises(RunFailedError) as caught:
        await handle.wait(timeout=5)
    first, bad, last = await handle.children()
    if kind == "failed":
        assert "inner" in caught.value.message
    assert bad.run_id in str(caught.value) or KINDS[kind].name in str(caught.value), (
        f"which child failed is not told: {caught.value}"
    )
    info = await closed(handle)
    assert info.status == "children_failed" and info.error
    for sibling in (first, last):
        with pytest.raises(RunCancelledError):
            await sibling.wait(timeout=5)
        assert (await closed(sibling)).status == "cancelled"
    assert await bad.status() == kind
    assert "coordinated" not in notes
    assert (await names(handle))[-1] == "children_failed"


async def test_fail_leaves_completed_siblings_alone(app: Durable) -> None:
    """They stay completed."""

    @family
    async def late_failure() -> list[Child[int]]:
        return [double.child(1), fails.options(delay=0.1).child("late")]

    handle = await late_failure.start()
    with pytest.raises(RunFailedError):
        await handle
    assert [await run.status() for run in await handle.children()] == ["completed", "failed"]


async def test_many_children_fail_at_once(app: Durable) -> None:
    """The parent ends once, with the failure of one of them."""

    @family
    async def all_fail() -> list[Child[int]]:
        return [fails.child(str(n)) for n in range(50)]

    handle = await all_fail.start()
    with pytest.raises(RunFailedError):
        await handle
    await closed(handle)
    events = await names(handle)
    assert events.count("children_failed") == 1 and events[-1] == "children_failed"
    for run in await handle.children():
        assert (await closed(run)).status in {"failed", "cancelled"}


async def test_a_child_that_fails_and_is_retried(app: Durable) -> None:
    """Only its last attempt counts."""

    @family(retry=Retry(3, delay=0.01))
    async def third_time(ctx: Context) -> int:
        if ctx.attempt < 3:
            raise ConnectionError("again")
        return ctx.attempt

    @family
    async def patient() -> Child[int]:
        return third_time.child()

    assert (await (await patient.start())).result == 3


# -- nested families


@dataclass
class Node:
    label: str
    children: list[Child[Any]]


@family
async def grown(depth: int, width: int) -> Node:
    if depth == 0:
        return Node("leaf", [])
    return Node(f"level {depth}", [grown.child(depth - 1, width) for _ in range(width)])


def leaves(node: Node) -> int:
    return 1 if node.label == "leaf" else sum(leaves(child.result) for child in node.children)


async def test_three_deep_without_coordinators(app: Durable) -> None:
    """The children's results have their children resolved, down to the leaves."""
    handle = await grown.start(3, 3)
    node = await handle.wait(timeout=10)
    assert leaves(node) == 27
    again = await (await app.get(handle.run_id)).wait()
    assert leaves(again) == 27
    assert len(await by_task(app, grown)) == 40


def count_leaves(node: Node) -> int:
    return 1 if node.label == "leaf" else sum(child.result for child in node.children)


@family(on_children_complete=count_leaves)
async def counted(depth: int, width: int) -> Node:
    if depth == 0:
        return Node("leaf", [])
    return Node(f"level {depth}", [counted.child(depth - 1, width) for _ in range(width)])


async def test_three_deep_with_coordinators(app: Durable) -> None:
    """Each level waits for the one below."""
    handle = await counted.start(3, 3)
    assert await handle.wait(timeout=10) == 27
    for child in await handle.children():
        assert await child == 9
        assert (await child.info()).parent_id == handle.run_id


async def test_a_failure_three_deep(app: Durable) -> None:
    """Goes up through every level, and cancels what is beside the way."""

    @family
    async def level(depth: int) -> list[Child[Any]]:
        inner = fails.child("at the bottom") if depth == 0 else level.child(depth - 1)
        return [inner, blocks.child(f"beside {depth}")]

    handle = await level.start(3)
    with pytest.raises(RunFailedError) as caught:
        await handle.wait(timeout=5)
    assert "at the bottom" in str(caught.value)
    infos = [*await by_task(app, level), *await by_task(app, blocks)]
    assert {info.status for info in await by_task(app, level)} == {"children_failed"}
    async with asyncio.timeout(5):
        for info in infos:
            await closed(await app.get(info.run_id))
    assert {info.status for info in await by_task(app, blocks)} == {"cancelled"}


async def test_recursion_without_families(app: Durable) -> None:
    """A task may await itself in its body, too."""

    @family
    async def factorial(n: int) -> int:
        return 1 if n == 0 else n * await factorial(n - 1)

    assert await (await factorial.start(12)) == 479001600


async def test_recursion_a_hundred_deep(app: Durable) -> None:
    """Families unwind without recursion in the engine."""

    @family(on_children_complete=lambda found: found if isinstance(found, int) else found.result + 1)
    async def dive(depth: int) -> Child[int] | int:
        return 0 if depth == 0 else dive.child(depth - 1)

    assert await (await dive.start(100)).wait(timeout=20) == 100


async def test_a_resolved_child_deep_without_coordinators_can_be_read(app: Durable) -> None:
    """A hundred levels, none with a coordinator: the result can be waited for and read to the bottom."""

    @family
    async def sink(depth: int) -> list[Child[Any]]:
        return [] if depth == 0 else [sink.child(depth - 1)]

    value = await (await sink.start(100)).wait(timeout=20)
    depth = 0
    while value:
        value, depth = value[0].result, depth + 1
    assert depth == 100


# -- chains


@family
async def to_text(n: int) -> str:
    notes.append(("to_text", n))
    return str(n)


@family
async def shout(text: str) -> str:
    notes.append(("shout", text))
    return text + "!"


@family
async def measure(text: str) -> int:
    notes.append(("measure", text))
    return len(text)


@step(name="accept_family_chain_step")
async def recorded(n: int) -> int:
    return n + 1


@family
async def link_one(n: int) -> int:
    return await recorded(n)


@family
async def link_two(n: int) -> int:
    return await recorded(n) + await recorded(n + 10)


async def test_chain(app: Durable) -> None:
    """`chain` and `>>` are the same, of whatever grouping; one link is allowed."""
    for pipeline in (
        chain(to_text, shout, measure),
        to_text >> shout >> measure,
        to_text >> (shout >> measure),
        chain(chain(to_text, shout), measure),
    ):
        assert await (await pipeline.start(123)) == 4
    assert await (await chain(to_text).start(5)) == "5"
    handle = await app.start(chain(to_text, shout), n=5)
    assert await handle == "5!"


async def test_an_empty_chain() -> None:
    """And one with what is no task."""
    with pytest.raises(DefinitionError):
        chain()
    with pytest.raises(DefinitionError):
        chain(to_text, "shout")
    with pytest.raises((DefinitionError, TypeError)):
        to_text >> 3


async def test_a_chain_as_a_child_and_in_a_body(app: Durable) -> None:
    """A chain is a task."""

    @family
    async def both() -> tuple[str, Child[int]]:
        return await (to_text >> shout)(7), (to_text >> shout >> measure).child(12)

    text, child = await (await both.start())
    assert (text, child.result) == ("7!", 3)


async def test_a_task_that_nobody_refers_to_any_more(app: Durable) -> None:
    """A run that was started in this process ends, whether or not the program kept the task in a variable."""

    async def forgotten(n: int) -> list[Child[int]]:
        return [durable.task(name="accept_family_forgotten_leaf")(forgotten_leaf).child(n)]

    async def forgotten_leaf(n: int) -> int:
        return n

    handle = await durable.task(name="accept_family_forgotten")(forgotten).start(1)
    assert [child.result for child in await handle.wait(timeout=5)] == [1]


async def test_a_chain_with_options(app: Durable) -> None:
    """`options` of the whole."""
    pipeline = to_text >> shout
    handle = await pipeline.options(key="chained", user="ann").start(1)
    assert await handle == "1!"
    assert (await handle.info()).user == "ann"
    again = await pipeline.options(key="chained", user="ann").start(1)
    assert again == handle
    assert notes == [("to_text", 1), ("shout", "1")]


async def test_a_chain_of_parents(app: Durable) -> None:
    """A link may be a parent with a coordinator; the next gets its result."""
    pipeline = summing >> double
    assert await (await pipeline.start([1, 2])) == 12


async def test_a_chain_with_a_failing_link(app: Durable) -> None:
    """The later links do not run; the chain shows the failure; a wrong type between links is one, too."""
    handle = await chain(to_text, fails, measure).start(1)
    with pytest.raises(RunFailedError) as caught:
        await handle
    assert "1" in caught.value.message and "LookupError" in str(caught.value.error_type) + caught.value.message
    assert [note[0] for note in notes] == ["to_text"]
    info = await closed(handle)
    assert info.status in {"failed", "children_failed"} and info.error
    handle = await chain(to_text, double).start(1)
    with pytest.raises(RunFailedError):
        await handle


async def test_a_chain_with_a_link_that_times_out(app: Durable) -> None:
    """The chain ends."""
    handle = await chain(nothing_then, times_out_then).start(1)
    with pytest.raises((RunFailedError, RunTimedOutError)):
        await handle.wait(timeout=5)


@family
async def nothing_then(n: int) -> int:
    return n


@family(timeout=0.01)
async def times_out_then(n: int) -> int:
    await asyncio.sleep(60)
    return n


async def test_a_chain_is_cancelled_with_its_link(app: Durable) -> None:
    """Cancel reaches the link that runs, and no further one begins."""

    @family
    async def holding(text: str) -> str:
        notes.append("holding")
        await asyncio.sleep(60)
        return text

    handle = await chain(to_text, holding, shout).start(1)
    async with asyncio.timeout(5):
        while "holding" not in notes:
            await asyncio.sleep(0.002)
    await handle.cancel()
    with pytest.raises(RunCancelledError):
        await handle
    [info] = await by_task(app, holding)
    assert (await closed(await app.get(info.run_id))).status == "cancelled"
    assert ("shout", "1") not in notes


async def test_a_chain_recovers_midway(reopen: MakeApp) -> None:
    """After a restart it goes on with the link in hand; those before it do not run again."""

    @family
    async def gate(ctx: Context, text: str) -> str:
        notes.append("gate")
        return text + await ctx.wait_for("open")

    pipeline = chain(to_text, gate, shout)
    async with reopen() as app:
        handle = await app.start(pipeline, 1)
        async with asyncio.timeout(5):
            while "gate" not in notes:
                await asyncio.sleep(0.002)
    async with reopen() as app:
        handle = await app.get(handle.run_id)
        [info] = await by_task(app, gate)
        await (await app.get(info.run_id)).send("open", "ed")
        assert await handle.wait(timeout=5) == "1ed!"
    assert [note for note in notes if note != "gate"] == [("to_text", 1), ("shout", "1ed")]


async def test_crash_everywhere_in_a_chain() -> None:
    """Whatever commit it crashes at."""
    report = await crash_everywhere(chain(link_one, link_two, link_one), 1, config=QUICK)
    assert report.result == 17 and report.crashes == 2 * report.commits


async def crash_body(n: int) -> Many:
    return Many("crash", [link_one.child(await recorded(n)), link_two.child(n)])


async def crash_end(many: Many) -> list[int]:
    return [await recorded(sum(child.result for child in many.children)), await link_one(100)]


crash_coordinator_task = durable.task(name="accept_family_crash_end")(crash_end)
crashing = durable.task(name="accept_family_crashing", on_children_complete=crash_end)(crash_body)
crashing_task = durable.task(name="accept_family_crashing_task", on_children_complete=crash_coordinator_task)(
    crash_body
)


@pytest.mark.parametrize("parent", [crashing, crashing_task], ids=["function", "task"])
async def test_crash_everywhere_in_a_family(parent: Any) -> None:
    """A family with a coordinator, crashed before and after each commit, comes to the same result."""
    report = await crash_everywhere(parent, 1, config=QUICK)
    assert report.result == [18, 101]
    assert report.crashes == 2 * report.commits


# -- typed


@dataclass(frozen=True)
class Report:
    total: int
    words: tuple[str, ...]


@family
async def reports(n: int) -> Report:
    return Report(n, ("a", "b"))


@dataclass
class Holder:
    report: Child[Report]
    many: list[Child[Report]]


async def hold() -> Holder:
    return Holder(reports.child(1), [reports.child(2)])


async def combine_reports(holder: Holder) -> Report:
    assert isinstance(holder, Holder) and isinstance(holder.report.result, Report)
    return Report(holder.report.result.total + holder.many[0].result.total, holder.report.result.words)


holds = durable.task(name="accept_family_holds")(hold)
holds_combined = durable.task(name="accept_family_holds_combined", on_children_complete=combine_reports)(hold)


async def test_typed_results(app: Durable) -> None:
    """The values come back in their classes: in the coordinator, from the child, from the handle, and from a handle that was found."""
    value = await (await holds.start())
    assert type(value) is Holder and value.report.result == Report(1, ("a", "b"))
    assert type(value.many[0].result) is Report
    handle = await holds_combined.start()
    expected = Report(3, ("a", "b"))
    assert await handle == expected and await (await app.get(handle.run_id)).wait() == expected


async def test_results_are_there_after_a_restart(reopen: MakeApp) -> None:
    """And in another process."""
    async with reopen() as app:
        handle = await app.start(holds)
        await handle
        failing = await app.start(continuing_alone, "failed")
        await failing
    async with reopen() as app:
        value = await (await app.get(handle.run_id))
        assert value.report.result == Report(1, ("a", "b"))
        assert len(await (await app.get(handle.run_id)).children()) == 2
        found = await (await app.get(failing.run_id))
        assert [child.ok for child in found] == [True, False, True] and found[1].error.message == "inner"


# -- mixed with awaited children


async def test_awaited_and_returned_children(app: Durable) -> None:
    """Both are children; those awaited in the body come first."""

    @family
    async def mixed() -> list[Any]:
        first = await double(1)
        rest = await durable.map(double, [2, 3], limit=2)
        return [first, rest, double.child(4), [double.child(5)]]

    handle = await mixed.start()
    value = await handle
    assert value[:2] == [2, [4, 6]] and value[2].result == 8 and value[3][0].result == 10
    assert [await run for run in await handle.children()] == [2, 4, 6, 8, 10]


async def test_a_started_run_does_not_count(app: Durable) -> None:
    """What a body started with `start()` lives on its own: the parent does not wait for it, nor fail with it."""

    @family
    async def starts() -> Child[int]:
        await blocks.start("alone")
        await fails.start("alone")
        return double.child(1)

    handle = await starts.start()
    assert (await handle.wait(timeout=5)).result == 2
    [info] = await by_task(app, blocks)
    assert info.parent_id == handle.run_id
    assert info.status in {"ready", "running"}


async def test_a_child_awaited_that_fails_and_is_caught(app: Durable) -> None:
    """It does not count as a child that failed."""

    @family
    async def catches() -> Child[int]:
        try:
            await fails("caught")
        except RunFailedError:
            notes.append("caught")
        return double.child(1)

    assert (await (await catches.start())).result == 2 and "caught" in notes


@step(name="accept_family_triple")
async def triple(n: int) -> int:
    return 3 * n


async def test_map_over_tasks_and_steps(app: Durable) -> None:
    """In order, with at most `limit` at once; a failure is raised."""
    running, most = 0, 0

    @family
    async def watched(n: int) -> int:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await asyncio.sleep(0.002)
        running -= 1
        return -n

    @family
    async def maps() -> list[Any]:
        return [await durable.map(watched, range(12), limit=3), await durable.map(triple, range(5), limit=2)]

    @family
    async def maps_badly() -> list[int]:
        return await durable.map(fails, ["x"], limit=2)

    handle = await maps.start()
    assert await handle == [[-n for n in range(12)], [3 * n for n in range(5)]]
    assert most == 3 and len(await handle.children()) == 12
    handle = await maps_badly.start()
    with pytest.raises(RunFailedError) as caught:
        await handle
    assert "x" in str(caught.value)


# -- what is seen from outside


async def test_states_and_events_of_a_parent(app: Durable) -> None:
    """The parent is seen waiting, then coordinating, then completed; `seq` rises, nothing is seen twice."""

    async def gated(ctx: Context, child: Child[Any]) -> Any:
        return [child.result, await ctx.wait_for("coordinate")]

    @family(on_children_complete=gated)
    async def watched_parent() -> Child[Any]:
        return blocks.child()

    handle = await watched_parent.start()
    live = asyncio.create_task(collect(handle))
    await until_status(handle, "waiting_for_children")
    info = await handle.info()
    assert not info.closed and info.parent_id is None and info.ended_at is None
    [child] = await handle.children()
    assert (await child.info()).parent_id == handle.run_id
    await child.send("go", 1)
    await until_status(handle, "waiting_for_on_children_complete")
    await handle.send("coordinate", 2)
    assert await handle.wait(timeout=5) == [1, 2]
    info = await closed(handle)
    assert info.status == "completed" and info.ended_at is not None
    seen = await live
    assert seen == await collect(handle)
    assert [event.seq for event in seen] == sorted({event.seq for event in seen})
    found = [event.name for event in seen]
    assert found[:2] == ["created", "started"] and found[-1] == "completed" and "waiting" in found
    everything = [event.seq async for event in handle.events(steps=True)]
    assert everything == list(range(1, len(everything) + 1))
    late = [event async for event in handle.events(after=seen[1].seq)]
    assert late == seen[2:]


async def collect(handle: Handle[Any]) -> list[Any]:
    return [event async for event in handle.events()]


async def test_a_parent_of_many(app: Durable) -> None:
    """A thousand children, in order; each told once."""

    @family(on_children_complete=lambda children: [child.result for child in children])
    async def thousand() -> list[Child[int]]:
        return [double.child(n) for n in range(1000)]

    handle = await thousand.start()
    assert await handle.wait(timeout=30) == [2 * n for n in range(1000)]
    assert len(notes) == 1000 and len(await handle.children()) == 1000


async def test_a_parent_that_waits_takes_no_slot(tmp_path: Path) -> None:
    """With one slot a family three deep, with coordinators, comes to its end; so do many at once."""
    async with Durable(tmp_path / "one", limits=durable.Limits(max_running=1)) as app:
        assert await (await app.start(counted, 3, 2)).wait(timeout=20) == 8
        handles = [await app.start(summing, [1, 2]) for _ in range(10)]
        assert [await handle.wait(timeout=20) for handle in handles] == [6] * 10
        assert await (await app.start(chain(to_text, shout), 1)).wait(timeout=10) == "1!"


# -- keys and options


async def test_keyed_children(app: Durable) -> None:
    """A child's key finds it; a parent that runs again under another id gets the same run, or is told why not."""

    @family
    async def keyed(n: int) -> Child[int]:
        return double.options(key="the child").child(n)

    handle = await keyed.start(3)
    assert (await handle).result == 6
    found = await app.find("the child")
    assert found is not None and found == (await handle.children())[0] and found.key == "the child"
    second = await keyed.start(3)
    value = await second.wait(timeout=5)
    assert value.result == 6 and value.run_id == found.run_id
    assert notes == [("double", 3)], "a key is one run"
    third = await keyed.start(4)
    with pytest.raises(RunFailedError) as caught:
        await third.wait(timeout=5)
    assert caught.value.error_type == f"{ConflictError.__module__}.ConflictError"
    assert await (await app.start(double.options(key="the child"), 3)) == 6


async def test_two_children_of_one_key(app: Durable) -> None:
    """In one value: the same input is one run, another input is a conflict."""

    @family
    async def same(first: int, second: int) -> list[Child[int]]:
        return [double.options(key="twins").child(first), double.options(key="twins").child(second)]

    handle = await same.start(1, 2)
    with pytest.raises(RunFailedError) as caught:
        await handle.wait(timeout=5)
    assert caught.value.error_type == f"{ConflictError.__module__}.ConflictError"
    assert await app.find("twins") is None and notes == [], "nothing of a refused family is started"
    handle = await same.start(3, 3)
    assert [child.result for child in await handle.wait(timeout=5)] == [6, 6]
    assert notes == [("double", 3)]


async def test_options_of_a_child(app: Durable) -> None:
    """user, priority, delay, timeout and retry hold for the child; the parent's user is inherited."""

    @family
    async def looks(ctx: Context) -> list[Any]:
        return [ctx.user, ctx.max_attempts, ctx.key]

    @family(on_child_failure="continue")
    async def optioned() -> dict[str, Child[Any]]:
        return {
            "plain": looks.child(),
            "own": looks.options(user="bob", priority=7, retry=4, delay=0.1).child(),
            "short": blocks.options(timeout=0.02).child(),
        }

    handle = await optioned.options(user="ann", priority=3).start()
    value = await handle.wait(timeout=5)
    assert value["plain"].result == ["ann", 1, None]
    assert value["own"].result == ["bob", 4, None]
    assert value["short"].status == "timed_out"
    infos = {child: await (await app.get(value[child].run_id)).info() for child in value}
    assert infos["own"].priority == 7 and infos["own"].user == "bob"
    own = infos["own"]
    assert own.started_at is not None and (own.started_at - own.created_at).total_seconds() >= 0.09


async def test_an_identity_reaches_the_children(app: Durable) -> None:
    """`run_as` around the start carries over to the children and the coordinator, and its secret is not stored."""

    @family
    async def who() -> Any:
        user = durable.current_user()
        return None if user is None else [user.user, user.secrets["token"]]

    def whose(child: Child[Any]) -> list[Any]:
        user = durable.current_user()
        return [child.result, None if user is None else user.user]

    @family(on_children_complete=whose)
    async def asks() -> Child[Any]:
        return who.child()

    with durable.run_as(durable.UserContext("eve", {"token": "hidden"})):
        handle = await asks.start()
    assert await handle == [["eve", "hidden"], "eve"]
    assert (await (await handle.children())[0].info()).user == "eve"


# -- what is refused


async def test_wrong_input_of_a_child(app: Durable) -> None:
    """Is refused where the child is made, with the field's name; nothing is started."""

    @family
    async def wrong(kind: str) -> list[Child[int]]:
        good = double.child(1)
        if kind == "type":
            return [good, double.child("x")]
        if kind == "missing":
            return [good, double.child()]
        return [good, double.child(1, 2, 3)]

    for kind in ("type", "missing", "many"):
        handle = await wrong.start(kind)
        with pytest.raises(RunFailedError) as caught:
            await handle
        assert caught.value.error_type in {"durable.errors.ValidationError", "builtins.TypeError"}
        assert await handle.status() == "failed" and await handle.children() == []
    with pytest.raises(ValidationError) as refused:
        double.child("x")
    assert refused.value.field == "n"
    assert notes == []


async def test_a_child_where_none_may_be(app: Durable) -> None:
    """From a step, in an event, as an input, sent, or to another task: a clear error that says what to do."""

    @step(name="accept_family_gives_child")
    async def gives() -> Any:
        return double.child(1)

    @family
    async def misuses(ctx: Context, kind: str) -> Any:
        if kind == "step":
            await gives()
        elif kind == "emit":
            await ctx.emit("event", {"child": double.child(1)})
        elif kind == "child":
            await takes_anything(double.child(1))
        elif kind == "child of child":
            return takes_anything.child(double.child(1))
        return None

    for kind in ("step", "emit", "child", "child of child"):
        handle = await misuses.start(kind)
        with pytest.raises(RunFailedError) as caught:
            pytest.fail(f"{kind}: {await handle.wait(timeout=5)!r}")
        assert caught.value.error_type == f"{NotStorableError.__module__}.NotStorableError", kind
        assert "child" in caught.value.message and "return" in caught.value.message, caught.value.message
    with pytest.raises(NotStorableError):
        await takes_anything.start(double.child(1))
    handle = await blocks.start()
    with pytest.raises(NotStorableError):
        await handle.send("go", double.child(1))
    assert notes in ([], [("blocks", "go")])
    await handle.cancel()


@family
async def takes_anything(value: Any) -> Any:
    return value


@family
async def passes_on(children: list[Child[int]]) -> Any:
    return children


async def test_a_resolved_child_can_be_passed_on(app: Durable) -> None:
    """From a coordinator to a step, to an event, and into its result."""

    @step(name="accept_family_reads")
    async def reads(children: Any) -> int:
        return sum(child.result for child in children)

    async def passing(ctx: Context, children: list[Child[int]]) -> list[Any]:
        await ctx.emit("done", {"children": children})
        return [await reads(children), children]

    @family(on_children_complete=passing)
    async def passed() -> list[Child[int]]:
        return [double.child(1), double.child(2)]

    handle = await passed.start()
    value = await handle.wait(timeout=5)
    assert value[0] == 6 and [child.result for child in value[1]] == [2, 4]
    [data] = [event.data async for event in handle.events() if event.name == "done"]
    assert [child.result for child in data["children"]] == [2, 4]


async def test_a_resolved_child_beside_a_new_one(app: Durable) -> None:
    """A coordinator returns one that ended together with a new one."""

    def goes_on(children: list[Child[int]]) -> list[Child[int]]:
        return [*children, double.child(children[0].result)]

    @family(on_children_complete=goes_on)
    async def both_kinds() -> list[Child[int]]:
        return [double.child(1)]

    handle = await both_kinds.start()
    assert [child.result for child in await handle.wait(timeout=5)] == [2, 4]
    assert len(await handle.children()) == 2


async def test_wrong_definitions() -> None:
    """A setting that cannot be is an error where it is written."""
    with pytest.raises((DefinitionError, ConfigError)):
        durable.task(name="accept_family_wrong_1", on_child_failure="ignore")(lambda: None)
    with pytest.raises((DefinitionError, ConfigError, TypeError)):
        durable.task(name="accept_family_wrong_2", on_children_complete=3)(lambda: None)


async def test_generators_and_recoveries_return_children(app: Durable) -> None:
    """A generator task's `Result` may hold children, and they are waited for."""

    @family
    async def generates() -> AsyncIterator[Any]:
        yield "tick", 1
        yield Result([double.child(1)])

    handle = await generates.start()
    value = await handle.wait(timeout=5)
    assert [child.result for child in value] == [2]


async def test_a_plain_def_returns_children(app: Durable) -> None:
    """From its thread."""

    @family(on_children_complete=total)
    def threaded(numbers: list[int]) -> Many:
        return Many("thread", [double.child(n) for n in numbers])

    assert await (await threaded.start([1, 2])) == 6


async def test_a_recovery_handler_may_return_children(reopen: MakeApp) -> None:
    """What it returns stands for what the body would have."""
    life: list[int] = []

    async def handler(ctx: Context) -> Any:
        return RERUN if len(life) > 1 else [double.child(21)]

    @family(recovery=handler)
    async def interrupted() -> list[Child[int]]:
        life.append(1)
        await asyncio.sleep(60)
        return []

    async with reopen() as app:
        handle = await app.start(interrupted)
        async with asyncio.timeout(5):
            while not life:
                await asyncio.sleep(0.002)
    async with reopen() as app:
        value = await (await app.get(handle.run_id)).wait(timeout=5)
        assert [child.result for child in value] == [42]


# -- bounds


def bounded(**settings: Any) -> Config:
    return Config(engine=EngineSettings(**settings))


async def test_too_many_children(tmp_path: Path) -> None:
    """Is a typed failure of the parent that names the bound; nothing is started; as many as the bound are fine."""
    for target in (MemoryStore(), tmp_path / "store"):
        async with Durable(target, config=bounded(children_max=5)) as app:
            handle = await app.start(plain_many, list(range(6)))
            with pytest.raises(RunFailedError) as caught:
                await handle.wait(timeout=5)
            assert caught.value.error_type.startswith("durable.errors.") and "Limit" in caught.value.error_type
            assert "5" in caught.value.message and "children_max" in caught.value.message
            assert await handle.children() == [] and notes == []
            assert (await closed(handle)).status == "failed"
            value = await (await app.start(plain_many, list(range(5)))).wait(timeout=5)
            assert len(value.children) == 5
            notes.clear()


async def test_too_many_children_by_a_coordinator(app: Durable) -> None:
    """The coordinator has failed."""
    async with Durable(MemoryStore(), config=bounded(children_max=2)) as small:

        async def too_many(many: Many) -> list[Child[int]]:
            return [double.child(n) for n in range(3)]

        handle = await small.start(parent_with("too_many", too_many), [1])
        with pytest.raises(RunFailedError) as caught:
            await handle.wait(timeout=5)
        assert "children_max" in caught.value.message
        assert (await closed(handle)).status == "on_children_complete_failed"


@family
async def endless_tree(depth: int) -> Child[Any]:
    notes.append(depth)
    return endless_tree.child(depth + 1)


async def test_too_deep() -> None:
    """Endless recursion ends at the bound, with a typed failure that reaches the root."""
    async with Durable(MemoryStore(), config=bounded(tree_depth_max=5)) as app:
        handle = await app.start(endless_tree, 0)
        with pytest.raises(RunFailedError) as caught:
            await handle.wait(timeout=5)
        assert "tree_depth_max" in str(caught.value), str(caught.value)
        assert (await closed(handle)).status == "children_failed"
        assert notes == [0, 1, 2, 3, 4, 5]
        infos = await by_task(app, endless_tree)
        [deepest] = [info for info in infos if info.status == "failed"]
        assert deepest.error_type is not None and "Limit" in deepest.error_type


@family
async def endless_awaits(depth: int) -> Any:
    notes.append(depth)
    return await endless_awaits(depth + 1)


async def test_too_deep_by_awaiting() -> None:
    """The bound holds for children that are awaited as well."""
    async with Durable(MemoryStore(), config=bounded(tree_depth_max=5)) as app:
        handle = await app.start(endless_awaits, 0)
        with pytest.raises(RunFailedError) as caught:
            await handle.wait(timeout=5)
        assert "tree_depth_max" in str(caught.value)
        assert notes == [0, 1, 2, 3, 4, 5]


@family
async def big(size: int) -> str:
    return "x" * size


@family
async def big_family(count: int, size: int) -> list[Child[str]]:
    return [big.child(size) for _ in range(count)]


@family(on_children_complete=lambda children: "".join(child.result for child in children))
async def big_together(count: int, size: int) -> list[Child[str]]:
    return [big.child(size) for _ in range(count)]


async def test_results_too_large(tmp_path: Path) -> None:
    """A child's, the coordinator's and the returned value: each a clear failure; many results that fit are no problem together."""
    config = Config(payload=PayloadSettings(bytes_max=10_000))
    for target in (MemoryStore(), tmp_path / "store"):
        async with Durable(target, config=config) as app:
            value = await (await app.start(big_family, 20, 5_000)).wait(timeout=5)
            assert all(len(child.result) == 5_000 for child in value)
            handle = await app.start(big_family, 1, 20_000)
            with pytest.raises(RunFailedError) as caught:
                await handle.wait(timeout=5)
            assert await handle.status() == "children_failed"
            assert "large" in str(caught.value) or "bytes" in str(caught.value)
            handle = await app.start(big_together, 4, 5_000)
            with pytest.raises(RunFailedError) as caught:
                await handle.wait(timeout=5)
            assert caught.value.error_type == "durable.errors.PayloadTooLargeError"
            assert (await closed(handle)).status == "on_children_complete_failed"
            handle = await app.start(big_family, 1_000, 1)
            with pytest.raises(RunFailedError) as caught:
                await handle.wait(timeout=5)
            assert caught.value.error_type == "durable.errors.PayloadTooLargeError"
            assert await handle.children() == []
            assert await (await app.start(double, 1)) == 2, "others go on"


async def test_inputs_of_children_too_large() -> None:
    """One input, or all of a family together."""

    @family
    async def feeds(count: int, size: int) -> list[Child[Any]]:
        return [takes_anything.child("x" * size) for _ in range(count)]

    config = Config(payload=PayloadSettings(bytes_max=10_000), engine=EngineSettings(family_bytes_max=50_000))
    async with Durable(MemoryStore(), config=config) as app:
        for count, size in ((1, 20_000), (20, 5_000)):
            handle = await app.start(feeds, count, size)
            with pytest.raises(RunFailedError) as caught:
                await handle.wait(timeout=5)
            assert caught.value.error_type.startswith("durable.errors.")
            assert await handle.children() == [] and await handle.status() == "failed"
        assert len(await (await app.start(feeds, 5, 5_000)).wait(timeout=5)) == 5


# -- restarts


def restart_total(children: list[Child[Any]]) -> Any:
    notes.append("coordinated")
    return [child.result for child in children]


async def restart_gated(ctx: Context, children: list[Child[Any]]) -> Any:
    notes.append("coordinating")
    first = await recorded(1)
    return [first, await ctx.wait_for("end"), *[child.result for child in children]]


async def restart_body() -> list[Child[Any]]:
    notes.append("body")
    return [double.child(1), blocks.child("go")]


restart_gated_task = durable.task(name="accept_family_restart_gated_task")(restart_gated)
RESTARTED = {
    "plain": durable.task(name="accept_family_restart_plain", on_children_complete=restart_total)(restart_body),
    "function": durable.task(name="accept_family_restart_function", on_children_complete=restart_gated)(restart_body),
    "task": durable.task(name="accept_family_restart_task", on_children_complete=restart_gated_task)(restart_body),
}


async def test_a_restart_while_the_parent_waits(reopen: MakeApp) -> None:
    """The body does not run again, completed children neither; the coordinator runs once."""
    async with reopen() as app:
        handle = await app.start(RESTARTED["plain"])
        await until_status(handle, "waiting_for_children")
        children = await handle.children()
        await until_status(children[0], "completed")
        await until_status(children[1], "running")
    async with reopen() as app:
        handle = await app.get(handle.run_id)
        assert await handle.status() == "waiting_for_children"
    async with reopen() as app:
        handle = await app.get(handle.run_id)
        again = await handle.children()
        assert again == children
        await again[1].send("go", 5)
        assert await handle.wait(timeout=5) == [2, 5]
        assert (await closed(handle)).status == "completed"
        assert (await names(handle)).count("completed") == 1
    async with reopen() as app:
        assert await (await app.get(handle.run_id)).wait(timeout=5) == [2, 5]
    assert notes.count("body") == notes.count(("double", 1)) == notes.count("coordinated") == 1


@pytest.mark.parametrize("kind", ["function", "task"])
async def test_a_restart_while_a_coordinator_runs(reopen: MakeApp, kind: str) -> None:
    """It goes on with its recorded steps; body and children do not run again."""
    async with reopen() as app:
        handle = await app.start(RESTARTED[kind])
        await until_status(handle, "waiting_for_children")
        await (await handle.children())[1].send("go", 5)
        await until_status(handle, "waiting_for_on_children_complete")
        async with asyncio.timeout(5):
            while "coordinating" not in notes:
                await asyncio.sleep(0.002)
    async with reopen() as app:
        handle = await app.get(handle.run_id)
        assert await handle.status() == "waiting_for_on_children_complete"
        target = handle
        if kind == "task":
            [info] = await by_task(app, restart_gated_task)
            target = await app.get(info.run_id)
        await target.send("end", 7)
        assert await handle.wait(timeout=5) == [2, 7, 2, 5]
        assert (await names(handle)).count("completed") == 1
    assert notes.count("body") == notes.count(("double", 1)) == 1


async def test_a_restart_with_a_failure_in_between(reopen: MakeApp) -> None:
    """A parent that failed with its child stays so; its cancelled siblings do not run again."""
    async with reopen() as app:
        handle = await app.start(stopping, "failed")
        with pytest.raises(RunFailedError):
            await handle
    notes.clear()
    async with reopen() as app:
        handle = await app.get(handle.run_id)
        assert (await closed(handle)).status == "children_failed"
        for run in await handle.children():
            assert (await closed(run)).status in {"failed", "cancelled"}
    assert notes == []


async def test_many_families_over_many_restarts(reopen: MakeApp) -> None:
    """Closed at random moments; each child and coordinator took effect, and each run has one end."""
    ids: list[str] = []
    for life in range(8):
        async with reopen() as app:
            for _n in range(5):
                ids.append((await app.start(counted, 2, 3)).run_id)
                await asyncio.sleep(0.001 * (life % 3))
            await asyncio.sleep(0.004 * life)
    async with reopen() as app:
        for run_id in ids:
            handle = await app.get(run_id)
            assert await handle.wait(timeout=10) == 9
            events = await names(handle)
            assert events.count("completed") == 1
            assert len(await handle.children()) == 3
        assert len(await by_task(app, counted)) == len(ids) * 13


# -- processes that are killed

KILLED_PROGRAM = """
import random

@step
async def effect(run: str, n: int) -> int:
    note(f"effect {run} {n}")
    await asyncio.sleep(0.002)
    return n

@task(name="accept_killed_leaf")
async def leaf(ctx: Context, n: int) -> int:
    await effect(ctx.run_id, n)
    await durable.sleep(0.005)
    return await effect(ctx.run_id, n + 1000)

@task(name="accept_killed_total")
async def total(ctx: Context, children: list[Child[int]]) -> int:
    return await effect(ctx.run_id, sum(child.result for child in children))

async def total_here(ctx: Context, children: list[Child[int]]) -> int:
    return await effect(ctx.run_id, sum(child.result for child in children))

@task(name="accept_killed_by_task", on_children_complete=total)
async def by_task(n: int) -> list[Child[int]]:
    return [leaf.child(n), leaf.child(n + 1), leaf.child(n + 2)]

@task(name="accept_killed_by_function", on_children_complete=total_here)
async def by_function(n: int) -> list[Child[int]]:
    return [by_task.child(n), leaf.child(n)]

@task(name="accept_killed_fails")
async def fails(n: int) -> int:
    await durable.sleep(0.01)
    raise ValueError("bad")

@task(name="accept_killed_failing")
async def failing(n: int) -> list[Child[int]]:
    return [leaf.child(n), fails.child(n), hangs.child()]

@task(name="accept_killed_hangs")
async def hangs() -> int:
    await durable.sleep(3600)
    return 0

@task(name="accept_killed_recovers")
async def resumed(n: int) -> int:
    return n * 2

pipeline = chain(by_function, resumed, name="accept_killed_chain")
LAST = 12

async def main():
    seconds = random.Random(LIFE).random() * 0.25
    async with Durable(FOLDER) as app:
        if LIFE < LAST:
            asyncio.get_running_loop().call_later(seconds, die)
        found = {}
        for n in range(min(LIFE, 6)):
            for program in (by_function, failing, pipeline):
                found[program.name, n] = await program.options(key=f"{program.name} {n}").start(n)
        if LIFE < LAST:
            await asyncio.sleep(10)
        for (name, n), handle in found.items():
            try:
                result = await handle.wait(timeout=20)
            except RunFailedError as error:
                result = str(await handle.status())
            print(name, n, result)
        async with asyncio.timeout(20):
            while True:
                infos = [info async for info in app.runs(limit=10000)]
                if all(info.closed for info in infos):
                    break
                await asyncio.sleep(0.01)
        for info in infos:
            handle = await app.get(info.run_id)
            records = [event async for event in handle.events(steps=True)]
            ends = [e.name for e in records if e.name in ("completed", "failed", "cancelled", "children_failed", "timed_out")]
            assert len(ends) == 1, (info, ends)
            assert [e.seq for e in records] == list(range(1, len(records) + 1)), info
            children = len([1 for each in infos if each.parent_id == info.run_id and each.task_name != "accept_killed_total"])
            print("RUN", info.task_name, info.status, children, info.run_id)
"""


@pytest.mark.timeout(180)
def test_families_in_processes_that_are_killed(tmp_path: Path) -> None:
    """A dozen SIGKILLs at random moments: the right results, one end each, no child twice, no coordinator twice."""
    output, written = lives(tmp_path, KILLED_PROGRAM, 12)
    lines = output.splitlines()
    results = [line for line in lines if not line.startswith("RUN ")]
    expected = []
    for n in range(6):
        whole = 3 * n + 3 + 3000 + n + 1000
        expected += [
            f"accept_killed_by_function {n} {whole}",
            f"accept_killed_failing {n} children_failed",
            f"accept_killed_chain {n} {2 * whole}",
        ]
    assert results == expected
    runs = [line.split()[1:] for line in lines if line.startswith("RUN ")]
    shapes = Counter((task, status, children) for task, status, children, _ in runs)
    leaf = "accept_killed_leaf"
    cancelled_or_completed = shapes.pop((leaf, "completed", "0")) + shapes.pop((leaf, "cancelled", "0"), 0)
    assert cancelled_or_completed == 12 * 4 + 6
    assert shapes == Counter(
        {
            ("accept_killed_by_function", "completed", "2"): 12,
            ("accept_killed_by_task", "completed", "3"): 12,
            ("accept_killed_total", "completed", "0"): 12,
            ("accept_killed_failing", "children_failed", "3"): 6,
            ("accept_killed_fails", "failed", "0"): 6,
            ("accept_killed_hangs", "cancelled", "0"): 6,
            ("accept_killed_recovers", "completed", "0"): 6,
            ("accept_killed_chain", "completed", "2"): 6,
        }
    )
    known = {run_id for *_, run_id in runs}
    assert {line.split()[1] for line in written} <= known, "an effect of a run that the store does not know"
