"""Wrong families: each marked line has to be refused, as its comment says, by mypy and by pyright."""

from __future__ import annotations

from dataclasses import dataclass

from durable import Child, Context, chain, step, task


@dataclass
class Pair:
    left: Child[str]
    right: Child[str]


@task
async def shout(word: str) -> str:
    return word.upper()


@task
async def length(ctx: Context, word: str) -> int:
    return len(word)


@task
async def halve(n: int) -> float:
    return n / 2


@task
async def two(a: float, b: float) -> float:
    return a + b


@task
async def nothing() -> None: ...


@step
async def fetch(url: str) -> str:
    return url


async def undecorated(word: str) -> str:
    return word


async def combine(ctx: Context, pair: Pair) -> str:
    return pair.left.result


def combine_plainly(pair: Pair) -> str:
    return pair.left.result


async def needs_two(pair: Pair, other: str) -> str:
    return other


async def context_only(ctx: Context) -> None: ...


def children() -> None:
    shout.child(1)  # type: ignore[arg-type]  # reportArgumentType
    shout.child()  # type: ignore[call-arg]  # reportCallIssue
    shout.child("x", "y")  # type: ignore[call-arg]  # reportCallIssue
    length.child(n="x")  # type: ignore[call-arg]  # reportCallIssue
    fetch.child("x")  # type: ignore[attr-defined]  # reportAttributeAccessIssue
    child = shout.child("x")
    number: int = child.result  # type: ignore[assignment]  # reportAssignmentType
    print(number)
    wrong: Child[int] = child  # type: ignore[assignment]  # reportAssignmentType
    print(wrong)
    Pair(child, length.child("x"))  # type: ignore[arg-type]  # reportArgumentType
    child.run_id = "x"  # type: ignore[misc]  # reportAttributeAccessIssue
    child.results  # type: ignore[attr-defined]  # reportAttributeAccessIssue
    child.error.message  # type: ignore[union-attr]  # reportOptionalMemberAccess


def coordinators() -> None:
    task(on_children_complete=5)  # type: ignore[call-overload]  # reportArgumentType
    task(on_child_failure="stop")  # type: ignore[call-overload]  # reportArgumentType
    task(on_children_complete=combine, on_child_failure="ignore")  # type: ignore[call-overload]  # reportArgumentType
    task(on_children_complete=needs_two)  # type: ignore[arg-type]  # reportArgumentType
    task(on_children_complete=nothing)  # type: ignore[arg-type]  # reportArgumentType
    task(on_children_complete=two)  # type: ignore[arg-type]  # reportArgumentType

    @task(on_children_complete=combine)  # type: ignore[arg-type]  # reportArgumentType
    async def wrong_value(n: int) -> int:
        return n

    @task(on_children_complete=combine_plainly)  # type: ignore[arg-type]  # reportArgumentType
    def wrong_plainly(n: int) -> list[Pair]:
        return []

    @task(on_children_complete=halve)  # type: ignore[arg-type]  # reportArgumentType
    async def wrong_task(ctx: Context, word: str) -> str:
        return word

    print(wrong_value, wrong_plainly, wrong_task)


@task(on_children_complete=combine)
async def right(n: int) -> Pair:
    return Pair(shout.child("x"), shout.child("y"))


async def results() -> None:
    pair: Pair = await (await right.start(1))  # type: ignore[assignment]  # reportAssignmentType
    print(pair)
    await right.start("x")  # type: ignore[arg-type]  # reportArgumentType
    kind: Child[Pair] = right.child(1)  # type: ignore[assignment]  # reportAssignmentType
    print(kind)


async def chains() -> None:
    chain()  # type: ignore[call-overload]  # reportCallIssue
    chain(shout, halve)  # type: ignore[misc]  # reportArgumentType
    chain(shout, length, shout)  # type: ignore[misc]  # reportArgumentType
    chain(length, halve, two)  # type: ignore[arg-type]  # reportArgumentType
    chain(shout, nothing)  # type: ignore[arg-type]  # reportArgumentType
    chain(undecorated, shout)  # type: ignore[call-overload]  # reportArgumentType
    chain(shout, fetch)  # type: ignore[call-overload]  # reportArgumentType
    chain(shout, name=3)  # type: ignore[call-overload]  # reportArgumentType
    shout >> halve  # type: ignore[operator]  # reportOperatorIssue
    shout >> undecorated  # type: ignore[operator]  # reportOperatorIssue
    shout >> length >> shout  # type: ignore[operator]  # reportOperatorIssue
    piped = shout >> length >> halve
    await piped(1)  # type: ignore[arg-type]  # reportArgumentType
    await piped("x", "y")  # type: ignore[call-arg]  # reportCallIssue
    text: str = await piped("x")  # type: ignore[assignment]  # reportAssignmentType
    print(text)
    child: Child[str] = piped.child("x")  # type: ignore[assignment]  # reportAssignmentType
    print(child)
