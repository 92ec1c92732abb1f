"""The acceptance table of the reference system (`durable-execution`, section 8), row by row, with exactly its inputs and outputs.

Row 20, an insert supplied by the caller, has no counterpart. Attempts count from 1 here, so what the table throws "while attempt < 2",
counted from 0, is thrown while `ctx.attempt < 3`. A coordinator that is to see failures says `on_child_failure="continue"`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import Child, Context, Durable, Handle, NonRetryableError, Retry, RunFailedError, ValidationError, chain
from tests.acceptance.contract_support import store_of, until_status

called: list[str] = []
attempts: list[int] = []


class World:
    """What is outside: a value that comes after a while."""

    value: int | None = None

    @classmethod
    async def give(cls, after: float) -> None:
        cls.value = None
        await asyncio.sleep(after)
        cls.value = 10


@pytest.fixture(params=["memory", "folder", "postgres"])
async def app(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Durable]:
    called.clear()
    attempts.clear()
    async with Durable(store_of(request, tmp_path)()) as opened:
        yield opened


def row(function: Any = None, /, **options: Any) -> Any:
    """A task with a name that no other test's task has."""

    def decorate(body: Any) -> Any:
        return durable.task(name=f"accept_table_{body.__name__}", **options)(body)

    return decorate if function is None else decorate(function)


async def ended(handle: Handle[Any], task: Any, status: str = "completed") -> None:
    """What holds for every row."""
    info = await handle.info()
    assert info.status == status == await handle.status()
    assert info.task_name == task.name
    assert info.run_id == handle.run_id
    assert info.started_at is not None and info.ended_at is not None
    assert info.created_at <= info.started_at <= info.ended_at
    async with asyncio.timeout(5):
        while not (await handle.info()).closed:
            await asyncio.sleep(0.002)
    # The reserved event names have none of its own for a coordinator that failed.
    event = "failed" if status == "on_children_complete_failed" else status
    assert [event.name async for event in handle.events()][-1] == event


def hello(who: str, name: str) -> str:
    """The greeting of the table."""
    return f"Hello from {who}, {name}!"


def greeter(who: str, short: str) -> Any:
    """A task that greets."""

    async def greet(name: str) -> str:
        return hello(f"task {who}", name)

    return durable.task(name=f"accept_table_{short}")(greet)


# -- rows 1 to 6: single tasks


@row
def simple_sync(name: str) -> str:
    return f"Hello, {name}!"


@row
async def simple_async(name: str) -> str:
    await asyncio.sleep(0.001)
    return f"Hello, {name}!"


def only_the_world(name: str) -> None:
    if name != "world":
        raise ValueError("Invalid input")


@row(validate=only_the_world)
async def validated(name: str) -> str:
    called.append(name)
    return f"Hello, {name}!"


@dataclass
class Named:
    name: str


@row
async def schematic(named: Named) -> str:
    called.append(named.name)
    return f"Hello, {named.name}!"


@row(retry=Retry(5, delay=0.1, factor=1.5, max_delay=1.0))
async def retried(ctx: Context, name: str) -> dict[str, Any]:
    attempts.append(ctx.attempt)
    if ctx.attempt < 3:
        raise RuntimeError("Failed")
    return {"totalAttempts": len(attempts), "output": f"Hello, {name}!"}


@row
async def context(ctx: Context) -> dict[str, Any]:
    return {"taskId": ctx.task_name, "executionId": ctx.run_id, "attempt": ctx.attempt, "prevError": ctx.previous_error}


@pytest.mark.parametrize("task", [simple_sync, simple_async])
async def test_rows_1_and_2_simple(app: Durable, task: Any) -> None:
    """A plain function and an async one."""
    handle = await task.start(name="world")
    assert await handle == "Hello, world!"
    await ended(handle, task)


async def test_row_3_validation_by_a_function(app: Durable) -> None:
    """Any other name is refused at start: the body is never called, and nothing is stored."""
    handle = await validated.start(name="world")
    assert await handle == "Hello, world!"
    await ended(handle, validated)
    with pytest.raises(ValidationError, match="Invalid input"):
        await validated.start(name="moon")
    assert called == ["world"]
    assert len([info async for info in app.runs()]) == 1


