"""Workers: processes that the tests start, watch and end, and the stores that they work on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from durable import Config, Durable, Handle
from durable.config import PostgresSettings

ROOT = Path(__file__).resolve().parents[2]
SECONDS_MAX = 30.0


@dataclass(frozen=True)
class Outcome:
    """What a command line gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output, which is one line of JSON."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Its output, which is lines of JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Place:
    """A store for one test, and where its workers note what they do."""

    url: str
    schema: str
    folder: Path

    @property
    def words(self) -> list[str]:
        return ["--store", self.url, "--schema", self.schema]

    @property
    def go(self) -> Path:
        return self.folder / "go"

    @property
    def notes(self) -> list[str]:
        file = self.folder / "notes"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def environment(self) -> dict[str, str]:
        return {"WORKING_NOTES": str(self.folder / "notes"), "WORKING_GO": str(self.go)}

    @property
    def config(self) -> Config:
        return Config(postgres=PostgresSettings(schema=self.schema))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Durable]:
        """An application that starts and watches runs, and executes none."""
        async with Durable(self.url, config=self.config, execute=False) as application:
            yield application

    def cli(self, *words: str) -> Outcome:
        """Run a command on the store, as a process."""
        return cli(*words, *self.words, environment=self.environment)

    def worker(self, *words: str) -> Worker:
        """A worker on the store, which is ready when this returns."""
        return Worker("tests.cli.working", *words, *self.words, environment=self.environment)


def cli(*words: str, environment: Mapping[str, str] = {}, cwd: Path = ROOT) -> Outcome:
    command = [sys.executable, "-m", "durable", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=cwd, env={**os.environ, **environment}
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


class Worker:
    """A process `durable worker`, which is killed when the block is left and it is still there."""

    def __init__(self, *words: str, environment: Mapping[str, str] = {}, cwd: Path = ROOT) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "durable", "worker", *words],
            stdout=subprocess.PIPE, text=True, cwd=cwd, env={**os.environ, **environment},
        )  # fmt: skip
        assert self._process.stdout is not None
        self._lines = self._process.stdout
        self.ready = self._lines.readline()

    def __enter__(self) -> Worker:
        assert self.ready.startswith("durable worker is ready: "), self.ready
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._lines.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self) -> str:
        """The next line that it prints."""
        return self._lines.readline()

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def ended(self) -> int:
        """Wait for its end; its exit code."""
        return self._process.wait(SECONDS_MAX)

    def stop(self) -> int:
        self.send(signal.SIGTERM)
        return self.ended()


async def begun(handle: Handle[Any]) -> None:
    """Wait until a worker is at work on the run."""
    async with asyncio.timeout(SECONDS_MAX):
        async for event in handle.events():
            if event.name == "begun":
                return
    raise AssertionError("the run ended before it began")
