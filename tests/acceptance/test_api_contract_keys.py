"""The contract, sections *Keys and users*, *Limits* and *Errors*."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import durable.errors
from durable import (
    BackpressureError,
    ConflictError,
    Context,
    Durable,
    DurableError,
    Limits,
    RunFailedError,
    SlotTimeoutError,
    UserContext,
    ValidationError,
    current_user,
    run_as,
    step,
    task,
)
from tests.acceptance.contract_support import make_app

ERRORS = [each for each in vars(durable.errors).values() if inspect.isclass(each) and issubclass(each, DurableError)]


@pytest.fixture(params=["memory", "folder"])
async def app(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Durable]:
    async with make_app(request.param, tmp_path) as opened:
        yield opened


@task(name="contract_keyed")
async def keyed(a: int, b: int = 1) -> int:
    return a + b


@task(name="contract_keyed_other")
async def other(a: int) -> int:
    return a


@task(name="contract_keyed_auto", key="auto")
async def automatic(options: dict[str, int]) -> int:
    return len(options)


async def test_a_key_is_one_run(app: Durable) -> None:
    """However many start at once, and also when it has ended; `find` gives it."""
    handles = await asyncio.gather(*(keyed.options(key="k").start(1) for _ in range(64)))
    assert len({handle.run_id for handle in handles}) == 1
    assert await handles[0] == 2
    again = await keyed.options(key="k").start(1)
    assert (again.run_id, again.key) == (handles[0].run_id, "k") and await again == 2
    found = await app.find("k")
    assert found is not None and found.run_id == again.run_id
    assert len([info async for info in app.runs()]) == 1


async def test_the_same_input_may_be_said_in_other_words(app: Durable) -> None:
    """By position, by name, or by leaving out a default."""
    first = await keyed.options(key="k").start(1)
    for again in (keyed.options(key="k").start(1, 1), keyed.options(key="k").start(b=1, a=1)):
        assert (await again).run_id == first.run_id
    derived = [await keyed.options(key="auto").start(1), await keyed.options(key="auto").start(a=1, b=1)]
    assert derived[0].run_id == derived[1].run_id


async def test_the_same_key_with_something_else(app: Durable) -> None:
    """Other input, or another task, is `ConflictError`; without a key each start is a new run."""
    await keyed.options(key="k").start(1)
    with pytest.raises(ConflictError):
        await keyed.options(key="k").start(2)
    with pytest.raises(ConflictError):
        await other.options(key="k").start(1)
    assert (await keyed.start(1)).run_id != (await keyed.start(1)).run_id


async def test_key_auto(app: Durable) -> None:
    """It is a SHA-256 of task, input (in any order of a dict) and user."""
    first = await automatic.start({"a": 1, "b": 2})
    assert first.key is not None and len(bytes.fromhex(first.key)) == 32
    assert (await automatic.start({"b": 2, "a": 1})).run_id == first.run_id
    others = [await automatic.start({"a": 1}), await automatic.options(user="ann").start({"a": 1, "b": 2})]
    others += [await keyed.options(key="auto").start(1), await other.options(key="auto").start(1)]
    assert len({handle.key for handle in [first, *others]}) == 5


async def test_run_as_carries_an_identity(app: Durable) -> None:
    """Tasks, steps and children see it; the run is the user's; outside nobody is there."""

    @step
    async def in_step() -> str:
        user = current_user()
        assert user is not None
        return f"{user.user} {user.secrets['token']}"

    @task(name="contract_identity")
    async def body() -> str:
        return await in_step()

    @task(name="contract_identity_parent")
    async def parent() -> str:
        return await body()

    with run_as(UserContext("ann", {"token": "s3cret"})):
        handles = [await body.start(), await parent.start()]
        assert current_user() == UserContext("ann", {"token": "s3cret"})
    assert current_user() is None
    for handle in handles:
        assert await handle == "ann s3cret"
        assert (await handle.info()).user == "ann"
    with pytest.raises(RunFailedError):
        await (await body.start())
    assert "s3cret" not in repr(UserContext("ann", {"token": "s3cret"}))


async def test_secrets_are_never_stored(tmp_path: Path) -> None:
    """No file of the store holds one."""

    @task(name="contract_secret")
    async def body(ctx: Context) -> str | None:
        await ctx.emit("x")
        return ctx.user

    async with Durable(tmp_path):
        with run_as(UserContext("ann", {"token": "VERYSECRET"})):
            assert await (await body.start()) == "ann"
    assert [file for file in tmp_path.rglob("*") if file.is_file() and b"VERYSECRET" in file.read_bytes()] == []


def test_limits() -> None:
    """The names and defaults are those of the page; a run at a time is the least."""
    assert Limits() == Limits(
        max_starts_per_window=None, max_starts_per_user_window=None, window=60.0, max_queued=None, max_running=1000,
        max_running_per_user=None, slot_timeout=30.0, dead_letter_size=1000, dead_letter_ttl=86400.0, dead_letter_retries=3,
    )  # fmt: skip
    with pytest.raises(DurableError):
        Limits(max_running=0)


def test_errors_are_one_tree() -> None:
    """Each has a code of its own, says whether it is retryable, and what the page gives it."""
    assert issubclass(DurableError, Exception)
    assert len({each.code for each in ERRORS}) == len(ERRORS)
    assert all(isinstance(each.code, str) and isinstance(each.retryable, bool) for each in ERRORS)
    assert BackpressureError("x", retry_after=3).retry_after == 3 and BackpressureError.retryable
    assert SlotTimeoutError("x", timeout=3).timeout == 3 and SlotTimeoutError.retryable
    assert ValidationError("x", field="f").field == "f"


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_can_be_pickled(kind: type[Any]) -> None:
    """They cross processes, with their attributes."""
    error = kind("what, which, why", **({"field": "f"} if issubclass(kind, ValidationError) else {}))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error) and vars(again) == vars(error)


async def test_find_sees_a_users_key(app: Durable) -> None:
    """A key that nobody in particular has is looked for among the users; where several have it, `user=` has to say whose."""
    mine = await keyed.options(key="owned", user="ann").start(1)
    found = await app.find("owned")
    assert found is not None
    assert found.run_id == mine.run_id
    await keyed.options(key="owned", user="bob").start(1)
    with pytest.raises(ConflictError):
        await app.find("owned")
    theirs = await app.find("owned", user="ann")
    assert theirs is not None
    assert theirs.run_id == mine.run_id
    with run_as(UserContext("eve")):
        assert await app.find("owned") is None
