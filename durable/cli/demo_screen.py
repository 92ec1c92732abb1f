"""What the demo shows: a bar that moves on a terminal, lines where the output goes to a file.

Law: without colours and cursor movement it says the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, TextIO

from durable.cli.demo_terms import AT_ONCE
from durable.cli.terminal import counted, escaped

BAR_CELLS = 40


class Screen:
    """Where the demo is shown."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._colours = self._live and "NO_COLOR" not in os.environ
        self._bar = False

    def style(self, text: str, code: str) -> str:
        """The text in a colour, where there are colours."""
        return f"\x1b[{code}m{text}\x1b[0m" if self._colours else text

    def say(self, text: str = "") -> None:
        """Print a line, above the bar if one is there."""
        self.leave()
        print(text, file=self._stream, flush=True)

    def introduce(self, library: str) -> None:
        """Say what is about to be seen."""
        version = ".".join(map(str, sys.version_info[:3]))
        self.say(self.style("A task survives kill -9", "1"))
        self.say(f"The task measures the source of Python {version}'s standard library,")
        self.say(f"{escaped(library)}:")
        self.say(f"extract finds the modules, transform parses them in batches ({AT_ONCE} at once), load sums up.")
        self.say("Half way its process is killed. A second process then goes on from the log.")
        self.say()

    def finished(self, label: str, done: int, steps: int) -> None:
        """A step's result is in the log."""
        if not self._live:
            self.say(f"  {done:>2}/{steps}  {label}")
            return
        width = max(min(BAR_CELLS, os.get_terminal_size(self._stream.fileno()).columns - 34), 4)
        cells = width * done // max(steps, 1)
        bar = self.style("█" * cells, "32") + "░" * (width - cells)
        print(f"\r\x1b[K  {bar} {done}/{steps} steps  {label}", end="", file=self._stream, flush=True)
        self._bar = True

    def leave(self) -> None:
        """End the line of the bar."""
        if self._bar:
            print(file=self._stream)
            self._bar = False

    def killed(self, pid: int, done: int, steps: int) -> None:
        """Say that the worker is dead."""
        self.say()
        self.say(self.style(f"kill -9 {pid}", "1;31") + f"  the worker is dead, {done} of {steps} steps were finished")
        self.say()

    def recovered(self, known: Sequence[str], cut_off: Sequence[str]) -> None:
        """Say what the second worker found in the log."""
        self.say(f"  from the log, not run again:   {self.style(steps_text(known), '32')}")
        if cut_off:
            self.say(f"  cut off by the kill, run anew: {steps_text(cut_off)}")


def steps_text(labels: Sequence[str]) -> str:
    """`extract, transform 1-9` for a list of steps."""
    parts = [label.partition(" ") for label in labels]
    texts = []
    for name, group in groupby(parts, key=lambda part: part[0]):
        numbers = [int(number) for _, _, number in group if number]
        texts.append(f"{name} {ranges(numbers)}" if numbers else name)
    return ", ".join(texts)


def print_report(screen: Screen, report: Mapping[str, Any]) -> None:
    """The task's result."""
    screen.say()
    screen.say(screen.style("The report", "1"))
    for name in ("modules", "lines", "functions", "classes"):
        screen.say(f"  {name:<22}{report[name]:>10,}")
    screen.say("  longest functions")
    for lines, name in report["longest"]:
        screen.say(f"  {lines:>10,} lines  {escaped(name)}")
    screen.say("  most imported")
    for name, count in report["imports"].items():
        screen.say(f"  {count:>8,} modules  {escaped(name)}")
    if report["unreadable"]:
        screen.say(
            f"  {counted(len(report['unreadable']), 'file')} could not be parsed: {escaped(', '.join(report['unreadable'][:3]))}"
        )


def print_counts(screen: Screen, counts: Mapping[str, Any]) -> None:
    """What ran, counted outside the engine."""
    screen.say()
    screen.say(screen.style("What ran", "1"))
    twice, cut_off = counts["twice"], counts["cut_off"]
    screen.say(f"  {counts['steps']:>4}  steps executed")
    screen.say(
        f"  {counts['from_log']:>4}  of them taken from the log by the second process, which did not run them again"
    )
    if cut_off:
        screen.say(f"  {cut_off:>4}  cut off in the middle by the kill: not finished, so run anew")
    screen.say(screen.style(f"  {twice:>4}  steps run twice", "1;31" if twice else "1;32"))
    screen.say(f"counted outside the engine, in a file that each body writes to; all in {counts['seconds']:.1f} s")


def ranges(numbers: list[int]) -> str:
    """`1-5, 7` for [1, 2, 3, 4, 5, 7]."""
    numbers = sorted(numbers)
    cuts = [0, *(place for place, (one, two) in enumerate(pairwise(numbers), 1) if two != one + 1), len(numbers)]
    runs = [numbers[start:end] for start, end in pairwise(cuts) if start < end]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
