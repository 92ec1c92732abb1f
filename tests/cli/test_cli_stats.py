"""`durable stats`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.cli import working
from tests.cli.workers import Outcome, Place, begun

Cli = Callable[..., Outcome]


def test_it_counts_runs_dead_letters_and_what_waits(durable: Cli) -> None:
    """By status, for people and for programs; a folder has no executors."""
    shown = durable("stats")
    assert shown.code == 0
    lines = [line.split() for line in shown.out.splitlines()]
    assert lines[0] == ["status", "runs"] and ["completed", "2"] in lines and ["failed", "1"] in lines
    assert "4 runs, 1 of them not closed; 1 dead letter" in shown.out
    told = durable("stats", "--json").json
    assert {name: count for name, count in told["runs"].items() if count} == {"ready": 1, "completed": 2, "failed": 1}
    assert (told["open"], told["dead_letters"]) == (1, 1)
    assert told["oldest_ready"]["task"] == "cli_task" and told["oldest_ready"]["seconds"] >= 0
    assert "executors" not in told
    assert f"run {told['oldest_ready']['run_id']} of task 'cli_task' waits for a slot" in shown.out


def test_a_folder_without_a_store_is_an_error(durable: Cli, tmp_path: Path) -> None:
    """As for every look."""
    assert durable("stats", "--store", str(tmp_path / "nothing")).code == 1


async def test_it_lists_executors(place: Place) -> None:
    """On PostgreSQL: who executes, since when, what each holds, and how long its lease lasts."""
    assert "no executors" in place.cli("stats").out
    async with place.client() as app:
        handle = await app.start(working.long)
        with place.worker() as worker:
            await begun(handle)
            (executor,) = place.cli("stats", "--json").json["executors"]
            assert executor["pid"] == worker.pid and executor["held"] == 1 and executor["lease_seconds"] > 0
            shown = place.cli("stats").out
            assert executor["executor_id"] in shown and "holds" in shown and " left" in shown
            place.go.touch()
            await handle