async def test_row_4_validation_by_annotations(app: Durable) -> None:
    """A name that is no string is refused at start, as is a mapping with such a name."""
    handle = await schematic.start(Named("world"))
    assert await handle == "Hello, world!"
    await ended(handle, schematic)
    with pytest.raises(ValidationError) as caught:
        await schematic.start(Named(0))  # type: ignore[arg-type]
    assert caught.value.field is not None and "name" in caught.value.field
    assert called == ["world"]
    assert len([info async for info in app.runs()]) == 1


async def test_row_5_retries(app: Durable) -> None:
    """Two attempts fail, the third is it; 0.1 s and 0.15 s lie between them."""
    begun = time.monotonic()
    handle = await retried.start(name="world")
    assert await handle == {"totalAttempts": 3, "output": "Hello, world!"}
    assert 0.25 <= time.monotonic() - begun < 2.0
    assert attempts == [1, 2, 3]
    await ended(handle, retried)


async def test_row_6_context(app: Durable) -> None:
    """The attempt counts from 1."""
    handle = await context.start()
    assert await handle == {"taskId": context.name, "executionId": handle.run_id, "attempt": 1, "prevError": None}
    await ended(handle, context)


# -- rows 7 to 10: parents

task_a, task_b = greeter("A", "a"), greeter("B", "b")


@dataclass
class Family:
    output: str
    children: list[Child[str]]


@row
async def parent(name: str) -> Family:
    return Family(hello("parent task", name), [task_a.child(name=name), task_b.child(name=name)])


@row
async def combined(family: Family) -> dict[str, str]:
    a, b = family.children
    return {"parentOutput": family.output, "taskAOutput": a.result, "taskBOutput": b.result}


@row(on_children_complete=combined)
async def parent_with_finalize(name: str) -> Family:
    return Family(hello("parent task", name), [task_a.child(name=name), task_b.child(name=name)])


@row
async def failing_b(name: str) -> str:
    raise RuntimeError("Failed")


strict_calls: list[int] = []


@row(retry=Retry(3, delay=0.001))
async def strict(ctx: Context, family: Family) -> None:
    strict_calls.append(ctx.attempt)
    if not all(child.ok for child in family.children):
        raise NonRetryableError("Children failed")


@row(on_children_complete=strict, on_child_failure="continue")
async def strict_parent(name: str) -> Family:
    return Family(hello("parent task", name), [task_a.child(name=name), failing_b.child(name=name)])


def reported(family: Family) -> dict[str, Any]:
    results = [
        {"index": index, "success": child.ok, "result": child.result if child.error is None else child.error.message}
        for index, child in enumerate(family.children)
    ]
    return {
        "parentOutput": family.output,
        "successfulCount": sum(child.ok for child in family.children),
        "totalCount": len(family.children),
        "results": results,
    }


@row(on_children_complete=reported, on_child_failure="continue")
async def reporting_parent(name: str) -> Family:
    return Family(hello("parent task", name), [task_a.child(name=name), failing_b.child(name=name)])


async def test_row_7_parent_with_children(app: Durable) -> None:
    """Without a coordinator the result is what was returned, its children resolved, in its order."""
    handle = await parent.start(name="world")
    family = await handle
    assert family.output == "Hello from parent task, world!"
    assert [child.result for child in family.children] == ["Hello from task A, world!", "Hello from task B, world!"]
    assert [child.status for child in family.children] == ["completed", "completed"]
    runs = await handle.children()
    assert [child.run_id for child in family.children] == [run.run_id for run in runs]
    assert [(await run.info()).task_name for run in runs] == [task_a.name, task_b.name]
    await ended(handle, parent)


