"""What is printed: stored values made readable, tables, times, JSON.

Law: nothing that was stored reaches the terminal unescaped, and no stored value is decoded into a class to be shown.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from durable.codec import TaggedJson
from durable.codec.encoder import TAG

#: Longest value in a table, and longest value that has the screen for itself.
CELL_CHARACTERS_MAX = 100
VALUE_CHARACTERS_MAX = 4_000


class StoredJson(TaggedJson):
    """A codec that gives back the stored JSON itself, tags and all: no class is looked for."""

    def decode(self, data: bytes | memoryview, expected: object = Any) -> object:
        """Return the JSON tree; for bytes that are none (a pickle, say), what can be told of them."""
        try:
            return json.loads(bytes(data).decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError):
            return {TAG: "not JSON", "v": f"{len(data)} bytes"}


STORED = StoredJson()


def escaped(text: str) -> str:
    """The text with everything that a terminal could act on, or hide, spelled out."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def clipped(text: str, characters_max: int = CELL_CHARACTERS_MAX) -> str:
    """The text, or its beginning."""
    return text if len(text) <= characters_max else text[: characters_max - 1] + "…"


def readable(tree: object) -> str:
    """A stored JSON tree as one would write it in Python, escaped: `Report(path='a', pages=3)`."""
    try:
        return _readable(tree)
    except RecursionError:
        return "<nested too deeply to be shown; see --json>"


def _readable(tree: object) -> str:
    match tree:
        case {"$": str(tag), "v": value, **rest}:
            return _tagged(tag, value, rest.get("c"))
        case dict():
            return "{" + ", ".join(f"{key!r}: {_readable(item)}" for key, item in tree.items()) + "}"
        case list():
            return "[" + ", ".join(map(_readable, tree)) + "]"
        case _:
            return repr(tree)


def _tagged(tag: str, value: object, path: object) -> str:
    if isinstance(path, str):
        name = escaped(path.rpartition(":")[2])
        if isinstance(value, dict):
            return f"{name}({', '.join(f'{escaped(key)}={_readable(item)}' for key, item in value.items())})"
        return f"{name}.{escaped(value)}" if tag == "enum" and isinstance(value, str) else f"{name}({_readable(value)})"
    match tag, value:
        case "tuple", list():
            return "(" + ", ".join(map(_readable, value)) + ("," if len(value) == 1 else "") + ")"
        case (("set" | "frozenset"), list()):
            return "{" + ", ".join(map(_readable, value)) + "}" if value else "set()"
        case (("int" | "float"), str()):
            return escaped(value)
        case "not JSON", str():  # what `StoredJson.decode` gives for bytes of another codec
            return f"<{escaped(value)}, not JSON>"
        case "dict", list():
            pairs = [pair for pair in value if isinstance(pair, list) and len(pair) == 2]
            return "{" + ", ".join(f"{_readable(key)}: {_readable(item)}" for key, item in pairs) + "}"
        case "path", [*_, str(text)]:
            return f"Path({text!r})"
        case "encoded", _:  # a value that was encoded before it became part of this one
            return _readable(value)
        case "child", str():
            return f"<child {escaped(value)}>"
        case "child", {"task": str(task), "status": str(status), **rest}:
            return f"<child {task!r} {escaped(status)}{_outcome(rest)}>"
    return f"{escaped(tag)}({_readable(value)})"


def _outcome(rest: dict[Any, object]) -> str:
    """What is stored of a child that ended, besides its status."""
    match rest:
        case {"failure": {"error_type": str(kind), "message": str(message)}}:
            return escaped(f": {kind}: {message}")
        case {"reason": str(reason)}:
            return f": {escaped(reason)}"
        case {"result": dict() as result}:
            return f": {_readable(result)}"
    return ""


def value_of(payload: bytes | None) -> object:
    """The stored JSON of a payload."""
    return None if payload is None else STORED.decode(payload)


def call_text(name: str, ident: bytes) -> str:
    """A call of the body as one would write it: `fetch('a.html')`. A long identity is stored cut off, and shown so."""
    text = ident.decode("utf-8", "replace")
    if not text:
        return f"{escaped(name)}()"
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return f"{escaped(name)}({escaped(text.partition('...sha256:')[0])[1:]}…)"
    arguments = readable(tree)
    return f"{escaped(name)}({arguments[1:-1] if isinstance(tree, list) else arguments})"


def to_json(value: object) -> str:
    """One line of JSON, ASCII only."""
    return json.dumps(value, ensure_ascii=True, default=str).replace("\x7f", "\\u007f")


def moment(at: float | None) -> str:
    """A time for people: UTC, to the second."""
    return "-" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def clock_time(at: float) -> str:
    """The time of day, UTC, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S.%f")[:-3]


def iso(at: float | None) -> str | None:
    """A time for programs."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()


def span(seconds: float) -> str:
    """How long something took."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    return f"{minutes:.0f} min" if minutes < 120 else f"{hours:.1f} h" if hours < 48 else f"{days:.1f} days"


def counted(number: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def children_counted(number: int) -> str:
    """`1 child`, `2 children`."""
    return "1 child" if number == 1 else f"{number:,} children"


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "") -> None:
    """Print rows under a head, in columns. Cells are expected to be escaped."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        print(indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def without_passwords(text: str) -> str:
    """The text with what may be the password of a database left out: of a URL, or of a list like `host=... password=...`."""
    text = re.sub(r"(postgres(?:ql)?://[^\s:@/]*):\S*@", r"\1:***@", text)
    return re.sub(r"(password=)('[^']*'|[^\s&']+)", r"\1***", text)


def complain(message: str) -> None:
    """Say on stderr, in one line, what is wrong and what to do."""
    print(f"durable: {escaped(without_passwords(' '.join(message.split())))}", file=sys.stderr)
