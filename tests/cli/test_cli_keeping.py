"""`durable dead-letters` and `durable gc`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from durable import Durable, RunFailedError
from tests.cli.conftest import bodies, work
from tests.cli.workers import Outcome, Place

Cli = Callable[..., Outcome]


def dead(durable: Cli) -> list[str]:
    """The keys of the dead letters, as they are listed."""
    return [str(line["key"]) for line in durable("dead-letters", "--json").lines]


@pytest.fixture
def two(store: Path) -> None:
    """Another dead letter, younger than `bad`."""

    async def fail() -> None:
        async with Durable(store) as app:
            with pytest.raises(RunFailedError):
                await (await app.start(work.options(key="worse"), "bad2.html"))

    asyncio.run(fail())


@pytest.mark.usefixtures("two")
def test_dead_letters_are_listed_the_oldest_first(durable: Cli) -> None:
    """With what failed; nothing in them reaches the terminal as it is."""
    assert dead(durable) == ["bad", "worse"]
    shown = durable("dead-letters")
    assert shown.code == 0
    assert shown.out == durable("dead-letters", "list").out
    head, first, second = shown.out.splitlines()
    assert head.split() == ["run", "task", "died", "(UTC)", "retried", "key", "error"]
    assert " 0 " in first and " bad " in first and "ValueError: cannot read bad.html" in first and "worse" in second
    assert "\x1b" not in shown.out
    assert durable("dead-letters", "list", "--task", "none").out == "no dead letters like that\n"


def test_discarding_is_said_and_done(durable: Cli) -> None:
    """The run stays as it was; to discard it again fails."""
    shown = durable("dead-letters", "discard", "bad")
    assert shown.code == 0
    assert "is no dead letter any more; it stays failed" in shown.out
    assert dead(durable) == []
    assert durable("dead-letters").out == "no dead letters\n"
    assert "discarded" in durable("show", "bad").out
    again = durable("dead-letters", "discard", "bad")
    assert (again.code, again.out) == (1, "") and "no dead letter" in again.err
    unknown = durable("dead-letters", "discard", "unknown")
    assert unknown.code == 1 and "no run" in unknown.err


def test_retrying_runs_no_body_and_is_counted(durable: Cli, store: Path) -> None:
    """It goes on with the next application; after so many times the command line refuses, too."""
    ran = list(bodies)
    shown = durable("dead-letters", "retry", "bad")
    assert (shown.code, bodies) == (0, ran)
    assert "is now ready; it goes on when the next application opens this folder" in shown.out
    assert dead(durable) == []

    async def fail_again() -> None:
        async with Durable(store) as app:
            handle = await app.find("bad")
            assert handle is not None
            with pytest.raises(RunFailedError):
                await handle

    for retried in (1, 2):
        asyncio.run(fail_again())
        assert dead(durable) == ["bad"]
        shown = durable("dead-letters", "retry", "bad", "--json")
        assert (shown.json["status"], shown.json["retried"]) == ("ready", retried + 1)
    asyncio.run(fail_again())
    shown = durable("dead-letters", "retry", "bad")
    assert shown.code == 1 and "limits.dead_letter_retries" in shown.err
    assert durable("retry", "bad").code == 0
    assert bodies.count("fetch bad.html") == 1


@pytest.mark.usefixtures("two")
def test_all_are_retried(durable: Cli) -> None:
    """At once, and said how many."""
    assert durable("dead-letters", "retry", "--all", "--task", "none").out == "no dead letters\n"
    shown = durable("dead-letters", "retry", "--all")
    assert (shown.code, shown.out) == (
        0,
        "2 dead letters of 2 retried; they go on when the next application opens this folder\n",
    )
    assert dead(durable) == []


@pytest.mark.parametrize(
    "words",
    [
        ("list", "bad"),
        ("list", "--all"),
        ("discard",),
        ("discard", "bad", "--all"),
        ("retry",),
        ("retry", "bad", "--all"),
    ],
    ids=" ".join,
)
def test_what_does_not_go_together_is_refused(durable: Cli, words: tuple[str, ...]) -> None:
    """As wrong use, before anything is opened."""
    shown = durable("dead-letters", *words)
    assert (shown.code, shown.out) == (2, "")
    assert "dead-letters" in shown.err


# -- gc


def keys(durable: Cli) -> set[object]:
    return {line["key"] for line in durable("runs", "--json").lines}


def test_gc_forgets_what_is_over(durable: Cli, store: Path) -> None:
    """Neither what waits nor a dead letter; what is too young stays."""
    assert durable("gc").out == f"{store}: 0 runs that ended more than 7.0 days ago were forgotten\n"
    looked = durable("gc", "--older-than", "0.000001s", "--dry-run")
    assert (looked.code, looked.out) == (0, f"{store}: 2 runs that ended more than 0 ms ago would be forgotten\n")
    assert len(keys(durable)) == 4
    assert "2 runs" in durable("gc", "--older-than", "0.000001s").out
    assert keys(durable) == {"bad", "wait"}
    assert durable("show", "good").code == 1
    durable("dead-letters", "discard", "bad")
    assert "1 run that" in durable("gc", "--older-than", "0.000001").out
    assert keys(durable) == {"wait"}


async def test_gc_of_a_folder_that_is_open_says_who_has_it(durable: Cli, store: Path) -> None:
    """And changes nothing; to count is allowed."""
    async with Durable(store):
        shown = await asyncio.to_thread(durable, "gc", "--older-than", "1s")
        assert shown.code == 1
        assert "pid" in shown.err or "process" in shown.err
        looked = await asyncio.to_thread(durable, "gc", "--older-than", "0.000001s", "--dry-run")
        assert looked.code == 0 and "2 runs" in looked.out


@pytest.mark.parametrize("age", ["", "d", "7w", "-1d", "0", "inf", "nan", "7 days"])
def test_an_age_has_to_be_one(durable: Cli, age: str) -> None:
    """Wrong use, and told what one looks like."""
    shown = durable("gc", f"--older-than={age}")
    assert shown.code == 2 and "age like" in shown.err


def test_where_no_store_is_none_is_made(tmp_path: Path, durable: Cli) -> None:
    """A folder with nothing in it is no store to forget things of."""
    for words in (("gc",), ("gc", "--dry-run"), ("dead-letters",)):
        shown = durable("--dir", str(tmp_path / "empty"), *words)
        assert shown.code == 1 and "no folder" in shown.err
    assert not (tmp_path / "empty").exists()


def test_a_database_is_looked_after_beside_its_executors(place: Place) -> None:
    """The same commands, while others have it open."""

    async def fill() -> list[str]:
        async with Durable(place.url, config=place.config) as app:
            await (await app.start(work.options(key="good"), "good.html"))
            with pytest.raises(RunFailedError):
                await (await app.start(work.options(key="bad"), "bad.html"))
            said = []
            for words in (
                ("dead-letters", "--json"), ("dead-letters", "discard", "bad"), ("gc", "--older-than", "0.001s", "--dry-run"),
                ("gc", "--older-than", "0.001s"), ("runs",),
            ):  # fmt: skip
                shown = await asyncio.to_thread(place.cli, *words)
                assert shown.code == 0, shown.err
                said.append(shown.out)
            return said

    listed, discarded, would, did, left = asyncio.run(fill())
    assert '"key": "bad"' in listed or '"key":"bad"' in listed
    assert "no dead letter any more" in discarded
    assert "2 runs" in would and "2 runs" in did and "were forgotten" in did
    assert left == "no runs\n"