async def test_row_8_parent_with_a_coordinator(app: Durable) -> None:
    """The coordinator's result is the parent's."""
    handle = await parent_with_finalize.start(name="world")
    assert await handle == {
        "parentOutput": "Hello from parent task, world!",
        "taskAOutput": "Hello from task A, world!",
        "taskBOutput": "Hello from task B, world!",
    }
    await ended(handle, parent_with_finalize)


async def test_row_9_strict_coordinator(app: Durable) -> None:
    """The coordinator fails the run, and is not tried again although it is a task with attempts left."""
    strict_calls.clear()
    handle = await strict_parent.start(name="world")
    with pytest.raises(RunFailedError) as caught:
        await handle
    assert "Children failed" in caught.value.message
    assert caught.value.error_type == "durable.errors.NonRetryableError"
    assert strict_calls == [1]
    await ended(handle, strict_parent, "on_children_complete_failed")


async def test_row_10_partial_success(app: Durable) -> None:
    """The coordinator sees every outcome."""
    handle = await reporting_parent.start(name="world")
    assert await handle == {
        "parentOutput": "Hello from parent task, world!",
        "successfulCount": 1,
        "totalCount": 2,
        "results": [
            {"index": 0, "success": True, "result": "Hello from task A, world!"},
            {"index": 1, "success": False, "result": "Failed"},
        ],
    }
    await ended(handle, reporting_parent)


# -- rows 11 to 14: sequences and trees


@dataclass
class Said:
    name: str
    outputs: dict[str, str]


@row
async def link_a(name: str) -> Said:
    return Said(name, {"taskAOutput": hello("task A", name)})


@row
async def link_b(said: Said) -> Said:
    return Said(said.name, said.outputs | {"taskBOutput": hello("task B", said.name)})


@row
async def link_c(said: Said) -> dict[str, str]:
    return said.outputs | {"taskCOutput": hello("task C", said.name)}


ABC = {
    "taskAOutput": "Hello from task A, world!",
    "taskBOutput": "Hello from task B, world!",
    "taskCOutput": "Hello from task C, world!",
}


@pytest.mark.parametrize("how", ["chain", ">>"])
async def test_row_11_sequence(app: Durable, how: str) -> None:
    """Each link gets the result of the one before."""
    pipeline = chain(link_a, link_b, link_c) if how == "chain" else link_a >> link_b >> link_c
    handle = await pipeline.start(name="world")
    assert await handle == ABC
    await ended(handle, pipeline)


task_c = greeter("C", "c")


@dataclass
class Own:
    """A task's own output, before its coordinator."""

    name: str
    output: str


@dataclass
class Then:
    """What a coordinator found, and what comes next."""

    output: str
    child: Child[Any]


def after_c(then: Then) -> dict[str, str]:
    return {"taskBOutput": then.output, "taskCOutput": then.child.result}


@row(on_children_complete=after_c)
async def before_c(own: Own) -> Then:
    return Then(own.output, task_c.child(name=own.name))


@row(on_children_complete=before_c)
async def manual_b(name: str) -> Own:
    return Own(name, hello("task B", name))


def after_b(then: Then) -> dict[str, str]:
    return {"taskAOutput": then.output, **then.child.result}


@row(on_children_complete=after_b)
async def before_b(own: Own) -> Then:
    return Then(own.output, manual_b.child(name=own.name))


@row(on_children_complete=before_b)
async def manual_a(name: str) -> Own:
    return Own(name, hello("task A", name))


async def test_row_12_manual_sequence(app: Durable) -> None:
    """Parents without children, whose coordinators are parents."""
    handle = await manual_a.start(name="world")
    assert await handle == ABC
    await ended(handle, manual_a)


@dataclass
class Branch:
    """A task's outputs so far, and its children by key."""

    name: str
    outputs: dict[str, str]
    children: dict[str, Child[str]]


def merged(branch: Branch) -> Said:
    return Said(branch.name, branch.outputs | {key: child.result for key, child in branch.children.items()})


def merged_at_the_end(branch: Branch) -> dict[str, str]:
    return merged(branch).outputs


