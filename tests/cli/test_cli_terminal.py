"""What becomes of stored values on the screen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable.cli.terminal import call_text, clipped, escaped, readable, span, to_json, value_of
from durable.codec import TaggedJson
from durable.core.run import Run
from durable.core.status import Status
from durable.tasks.child import Child, register_children


class Colour(Enum):
    RED = 1


@dataclass
class Point:
    x: int
    label: str


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda part: (
        st.lists(part)
        | st.dictionaries(st.text() | st.sampled_from(["$", "v", "c"]), part)
        | st.fixed_dictionaries(
            {
                "$": st.text()
                | st.sampled_from(["tuple", "dict", "set", "enum", "dataclass", "path", "child", "encoded"]),
                "v": part,
            },
            optional={"c": st.text() | part},
        )
        | st.fixed_dictionaries(
            {"task": st.text() | part, "status": st.text()},
            optional={
                "result": part,
                "reason": st.text(),
                "failure": st.fixed_dictionaries({"error_type": st.text(), "message": st.text()}),
            },
        ).map(lambda outcome: {"$": "child", "v": outcome})
    ),
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"a": [1, 2.5, None, True]}, "{'a': [1, 2.5, None, True]}"),
        (Point(1, "\x1b"), "Point(x=1, label='\\x1b')"),
        ([Colour.RED, (1,), ()], "[Colour.RED, (1,), ()]"),
        (datetime(2026, 1, 2, tzinfo=UTC), "datetime('2026-01-02T00:00:00+00:00')"),
        (Decimal("1.50"), "decimal('1.50')"),
        ({1: "one"}, "{1: 'one'}"),
        (10**30, "1000000000000000000000000000000"),
        (Path("a/b"), "Path('a/b')"),
    ],
)
def test_values_are_shown_as_one_would_write_them(value: object, shown: str) -> None:
    """From the stored bytes alone: no class is looked for."""
    assert readable(value_of(TaggedJson().encode(value))) == shown


@pytest.mark.parametrize(
    ("outcome", "shown"),
    [
        ({"status": Status.COMPLETED, "result": b"[1]"}, "<child 'page' completed: [1]>"),
        ({"status": Status.COMPLETED, "result": b'{"$":"tuple","v":[1]}'}, "<child 'page' completed: (1,)>"),
        ({"status": Status.COMPLETED}, "<child 'page' completed>"),
        (
            {"status": Status.FAILED, "failure": {"error_type": "ValueError", "message": "\x1b", "traceback": ""}},
            "<child 'page' failed: ValueError: \\x1b>",
        ),
        ({"status": Status.CANCELLED, "reason": "en\nough"}, "<child 'page' cancelled: en\\nough>"),
        ({"status": Status.CANCELLED}, "<child 'page' cancelled>"),
    ],
)
def test_a_child_within_a_value_is_shown_with_its_outcome(outcome: dict[str, Any], shown: str) -> None:
    """One that was started as its run; one that ended with what it came to, which is a stored value within a stored value."""
    codec = TaggedJson()
    register_children(codec)
    child: Child[Any] = Child(run_id="0123")
    assert readable(value_of(codec.encode([child]))) == "[<child 0123>]"
    child.end(Run("0123", task="page", **outcome), codec)
    assert readable(value_of(codec.encode({"a": child}))) == f"{{'a': {shown}}}"


def test_what_is_not_json_is_said_to_be() -> None:
    """A pickle is neither loaded nor printed."""
    assert readable(value_of(b"\x80\x04\x95abc")) == "<6 bytes, not JSON>"


def test_a_deep_value_is_no_crash() -> None:
    """A value that is nested to the limit, or made to be nested beyond it, is shown or said to be too deep."""
    for depth in (100, 500, 200_000):
        assert readable(value_of(b"[" * depth + b"]" * depth)).isprintable()


@given(trees)
def test_any_tree_is_shown_printable(tree: object) -> None:
    """Whatever JSON a damaged or hostile store holds, showing it neither fails nor lets a control character through."""
    assert readable(tree).isprintable()
    assert to_json(tree).isprintable()


@given(st.text(), st.binary())
def test_any_call_is_shown_printable(name: str, ident: bytes) -> None:
    """A call's name and arguments may be cut off or damaged."""
    assert call_text(name, ident).isprintable()


@pytest.mark.parametrize("hide", [str, lambda text: text * 3])
def test_escaping_keeps_what_is_printable(hide: Callable[[str], str]) -> None:
    """Letters of any script stay, and a clipped text says that it is one."""
    assert escaped(hide("größe 数 é")) == hide("größe 数 é")
    assert escaped("a\nb\u202e\ud800") == "a\\nb\\u202e\\ud800"
    assert clipped("abcdef", 4) == "abc…"


def test_spans_have_their_unit() -> None:
    """From milliseconds to days."""
    assert [span(seconds) for seconds in (0.0123, 1.5, 600, 7200 * 2, 86400 * 3)] == [
        "12 ms",
        "1.5 s",
        "10 min",
        "4.0 h",
        "3.0 days",
    ]
