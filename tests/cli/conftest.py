"""A store with one run of each kind, and the command line as a function."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from durable import Context, Durable, Retry, RunFailedError, step, task
from durable.cli.main import main
from tests.cli.workers import Outcome, Place

#: Sets the title of a terminal, clears it, hides text: what a stored value must never do.
EVIL = "\x1b]0;evil\x07\x1b[2J\r\x7f\u202e"


@dataclass
class Page:
    title: str
    size: int


bodies: list[str] = []


@step(name="cli_fetch")
async def fetch(url: str) -> Page:
    bodies.append(f"fetch {url}")
    return Page(f"title of {url}", 3)


@step(name="cli_shaky", retry=Retry(3, delay=0.001))
async def shaky(url: str) -> str:
    bodies.append(f"shaky {url}")
    if sum(body == f"shaky {url}" for body in bodies) < 3:
        raise OSError(f"not yet {EVIL}")
    return "at last"


@task(name="cli_task")
async def work(ctx: Context[Any], url: str) -> str:
    page = await fetch(url)
    await ctx.emit(page)
    if "evil" in url:
        await ctx.emit("note", {"text": EVIL})
        return EVIL
    if "bad" in url:
        raise ValueError(f"cannot read {url}\n{EVIL}")
    if "wait" in url:
        await ctx.wait_for("go")
    return await shaky(url)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """A closed store: runs `good` (completed), `bad` (failed), `evil` (of user mallory, completed), `wait` (not ended)."""
    bodies.clear()

    async def fill() -> None:
        async with Durable(tmp_path / "store") as app:
            assert await (await app.start(work.options(key="good"), "good.html")) == "at last"
            with pytest.raises(RunFailedError):
                await (await app.start(work.options(key="bad"), "bad.html"))
            await (await app.start(work.options(key=f"evil{EVIL}", user="mallory"), "evil.html"))
            handle = await app.start(work.options(key="wait"), "wait.html")
            async for event in handle.events():
                if event.name == "waiting":
                    break

    asyncio.run(fill())
    yield tmp_path / "store"
    bodies.clear()


#: Their law is that no body runs, which they keep by being a process that has no task: this one has.
DECIDING = frozenset({"cancel", "retry", "stop", "resume", "discard"})


@pytest.fixture
def durable(store: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command line on the store."""

    def run(*arguments: str) -> Outcome:
        words = ["--dir", str(store), *arguments]
        if DECIDING.intersection(arguments):
            command = [sys.executable, "-m", "durable", *words]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            return Outcome(done.returncode, done.stdout, done.stderr)
        capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as ending:
            code = int(ending.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def place(postgres_url: str, postgres_schema: str, tmp_path: Path) -> Place:
    """A store in PostgreSQL, with its tables."""
    place = Place(postgres_url, postgres_schema, tmp_path)
    assert place.cli("migrate").code == 0
    return place