task_a1, task_a2, task_a3 = greeter("A1", "a1"), greeter("A2", "a2"), greeter("A3", "a3")
task_b1, task_b2 = greeter("B1", "b1"), greeter("B2", "b2")


@row(on_children_complete=merged)
async def branching_a(name: str) -> Branch:
    children = {"taskA1Output": task_a1.child(name=name), "taskA2Output": task_a2.child(name=name)}
    return Branch(name, {"taskAOutput": hello("task A", name)}, children)


@row(on_children_complete=merged_at_the_end)
async def branching_b(said: Said) -> Branch:
    children = {"taskB1Output": task_b1.child(name=said.name), "taskB2Output": task_b2.child(name=said.name)}
    return Branch(said.name, said.outputs | {"taskBOutput": hello("task B", said.name)}, children)


async def test_row_13_sequence_of_parents(app: Durable) -> None:
    """Each link has parallel children and a coordinator."""
    pipeline = branching_a >> branching_b
    handle = await pipeline.start(name="world")
    assert await handle == {
        f"task{who}Output": f"Hello from task {who}, world!" for who in ("A", "A1", "A2", "B", "B1", "B2")
    }
    await ended(handle, pipeline)


@row(on_children_complete=merged_at_the_end)
async def tree_a(name: str) -> Branch:
    children = {
        "taskA1Output": task_a1.child(name=name),
        "taskA2Output": task_a2.child(name=name),
        "taskA3Output": task_a3.child(name=name),
    }
    return Branch(name, {"taskAOutput": hello("task A", name)}, children)


@row
async def tree_b1(name: str) -> Said:
    return Said(name, {"taskB1Output": hello("task B1", name)})


@row
async def tree_b2(said: Said) -> Said:
    return Said(said.name, said.outputs | {"taskB2Output": hello("task B2", said.name)})


@row
async def tree_b3(said: Said) -> dict[str, str]:
    return said.outputs | {"taskB3Output": hello("task B3", said.name)}


tree_b = chain(tree_b1, tree_b2, tree_b3)


@dataclass
class Root:
    output: str
    a: Child[dict[str, str]]
    b: Child[dict[str, str]]


def flattened(root: Root) -> dict[str, str]:
    return {"rootOutput": root.output, **root.a.result, **root.b.result}


@row(on_children_complete=flattened)
async def tree(name: str) -> Root:
    return Root(hello("root task", name), tree_a.child(name=name), tree_b.child(name=name))


async def test_row_14_tree(app: Durable) -> None:
    """A parent of parallel children beside a sequence."""
    handle = await tree.start(name="world")
    assert await handle == {
        "rootOutput": "Hello from root task, world!",
        **{f"task{who}Output": f"Hello from task {who}, world!" for who in ("A", "A1", "A2", "A3", "B1", "B2", "B3")},
    }
    await ended(handle, tree)


# -- rows 15 to 19


def not_negative(index: int) -> bool:
    return index >= 0


def counted(children: list[Child[dict[str, int]]]) -> dict[str, int]:
    return {"count": 1 + sum(child.result["count"] for child in children)}


@row(validate=not_negative, on_children_complete=counted)
async def recursive(index: int) -> list[Child[dict[str, int]]]:
    await asyncio.sleep(0.001)
    return [] if index >= 9 else [recursive.child(index=index + 1)]


async def test_row_15_recursion(app: Durable) -> None:
    """A task that is its own child."""
    handle = await recursive.start(index=0)
    assert await handle == {"count": 10}
    await ended(handle, recursive)
    assert len([info async for info in app.runs(task=recursive)]) == 10
    with pytest.raises(ValidationError):
        await recursive.start(index=-1)


@durable.step(name="accept_table_look")
async def look() -> int | None:
    return World.value


@row
async def looping(maximum: int, pause: float) -> dict[str, Any]:
    for _ in range(maximum):
        value = await look()
        if value == 10:
            return {"isSuccess": True, "output": value}
        await durable.sleep(pause)
    return {"isSuccess": False, "output": None}


