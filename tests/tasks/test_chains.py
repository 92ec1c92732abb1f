"""Chains, as far as they need no engine: what a chain is called, what it takes and gives, and which chains are the same."""

from __future__ import annotations

import gc
import inspect
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

import durable
from durable import (
    ConfigError,
    Context,
    DefinitionError,
    DuplicateTaskError,
    Result,
    ValidationError,
    chain,
    step,
    task,
)
from durable.core.retry import Retry
from durable.tasks.definition import StartOptions
from durable.tasks.host import current_scope
from durable.tasks.registry import find_task
from durable.tasks.task import Task


@task(name="links_extract")
async def extract(ctx: Context, path: str, *, limit: int = 10) -> list[str]:
    """Words."""
    return path.split()[:limit]


@task(name="links_transform")
async def transform(words: Sequence[str], factor: int = 1) -> dict[str, int]:
    return {word: len(word) * factor for word in words}


@task(name="links_load")
def load(found: dict[str, int]) -> int:
    return sum(found.values())


@task(name="links_count")
async def counting(ctx: Context, n: int) -> AsyncIterator[Any]:
    yield n
    yield Result(n + ctx.attempt)


NAME = "links_extract >> links_transform >> links_load"


# --- names, and which are the same ------------------------------------------------------------------------------------------------


def test_a_chain_goes_by_the_names_of_its_links() -> None:
    """`>>` makes the same chain as `chain()`; another name may be given."""
    made, piped = chain(extract, transform, load), extract >> transform >> load
    assert made.name == NAME and repr(made) == f"<task {NAME!r}>"
    assert made.definition is piped.definition is find_task(NAME)
    assert chain(extract, transform, load, name="links_etl").name == "links_etl"


