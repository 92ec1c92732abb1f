"""Right families: children, coordinators and chains, typed from end to end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, assert_type

import durable
from durable import Child, Context, Result, RunError, Status, chain, task
from durable.tasks.task import Task


@dataclass
class Uploaded:
    path: str
    title: Child[str]
    summary: Child[str]


@dataclass
class Report:
    path: str
    title: str
    summary: str


# --- children and coordinators --------------------------------------------------------------------------------------------------


@task
async def extract_title(path: str) -> str:
    return path.title()


@task(retry=3)
def summarize(ctx: Context, path: str, *, words: int = 10) -> str:
    return path[:words]


async def combine(ctx: Context, up: Uploaded) -> Report:
    return Report(up.path, up.title.result, up.summary.result)


async def combine_simply(up: Uploaded) -> Report:
    return Report(up.path, up.title.result, up.summary.result)


def combine_plainly(up: Uploaded, verbose: bool = False) -> str:
    return up.title.result * verbose


def combine_in_a_thread(ctx: Context, up: Uploaded) -> str:
    return up.title.result + ctx.run_id


@task(on_children_complete=combine)
async def upload(path: str) -> Uploaded:
    return Uploaded(path, extract_title.child(path), summarize.child(path, words=3))


@task(on_children_complete=combine_simply, on_child_failure="continue", name="upload-simply", timeout=60)
async def upload_simply(ctx: Context, path: str) -> Uploaded:
    return Uploaded(path, extract_title.child(path), summarize.child(path))


@task(on_children_complete=combine_plainly)
def upload_plainly(path: str, copies: int = 1) -> Uploaded:
    return Uploaded(path * copies, extract_title.child(path), summarize.child(path))


@task(on_children_complete=combine_in_a_thread)
def upload_in_a_thread(ctx: Context, path: str) -> Uploaded:
    return Uploaded(path, extract_title.child(path), summarize.child(path))


@task(on_children_complete=combine)
async def upload_and_tell(path: str) -> AsyncIterator[str | Result[Uploaded]]:
    yield "begun"
    yield Result(Uploaded(path, extract_title.child(path), summarize.child(path)))


# --- coordinators that are tasks, nested --------------------------------------------------------------------------------------


@dataclass
class Pages:
    uploads: list[Child[Report]]


@task
async def count(pages: Pages) -> int:
    return sum(each.ok for each in pages.uploads)


@task(on_children_complete=count)
async def publish(paths: Sequence[str]) -> Pages:
    return Pages([upload.child(path) for path in paths])


@task(on_children_complete=publish.options(timeout=5))
async def publish_all(ctx: Context) -> list[str]:
    return ["a", "b"]


async def total(counts: list[Child[int]]) -> int:
    return sum(each.result for each in counts)


@task(on_children_complete=total)
async def publish_twice() -> list[Child[int]]:
    return [publish.child(["a"]), publish_all.child()]


@task(on_child_failure="continue")
async def without_coordinator(path: str) -> tuple[str, Child[str]]:
    return path, extract_title.child(path)


# --- chains -----------------------------------------------------------------------------------------------------------------------


@task
async def extract(ctx: Context, path: str, *, limit: int = 10) -> list[str]:
    return path.split()[:limit]


@task
async def transform(words: Sequence[str], factor: int = 1) -> dict[str, int]:
    return {word: len(word) * factor for word in words}


@task
def load(found: dict[str, int]) -> float:
    return float(sum(found.values()))


@task
async def double(n: float) -> float:
    return n * 2


pipeline = chain(extract, transform, load)
piped = extract >> transform >> load
named = chain(extract, transform, name="first-half")
longest = chain(pipeline, double, double, double, double, double, double, double)
longer_still = chain(pipeline, double, double, double, double, double, double, double, double, double)
of_one = chain(double)
with_options = chain(extract.options(retry=3), transform, chain(load.options(timeout=5), double))


def in_a_loop(tasks: list[Task[[float], float]]) -> None:
    chain(*tasks)


async def chained() -> None:
    assert_type(await pipeline("some words", limit=1), float)
    assert_type(await piped("some words"), float)
    assert_type(await named(path="some words"), dict[str, int])
    assert_type(await longest("some words"), float)
    assert_type(await longer_still("some words"), Any)
    assert_type(await of_one(2.0), float)
    assert_type(await with_options("some words", limit=2), float)
    assert_type(await (named >> load)("some words"), float)
    assert_type(pipeline.child("some words", limit=3), Child[float])


# --- what a child tells -----------------------------------------------------------------------------------------------------------


def told(child: Child[str]) -> str:
    assert_type(child.run_id, str)
    assert_type(child.status, Status)
    assert_type(child.ok, bool)
    assert_type(child.error, RunError | None)
    assert_type(child.result, str)
    return child.result if child.ok else str(child.error)


def widened(child: Child[str]) -> Child[object]:
    """A child of something is a child of anything wider: results are only read."""
    return child


def untyped(child: Child) -> Any:
    return child.result


async def starts() -> None:
    report = await upload.start("x")
    assert_type(await report, Report)
    assert_type(await (await upload_simply.start("x")), Report)
    assert_type(await (await upload_plainly.start("x", copies=2)), str)
    assert_type(await (await upload_in_a_thread.start(path="x")), str)
    assert_type(await (await upload_and_tell.start("x")), Report)
    assert_type(await (await publish.start(["x"])), int)
    assert_type(await (await publish_all.start()), int)
    assert_type(await (await publish_twice.start()), int)
    path, title = await (await without_coordinator.start("x"))
    assert_type(path, str)
    assert_type(title, Child[str])
    assert_type(await durable.map(extract_title, ["a", "b"]), list[str])
    assert_type(await durable.map(pipeline, ["a b", "c"]), list[float])
    assert_type(await durable.map(upload, ["a", "b"]), list[Report])


async def main() -> None:
    """Run what needs no engine."""
    await chained()
    child = extract_title.child("x")
    assert widened(child) is child
    assert pipeline.definition is piped.definition
    in_a_loop([double])
