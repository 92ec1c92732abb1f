"""The demo's task: measure the source of Python's own standard library. Extract, transform, load.

Law: each step writes to a file that the engine does not know when it begins and when it ends, so that what ran can be counted from outside.
"""

from __future__ import annotations

import ast
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from durable.cli.demo_terms import AT_ONCE, EFFECTS_VARIABLE
from durable.tasks.decorators import step, task
from durable.tasks.recorded import map as durable_map

BATCHES = 24
LONGEST_KEPT = 5
#: Not the library itself: its tests, and what others installed.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class Batch:
    """Some modules, by path below `folder`."""

    number: int
    folder: str
    paths: list[str]


@dataclass(frozen=True)
class Facts:
    """What was measured. `longest` holds (lines, name) of functions, `imports` counts modules by how many others import them."""

    batch: int = 0
    modules: int = 0
    lines: int = 0
    functions: int = 0
    classes: int = 0
    longest: list[tuple[int, str]] = field(default_factory=list)
    imports: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)


def label_of(step_name: str, batch: int | None = None) -> str:
    """How the demo calls a step."""
    return step_name if batch is None else f"{step_name} {batch}"


def note_effect(line: str) -> None:
    """Write a line outside the engine, in one write."""
    path = os.environ.get(EFFECTS_VARIABLE)
    if path:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, f"{line}\n".encode())
        finally:
            os.close(fd)


@contextmanager
def _effects(label: str) -> Iterator[None]:
    note_effect(f"begin {label}")
    yield
    note_effect(f"end {label}")


@step
def extract(folder: str) -> list[Batch]:
    """Find every module and sort them into batches of about the same size."""
    with _effects(label_of("extract")):
        root = Path(folder)
        found = [path.relative_to(root) for path in sorted(root.rglob("*.py"))]
        kept = [(str(path), (root / path).stat().st_size) for path in found if not _LEFT_OUT.intersection(path.parts)]
        total = sum(size for _, size in kept)
        batches: list[list[str]] = [[] for _ in range(BATCHES)]
        before = 0
        for path, size in kept:
            batches[min(before * BATCHES // max(total, 1), BATCHES - 1)].append(path)
            before += size
        return [Batch(number, folder, paths) for number, paths in enumerate(filter(None, batches), 1)]


@step
def transform(batch: Batch) -> Facts:
    """Read and parse the modules of one batch, and measure them."""
    with _effects(label_of("transform", batch.number)):
        lines = functions = classes = modules = 0
        longest: list[tuple[int, str]] = []
        imports: Counter[str] = Counter()
        unreadable: list[str] = []
        for path in batch.paths:
            try:
                source = Path(batch.folder, path).read_bytes()
                tree = ast.parse(source)
            except (OSError, SyntaxError, ValueError):
                unreadable.append(path)
                continue
            modules += 1
            lines += source.count(b"\n")
            imported: set[str] = set()
            for node in ast.walk(tree):
                match node:
                    case ast.FunctionDef() | ast.AsyncFunctionDef():
                        functions += 1
                        longest.append(((node.end_lineno or node.lineno) - node.lineno + 1, f"{path}: {node.name}()"))
                    case ast.ClassDef():
                        classes += 1
                    case ast.Import():
                        imported.update(alias.name.partition(".")[0] for alias in node.names)
                    case ast.ImportFrom(module=str(module), level=0):
                        imported.add(module.partition(".")[0])
            imports.update(imported)
            longest = sorted(longest, reverse=True)[:LONGEST_KEPT]
        return Facts(batch.number, modules, lines, functions, classes, longest, dict(imports), unreadable)


@step
def load(parts: list[Facts]) -> Facts:
    """Sum up."""
    with _effects(label_of("load")):
        imports: Counter[str] = Counter()
        for part in parts:
            imports.update(part.imports)
        return Facts(
            modules=sum(part.modules for part in parts),
            lines=sum(part.lines for part in parts),
            functions=sum(part.functions for part in parts),
            classes=sum(part.classes for part in parts),
            longest=sorted((each for part in parts for each in part.longest), reverse=True)[:LONGEST_KEPT],
            imports=dict(imports.most_common(LONGEST_KEPT)),
            unreadable=[path for part in parts for path in part.unreadable],
        )


@task
async def measure_library(folder: str) -> Facts:
    """The task itself. Nothing in it knows of crashes."""
    batches = await extract(folder)
    parts = await durable_map(transform, batches, limit=AT_ONCE)
    return await load(parts)