async def test_row_16_looping(app: Durable) -> None:
    """A loop is a loop."""
    world = asyncio.create_task(World.give(1.0))
    await asyncio.sleep(0)
    handle = await looping.start(maximum=20, pause=0.1)
    assert await handle == {"isSuccess": True, "output": 10}
    await ended(handle, looping)
    await world


@dataclass
class Poll:
    done: bool
    value: int | None
    count: int
    next: list[Child[dict[str, int | None]]]


def polled(poll: Poll) -> dict[str, int | None]:
    return {"count": poll.count + 1, "value": poll.value} if poll.done else poll.next[0].result


@row(delay=0.1, on_children_complete=polled)
async def polling(prev_count: int) -> Poll:
    if World.value is not None:
        return Poll(True, World.value, prev_count, [])
    return Poll(False, None, prev_count, [polling.child(prev_count + 1)])


async def test_row_17_manual_looping(app: Durable) -> None:
    """The same by recursion, with a delay at each level."""
    world = asyncio.create_task(World.give(1.0))
    await asyncio.sleep(0)
    handle = await polling.start(prev_count=0)
    found = await handle
    assert found["value"] == 10 and 2 <= found["count"] < 20
    await ended(handle, polling)
    await world


@row
async def sleeping(ctx: Context) -> str:
    got = await ctx.wait_for("entity_id")
    assert isinstance(got, str)
    return got


def only_child(child: Child[str]) -> str:
    return child.result


@row(on_children_complete=only_child)
async def waiting() -> Child[str]:
    return sleeping.child()


async def test_row_18_sleeping_child(app: Durable) -> None:
    """The parent waits for its child, which waits for a webhook."""
    handle = await waiting.start()
    await until_status(handle, "waiting_for_children")
    [child] = await handle.children()
    await child.send("entity_id", "webhook_output")
    assert await child == "webhook_output"
    await ended(child, sleeping)
    assert await handle == "webhook_output"
    await ended(handle, waiting)


@row(timeout=30.0)
async def extract_title(file_path: str) -> str:
    return "File Title"


def existing(file_path: str) -> None:
    if not file_path.endswith(".txt"):
        raise ValueError("Invalid file path")


@row(timeout=30.0, validate=existing)
async def summarize(file_path: str) -> str:
    return "File summary"


@dataclass
class Uploaded:
    path: str
    url: str
    size: int
    title: Child[str]
    summary: Child[str]


@row(timeout=60.0)
async def on_upload(ctx: Context, up: Uploaded) -> dict[str, Any]:
    return {
        "filePath": up.path,
        "uploadUrl": up.url,
        "fileSize": up.size,
        "title": up.title.result,
        "summary": up.summary.result,
    }


@row(timeout=60.0, on_children_complete=on_upload)
async def upload(file_path: str, upload_url: str) -> Uploaded:
    return Uploaded(file_path, upload_url, 100, extract_title.child(file_path), summarize.child(file_path))


async def test_row_19_upload(app: Durable) -> None:
    """The upload workflow; afterwards its status, its result and a cancel without effect are there."""
    handle = await upload.start(file_path="file.txt", upload_url="https://example.com/upload")
    assert await handle.status() in {
        "ready",
        "running",
        "waiting_for_children",
        "waiting_for_on_children_complete",
        "completed",
    }
    expected = {
        "filePath": "file.txt",
        "uploadUrl": "https://example.com/upload",
        "fileSize": 100,
        "title": "File Title",
        "summary": "File summary",
    }
    assert await handle == expected
    await ended(handle, upload)
    await handle.cancel()
    assert await handle == expected
    await ended(handle, upload)


async def test_row_19_wrong_input_of_a_child(app: Durable) -> None:
    """A path that the child's validation refuses fails the parent in its body: no child is ever started."""
    handle = await upload.start(file_path="file.bin", upload_url="https://example.com/upload")
    with pytest.raises(RunFailedError, match="Invalid file path") as caught:
        await handle
    assert caught.value.error_type == "durable.errors.ValidationError"
    await ended(handle, upload, "failed")
    assert await handle.children() == []