def test_the_same_chain_again_is_the_same_task() -> None:
    """Without a warning, and for as long as somebody has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = chain(extract, transform, name="links_same")
        assert chain(extract, transform, name="links_same").definition is first.definition
        options = [chain(extract.options(retry=3), load.options(timeout=5), name="links_options") for _ in range(3)]
    assert len({id(each.definition) for each in options}) == 1


def test_another_chain_of_the_same_name_clashes() -> None:
    """Other links, or links with other options, while the first chain is alive."""
    first = chain(extract, transform, name="links_clash")
    with pytest.raises(DuplicateTaskError, match="'links_clash' is defined by chain"):
        chain(extract, load, name="links_clash")
    with pytest.raises(DuplicateTaskError, match="pass name= to one of them"):
        chain(extract.options(timeout=3), transform, name="links_clash")
    del first
    assert chain(extract, load, name="links_clash").definition is find_task("links_clash")
    gc.collect()
    assert find_task("links_clash") is None
    with pytest.raises(DuplicateTaskError):
        chain(extract, load, name="links_load")


def test_a_chain_keeps_its_links_alive() -> None:
    """The registry does not."""

    def make() -> Task[..., Any]:
        @task(name="links_local")
        async def local(n: int) -> int:
            return n

        return chain(local, counting)

    made = make()
    gc.collect()
    assert find_task("links_local") is not None
    del made
    gc.collect()
    assert find_task("links_local") is None and find_task("links_local >> links_count") is None


def test_a_long_name_is_cut_and_stays_its_own() -> None:
    """A name has at most 200 characters; what is cut is told apart by a digest of the whole."""
    many = [counting] * 20
    made, longer = chain(*many), chain(*many, counting)
    assert len(made.name) == len(longer.name) == 200 and made.name != longer.name
    assert made.name.startswith("links_count >> links_count") and made.definition is chain(*many).definition


def test_a_wrong_name_is_refused() -> None:
    """As for a task."""
    for name in ("", " x", "x" * 201, 5):
        with pytest.raises(ConfigError) as caught:
            chain(extract, transform, name=name)  # type: ignore[call-overload]
        assert caught.value.key == "name"


# --- flattening -------------------------------------------------------------------------------------------------------------------


def links_of(made: Task[..., Any]) -> list[str]:
    return [definition.name for definition, _ in made.definition.facts.function.links]  # type: ignore[attr-defined]


def test_chains_are_taken_apart_unless_they_have_a_name_or_options() -> None:
    """Only those are tasks to the longer chain."""
    first = extract >> transform
    assert (first >> load).name == NAME
    assert links_of(chain(first, load >> counting)) == [
        "links_extract",
        "links_transform",
        "links_load",
        "links_count",
    ]
    named = chain(extract, transform, name="links_half")
    assert (
        links_of(named >> load) == ["links_half", "links_load"] and (named >> load).name == "links_half >> links_load"
    )
    optioned = chain(first.options(timeout=3), load, name="links_with_options")
    assert links_of(optioned) == ["links_extract >> links_transform", "links_load"]


def test_a_chain_of_one_is_that_task_unless_it_is_named() -> None:
    """With its options."""
    one = chain(extract.options(key="k"))
    assert one.definition is extract.definition and one.start_options == StartOptions(key="k")
    named = chain(extract, name="links_one")
    assert named.name == "links_one" and links_of(named) == ["links_extract"]


# --- what is refused --------------------------------------------------------------------------------------------------------------


@task(name="links_two")
async def two(a: int, b: int) -> int:
    return a + b


@task(name="links_nothing")
async def nothing(ctx: Context) -> None: ...


@task(name="links_keyword")
async def keyword(*, n: int) -> int:
    return n


@step
async def a_step(n: int) -> int:
    return n


async def undecorated(n: int) -> int:
    return n


@pytest.mark.parametrize("wrong", [two, nothing, keyword])
def test_a_link_that_cannot_take_the_result_before_it_is_refused(wrong: Any) -> None:
    """When the chain is made; as the first it may take what it likes."""
    with pytest.raises(DefinitionError, match=f"task '{wrong.name}' gets the result of the one before it in a chain"):
        chain(load, wrong)
    with pytest.raises(DefinitionError, match="cannot be called with one argument"):
        load >> wrong
    assert chain(wrong, load).name == f"{wrong.name} >> links_load"


@pytest.mark.parametrize("wrong", [a_step, undecorated, None, "links_load", [load]])
def test_only_tasks_make_a_chain(wrong: Any) -> None:
    """The error names what is none."""
    with pytest.raises(DefinitionError, match="a chain is made of tasks, got"):
        chain(load, wrong)
    with pytest.raises(TypeError, match="unsupported operand"):
        load >> wrong


def test_an_empty_chain_is_refused() -> None:
    """There is nothing that it could do."""
    with pytest.raises(DefinitionError, match="at least one task"):
        chain()  # type: ignore[call-overload]


# --- a chain is a task --------------------------------------------------------------------------------------------------------------


def test_a_chain_has_the_signature_of_its_first_and_the_result_of_its_last() -> None:
    """Without the context; so inputs are checked when it is started."""
    facts = (extract >> transform >> load).definition.facts
    assert str(facts.signature) == "(path: 'str', *, limit: 'int' = 10) -> int"
    assert facts.shape == "coroutine" and facts.returns is int and not facts.takes_context
    assert dict(facts.hints) == {"path": str, "limit": int, "return": int}
    child = (extract >> transform).child("a b", limit=1)
    assert child.call is not None and child.call.arguments == {"path": "a b", "limit": 1}
    for args, kwargs in [((1,), {}), (("x",), {"limit": "2"}), ((), {}), (("x", 1), {})]:
        with pytest.raises(ValidationError, match="links_extract >> links_transform"):
            (extract >> transform).child(*args, **kwargs)


def test_a_chain_of_a_family_ends_with_the_result_of_its_coordinator() -> None:
    """That is what a run of its last link results in."""

    def combine(n: int) -> bytes:
        return bytes(n)

    @task(name="links_family", on_children_complete=combine)
    async def family(n: int) -> int:
        return n

    assert chain(load, family).definition.facts.returns is bytes
    assert chain(load, family).definition.result_hint is bytes


async def test_outside_a_run_the_links_are_plain_calls() -> None:
    """A unit test needs no engine."""
    assert await (extract >> transform >> load)("some words", limit=1) == 4
    assert await chain(load, counting)({"a": 2}) == 3
    assert await durable.map(extract >> transform >> load, ["a b", "c"]) == [2, 1]
    assert inspect.iscoroutine(call := load({"a": 1}))
    assert await call == 1


class Recorded:
    """A scope that notes which tasks a body calls."""

    def __init__(self, fail_at: int = -1) -> None:
        self.calls: list[tuple[str, StartOptions, tuple[Any, ...], dict[str, Any]]] = []
        self.fail_at = fail_at

    async def call_task(self, called: Any, options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls.append((called.name, options, args, kwargs))
        if len(self.calls) == self.fail_at:
            raise ValueError("no")
        return len(self.calls)


@contextmanager
def inside(scope: Any) -> Iterator[None]:
    token = current_scope.set(scope)
    try:
        yield
    finally:
        current_scope.reset(token)


async def test_inside_a_run_the_links_are_children() -> None:
    """One after the other, each with its options, and the result before it."""
    body: Callable[..., Any] = chain(
        extract.options(retry=3), transform, load.options(timeout=5)
    ).definition.facts.function
    scope = Recorded()
    with inside(scope):
        assert await body("a b", limit=2) == 3
    assert scope.calls == [
        ("links_extract", StartOptions(retry=Retry(3)), ("a b",), {"limit": 2}),
        ("links_transform", StartOptions(), (1,), {}),
        ("links_load", StartOptions(timeout=5.0), (2,), {}),
    ]


async def test_a_link_that_fails_ends_the_chain() -> None:
    """Its error is the chain's."""
    body: Callable[..., Any] = (extract >> transform >> load).definition.facts.function
    scope = Recorded(fail_at=2)
    with inside(scope), pytest.raises(ValueError, match="no"):
        await body("a b")
    assert len(scope.calls) == 2
