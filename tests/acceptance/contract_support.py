"""What the contract's tests share: stores, and programs that live more than one process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from durable import Durable, Handle
from durable.config import PostgresSettings
from durable.store import LocalStore, MemoryStore, PostgresStore, Store

KILLED = -9

_HEAD = """
import asyncio, json, os, signal, sys
from dataclasses import dataclass
from datetime import timedelta

import durable
from durable import *
from durable import task, step

FOLDER, LIFE = sys.argv[1], int(sys.argv[2])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def note(text):
    with open(FOLDER + ".notes", "a") as file:
        print(text, file=file)

"""


def make_app(kind: str, folder: Path) -> Durable:
    """An application on a store of this kind."""
    return Durable(MemoryStore() if kind == "memory" else folder / "store")


def store_of(request: pytest.FixtureRequest, folder: Path) -> Callable[[], Store]:
    """Makes stores of the kind that the fixture's parameter names, all on the same ground."""
    if request.param == "memory":
        memory = MemoryStore()
        return lambda: memory
    if request.param == "folder":
        return lambda: LocalStore(folder / "store")
    url: str = request.getfixturevalue("postgres_url")
    schema: str = request.getfixturevalue("postgres_schema")
    return lambda: PostgresStore(url, PostgresSettings(schema=schema))


async def until_status(handle: Handle, status: str) -> None:
    """Wait until the run has this status."""
    async with asyncio.timeout(10):
        while await handle.status() != status:
            await asyncio.sleep(0.002)


async def until_event(handle: Handle, name: str) -> None:
    """Wait until the run has this event."""
    async for event in handle.events():
        if event.name == name:
            return


def lives(tmp_path: Path, body: str, count: int = 2) -> tuple[str, list[str]]:
    """Run a program `count` times on one folder; all but the last time it kills itself. Return its last output and its notes.

    The program sees `FOLDER`, `LIFE` (from 1), `die()` and `note(text)`, and defines `async def main()`.
    """
    program = tmp_path / "program.py"
    program.write_text(_HEAD + textwrap.dedent(body) + "\nasyncio.run(main())\n")
    folder = tmp_path / "store"
    output = ""
    for life in range(1, count + 1):
        done = subprocess.run(
            [sys.executable, str(program), str(folder), str(life)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        expected = 0 if life == count else KILLED
        assert done.returncode == expected, f"life {life} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        output = done.stdout
    notes = tmp_path / "store.notes"
    return output, notes.read_text().splitlines() if notes.exists() else []
