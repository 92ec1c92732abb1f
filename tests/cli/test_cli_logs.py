"""`durable log verify`, `dump`, `repair`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from durable.cli.logs import _units, _verified
from durable.log import DiskFiles
from durable.log.repair import dump
from tests.cli.workers import Outcome

Cli = Callable[..., Outcome]


@pytest.fixture
def damaged(store: Path) -> Path:
    """The store, with a byte turned in the middle of its log."""
    segment = min((store / "log").glob("*.log"))
    content = bytearray(segment.read_bytes())
    used = len(content.rstrip(b"\0"))
    content[used // 2] ^= 0xFF
    segment.write_bytes(content)
    return store


def test_a_sound_log_is_said_to_be(durable: Cli, store: Path) -> None:
    """Verify tells what the log holds; the folder of the store and that of the log mean the same."""
    assert "sound" in durable("log", "verify").out
    report = durable("log", "verify", str(store / "log"), "--json").json
    assert report["ok"]
    assert report["next_lsn"] > report["first_lsn"] == 1
    assert report == durable("log", "verify", str(store), "--json").json


def test_dump_has_every_record(durable: Cli) -> None:
    """All records of all runs are in the log, each run's numbered without a hole."""
    records = durable("log", "dump", "--json").lines
    for run in durable("runs", "--json").lines:
        assert [record["seq"] for record in records if record["run_id"] == run["run_id"]] == list(
            range(1, run["last_seq"] + 1)
        )


def test_damage_is_told_by_the_exit_code(durable: Cli, damaged: Path) -> None:
    """Verify and dump say where the log is damaged and what to do, in one line."""
    for command in ("verify", "dump"):
        shown = durable("log", command)
        assert shown.code == 1
        assert len(shown.err.splitlines()) == 1
        assert "cannot be read" in shown.err
    assert "DAMAGED" in durable("log", "verify").out


def test_repair_gives_up_nothing_unless_told_to(durable: Cli, damaged: Path) -> None:
    """Without --accept-loss nothing is changed; with it the log is sound again, what was cut off is kept, and the store opens."""
    segment = min((damaged / "log").glob("*.log"))
    before = segment.read_bytes()
    refused = durable("log", "repair")
    assert (refused.code, refused.out) == (1, "")
    assert "--accept-loss" in refused.err
    assert segment.read_bytes() == before
    repaired = durable("log", "repair", "--accept-loss")
    assert repaired.code == 0
    kept = repaired.out.split("kept in ")[1].split()[0].rstrip(",")
    assert (damaged / "log" / kept).stat().st_size > 0
    assert durable("log", "verify").code == 0
    assert durable("stop", "wait").code == 0
    assert "nothing to repair" in durable("log", "repair", "--accept-loss").out


def test_a_folder_without_a_log_is_refused(durable: Cli, tmp_path: Path) -> None:
    """To verify the wrong folder is a failure, not an empty log."""
    for command in ("verify", "dump", "repair"):
        shown = durable("log", command, str(tmp_path))
        assert shown.code == 1
        assert "holds no log" in shown.err


class Retiring(DiskFiles):
    """A log whose writer removes a segment just before it is read, so many times."""

    left = 0

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if name.endswith(".log") and self.left:
            self.left -= 1
            raise FileNotFoundError(name)
        return super().read(name, offset, length)


@pytest.mark.parametrize("times", [1, 2, 4])
def test_segments_that_are_removed_meanwhile_are_no_damage(store: Path, times: int) -> None:
    """Beside a process that flushes and retires, a look that finds a segment gone looks again, and shows nothing twice."""
    files = Retiring(store / "log")
    whole = list(dump(files))
    files.left = times
    assert _verified(files).ok
    files.left = times
    assert list(_units(files)) == whole
