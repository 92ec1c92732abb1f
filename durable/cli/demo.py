"""`durable demo`: a supervisor that kills its worker with SIGKILL half way, starts it again, and counts what ran.

Law: what ran is counted outside the engine, in a file that the bodies of the steps write to; the worker is told nothing of the kill.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import sysconfig
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from durable.cli.demo_screen import Screen, print_counts, print_report
from durable.cli.demo_terms import EFFECTS_VARIABLE
from durable.cli.terminal import complain
from durable.clock import SYSTEM_CLOCK

LINE_BYTES_MAX = 1 << 20


@dataclass
class Story:
    """What is known of the run, from its events: `done` has the finished steps in order, by the seq of their record."""

    done: dict[str, int] = field(default_factory=dict)
    batches: int = 0
    modules: int = 0
    recovered_seq: int = 0
    report: dict[str, Any] | None = None
    error: str | None = None

    @property
    def steps(self) -> int:
        """How many steps the run has: extract, the batches, load."""
        return self.batches + 2 if self.batches else 0

    def take(self, event: dict[str, Any]) -> str | None:
        """Learn from an event; returns the step that it says is finished, if that is news."""
        self.report = event.get("report", self.report)
        self.error = event.get("error", self.error)
        if event["name"] == "recovered":
            self.recovered_seq = event["seq"]
        label: str | None = event.get("label")
        if label is None or label in self.done:
            return None
        if label == "extract":
            self.batches, self.modules = event["batches"], event["modules"]
        self.done[label] = event["seq"]
        return label


class Worker:
    """The worker process; leaving the block kills what is left of it."""

    def __init__(self, folder: str, library: str, effects: str) -> None:
        self._arguments = ("-W", "ignore", "-m", "durable.cli.demo_worker", folder, library)
        self._environment = {**os.environ, EFFECTS_VARIABLE: effects}
        self._process: asyncio.subprocess.Process
        self._killed = False

    async def __aenter__(self) -> Worker:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *self._arguments, stdout=asyncio.subprocess.PIPE, env=self._environment, limit=LINE_BYTES_MAX,
            start_new_session=True,  # a Ctrl-C is for the supervisor, which then ends the worker
        )  # fmt: skip
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.kill()
        await self._process.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def kill(self) -> None:
        """`kill -9`: no handler runs, nothing is flushed."""
        # Not by the process object: its `kill` looks first whether the child has ended, and so takes the news from asyncio's own watcher.
        if self._process.returncode is None and not self._killed:
            self._killed = True
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The events that it prints, until its end."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if line.endswith(b"\n"):  # else the kill cut it off
                yield json.loads(line)


async def demo(args: Namespace) -> int:
    """Run the demo and return the exit code."""
    library = sysconfig.get_path("stdlib")
    if not any(Path(library).glob("*.py")):  # noqa: ASYNC240 - nothing else runs yet
        complain(
            f"the demo reads the source of Python's standard library, and there is none in {library}: use a full Python"
        )
        return 1
    began = SYSTEM_CLOCK.monotonic()
    screen = Screen(sys.stdout)
    story = Story()
    screen.introduce(library)
    with tempfile.TemporaryDirectory(prefix="durable-demo-") as folder:
        effects = os.path.join(folder, "effects.txt")
        store = os.path.join(folder, "store")
        try:
            await _until_half(Worker(store, library, effects), story, screen)
            if story.report is None and story.error is None:
                before = _lines(effects)
                await _to_the_end(Worker(store, library, effects), story, screen, before)
        finally:
            screen.leave()
        lines = _lines(effects)
    if story.report is None:
        complain(f"the demo's worker did not finish: {story.error or 'it ended early, see above'}")
        return 1
    print_report(screen, story.report)
    begun = Counter(line.removeprefix("begin ") for line in lines if line.startswith("begin "))
    recorded = [label for label, seq in story.done.items() if seq < story.recovered_seq]
    twice = [label for label in recorded if begun[label] > 1]
    print_counts(screen, {
        "steps": len(story.done), "from_log": len(recorded), "cut_off": sum(count > 1 for count in begun.values()) - len(twice),
        "twice": len(twice), "seconds": SYSTEM_CLOCK.monotonic() - began,
    })  # fmt: skip
    return 1 if twice else 0


async def _until_half(worker: Worker, story: Story, screen: Screen) -> None:
    async with worker:
        screen.say(f"worker process {worker.pid} runs the task")
        async for event in worker.events():
            label = story.take(event)
            if label is not None:
                screen.finished(label, len(story.done), story.steps)
            if story.steps and len(story.done) >= story.steps // 2:
                worker.kill()
        if story.report is None and story.error is None:
            screen.killed(worker.pid, len(story.done), story.steps)


async def _to_the_end(worker: Worker, story: Story, screen: Screen, before: list[str]) -> None:
    known = set(story.done)
    told = False
    async with worker:
        screen.say(f"worker process {worker.pid} opens the same folder")
        async for event in worker.events():
            label = story.take(event)
            if label is not None and not story.recovered_seq:
                known.add(label)  # recorded before the kill, though nobody heard of it
            elif label is not None:
                screen.finished(label, len(story.done), story.steps)
            if story.recovered_seq and not told:
                told = True
                begun = {line.removeprefix("begin ") for line in before if line.startswith("begin ")}
                screen.recovered([step for step in story.done if step in known], sorted(begun - known, key=_order))


def _order(label: str) -> tuple[str, int]:
    name, _, number = label.partition(" ")
    return name, int(number or 0)


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text("utf-8").splitlines() if file.exists() else []
