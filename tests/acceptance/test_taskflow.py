"""Every feature, setting, event, metric and error that taskflow names, and every fault it has: each has its test, or its reason."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import chain
from pathlib import Path

import pytest

import durable
import durable.config
import durable.errors
from durable.core.records import RESERVED_NAMES
from tests.acceptance import taskflow_table as table
from tests.acceptance.taskflow_weaknesses import WEAKNESSES

ROOT = Path(__file__).parents[2]
ROWS = [*table.FEATURES, *table.METHODS, *table.SETTINGS, *table.EVENTS, *table.METRICS, *table.SPANS, *table.ERRORS]
PLACE = re.compile(r"\btests/[a-z_/.]*(?:::\w+)?")
WORDS_OF_A_REASON = 7


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    """The names of the tests in a file, or in all files of a folder."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    trees = (ast.parse(file.read_text()) for file in files)
    functions = (
        node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


def places(shown: str) -> Iterator[tuple[Path, str]]:
    """The files, and the tests in them, that a text names."""
    for place in PLACE.findall(shown):
        file, _, name = place.rstrip(".").partition("::")
        yield ROOT / file, name


def problems(what: str, shown: str) -> Iterator[str]:
    """What is wrong with how a row is shown."""
    found = list(places(shown))
    if not found and len(shown.split()) < WORDS_OF_A_REASON:
        yield f"{what}: {shown!r} names no test and gives no reason"
    for file, name in found:
        if not name and file.suffix:
            yield f"{what}: which test of {file.relative_to(ROOT)} shows it?"
        elif not file.exists():
            yield f"{what}: there is no {file.relative_to(ROOT)}"
        elif not names_in(file):
            yield f"{what}: there is no test in {file.relative_to(ROOT)}"
        elif name and name not in names_in(file):
            yield f"{what}: there is no {name} in {file.relative_to(ROOT)}"


def test_every_row_names_a_test_or_a_reason() -> None:
    shown = chain(
        ((theirs, shown) for theirs, _, shown in ROWS),
        ((f"W{number}", shown) for number, (_, shown) in WEAKNESSES.items()),
    )
    assert list(chain.from_iterable(problems(what, text) for what, text in shown)) == []


def test_no_weakness_is_left_out() -> None:
    assert list(WEAKNESSES) == list(range(1, 69))


@pytest.mark.parametrize(("theirs", "ours"), [(theirs, ours) for theirs, ours, _ in table.SETTINGS])
def test_settings_have_their_counterparts(theirs: str, ours: str) -> None:
    owner, _, key = ours.partition(".")
    settings = getattr(durable.config, owner, None)
    if settings is None:
        assert ours == "Durable" or importlib.import_module(ours), theirs
        return
    assert not key or (is_dataclass(settings) and key in {field.name for field in fields(settings)})


@pytest.mark.parametrize("ours", [ours for _, ours, _ in [*table.FEATURES, *table.METHODS]])
def test_names_are_ours(ours: str) -> None:
    """Each is a module, or something public, or an attribute of it."""
    if ours.startswith("durable.") and "." in ours:
        module, _, name = ours.rpartition(".")
        assert hasattr(importlib.import_module(module), name) or importlib.import_module(ours)
        return
    owner, _, name = ours.partition(".")
    holder = (
        getattr(durable, owner, None) or getattr(durable.config, owner, None) or getattr(durable.errors, name, None)
    )
    assert holder is not None
    assert not name or owner == "errors" or hasattr(holder, name) or name in _given(holder)


def _given(holder: object) -> set[str]:
    """What objects of a class have once they are made."""
    source = ast.parse(Path(importlib.import_module(holder.__module__).__file__ or "").read_text())
    return {
        node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }


@pytest.mark.parametrize("ours", [ours for _, ours, _ in table.EVENTS if "." not in ours])
def test_events_have_their_counterparts(ours: str) -> None:
    assert ours in RESERVED_NAMES or ours == "progress"


@pytest.mark.parametrize("ours", [ours for _, ours, _ in [*table.METRICS, *table.SPANS]])
def test_metrics_and_spans_have_their_counterparts(ours: str) -> None:
    """Each name is said in the code once, and asserted by a test."""
    code = "".join(file.read_text() for file in (ROOT / "durable" / "observe").glob("*.py"))
    tests = "".join(file.read_text() for file in (ROOT / "tests" / "observe").glob("*.py"))
    short = ours.removeprefix("durable.")
    assert re.search(rf"[\"'.]{re.escape(short)}[\"']", code), f"{ours} is not recorded"
    assert short in tests, f"no test asserts {ours}"


@pytest.mark.parametrize("ours", [ours for _, ours, _ in table.ERRORS])
def test_errors_have_their_counterparts(ours: str) -> None:
    _, name, attribute = ours.split(".")
    error = getattr(durable.errors, name)
    assert issubclass(error, durable.errors.DurableError) and attribute in error.__init__.__annotations__
