"""`durable cancel`, `retry`, `stop`, `resume`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from durable import Durable, RunCancelledError, Status
from tests.cli.conftest import bodies
from tests.cli.workers import Outcome

Cli = Callable[..., Outcome]


def status(durable: Cli, key: str) -> str:
    return str(durable("show", key, "--json").json["status"])


def test_cancel_ends_a_run_with_its_reason(durable: Cli, store: Path) -> None:
    """The next application finds the run cancelled, and does not run its body."""
    shown = durable("cancel", "wait", "--reason", "not needed")
    assert shown.code == 0
    assert "is now cancelled" in shown.out
    ran = list(bodies)

    async def later() -> None:
        async with Durable(store) as app:
            handle = await app.find("wait")
            assert handle is not None
            with pytest.raises(RunCancelledError, match="not needed"):
                await handle

    asyncio.run(later())
    assert bodies == ran


def test_cancel_again_is_fine_and_of_an_ended_run_is_not(durable: Cli) -> None:
    """To cancel twice is one wish; a run that completed stays completed, and exit code 1 says so."""
    assert durable("cancel", "wait").code == 0
    assert durable("cancel", "wait").code == 0
    shown = durable("cancel", "good")
    assert shown.code == 1
    assert "has ended as completed" in shown.err
    assert status(durable, "good") == "completed"


def test_stop_and_resume_run_no_body(durable: Cli, store: Path) -> None:
    """The command line decides; the next application that opens the folder acts on it."""
    ran = list(bodies)
    assert durable("stop", "wait", "--reason", "later").code == 0
    assert status(durable, "wait") == "suspended"
    assert "later" in durable("show", "wait").out
    assert durable("resume", "wait").code == 0
    assert status(durable, "wait") == "ready"
    assert bodies == ran

    async def later() -> str:
        async with Durable(store) as app:
            handle = await app.find("wait")
            assert handle is not None
            await handle.send("go")
            return str(await handle)

    assert asyncio.run(later()) == "at last"
    assert bodies.count("fetch wait.html") == 1


def test_retry_lets_a_failed_run_go_on(durable: Cli, store: Path) -> None:
    """A run that failed is ready again; a finished step of it does not run again."""
    assert durable("retry", "bad").code == 0
    assert status(durable, "bad") == "ready"

    async def later() -> Status:
        async with Durable(store) as app:
            handle = await app.find("bad")
            assert handle is not None
            async for event in handle.events():
                if event.name == "failed" and event.attempt == 2:
                    break
            return await handle.status()

    assert asyncio.run(later()) is Status.FAILED
    assert bodies.count("fetch bad.html") == 1
    assert "attempt 2 began: 1 finished step came from the log" in durable("show", "bad").out


def test_a_refused_transition_is_one_line(durable: Cli) -> None:
    """Exit code 1, and one line that says what the run can do instead."""
    for command in (("retry", "good"), ("resume", "bad"), ("stop", "good"), ("resume", "wait")):
        shown = durable(*command)
        assert (shown.code, shown.out) == (1, "")
        assert len(shown.err.splitlines()) == 1
        assert "it cannot" in shown.err


def test_deciding_in_a_folder_without_a_store_makes_none(tmp_path: Path, durable: Cli) -> None:
    """A mistyped --dir is refused, and no store comes into being."""
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "missing"):
        shown = durable("cancel", "good", "--dir", str(tmp_path / folder))
        assert shown.code == 1
        assert "--dir" in shown.err
    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "missing").exists()
