"""Telling a user how code and record differ.

Law: the message names every call on both sides, and the line of the code that made it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from durable.core.memo import Divergence
from durable.core.records import Call
from durable.tasks.registry import find_task, has_step

_OWN = str(Path(__file__).parent.parent)


def known_call(name: str) -> bool:
    """Whether the code has a step or task of this name, or it is a call of durable's own."""
    return (
        has_step(name)
        or find_task(name) is not None
        or name in ("sleep", "timeout", "now", "wait_for")
        or name.startswith("start:")
    )


def call_site() -> str:
    """File and line of the code outside this package that is calling."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(_OWN) or "/asyncio/" in frame.f_code.co_filename
    ):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def show(call: Call) -> str:
    """A call as one would write it."""
    name, ident, occurrence = call
    text = ident.decode("utf-8", "replace")
    again = f"  (time {occurrence + 1})" if occurrence else ""
    return f"{name}{text if text else '()'}{again}"


def describe(run_id: str, task: str, divergence: Divergence, sites: Mapping[Call, str]) -> str:
    """The whole message: record and code side by side, and what to do."""
    left = [show(call) for call in divergence.recorded] or ["(nothing more)"]
    right = [f"{show(call)}  at {sites[call]}" if call in sites else show(call) for call in divergence.called] or [
        "(no call)"
    ]
    width = max(len("record"), *(len(line) for line in left))
    rows = [f"  {'record':<{width}} | code"]
    for index in range(max(len(left), len(right))):
        first = left[index] if index < len(left) else ""
        second = right[index] if index < len(right) else ""
        rows.append(f"  {first:<{width}} | {second}")
    table = "\n".join(rows)
    return (
        f"run {run_id}: the code of task {task!r} does not do what its record says; probably {divergence.guess}.\n{table}\n"
        "The run is suspended and nothing is lost: mend the code and resume the run, or cancel it."
    )
