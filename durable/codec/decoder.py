"""From the tree that JSON gave to the value: one reader per tag.

Law: a payload chooses among the readers here, never what they run. Whatever a hostile or damaged payload holds, the outcome
is a value or a `PayloadError`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from enum import Enum, Flag
from typing import Any, NamedTuple

from durable.codec.classes import NO_HINTS, find_class, hinted_classes
from durable.codec.encoder import FACTORIES, TAG
from durable.codec.records import RECORD_TAGS, REQUIRED, Shape, missing_fields, shape_of
from durable.codec.scalars import SCALARS, need, read_float, read_int
from durable.errors import DecodeError, PayloadTooDeepError

_VALUE_ONLY = frozenset((TAG, "v"))
_WITH_NOTE = frozenset((TAG, "v", "n"))
_WITH_CLASS = frozenset((TAG, "v", "c"))
_RECORD = frozenset((TAG, "v", "c", "x"))

#: Makes the value of a tagged node: (decoding, node, its parts with their values made).
Maker = Callable[["Decoding", dict[str, Any], Any], object]


class Parts(Enum):
    """What is below a tag's ``v``."""

    LEAF = "no values"
    ONE = "one value"
    ITEMS = "a list of values"
    PAIRS = "a list of [key, value]"
    NAMED = "values by name"


class Reader(NamedTuple):
    """How the nodes of one tag are read: the keys they may have, what is below them, and what makes the value."""

    keys: frozenset[str]
    parts: Parts
    make: Maker


class Decoding:
    """The state of one decode."""

    __slots__ = ("_expected", "_hints", "depth_max", "readers")

    def __init__(self, readers: Mapping[str, Reader], depth_max: int, expected: object) -> None:
        self.readers = readers
        self.depth_max = depth_max
        self._expected = expected
        self._hints: Mapping[str, type] | None = None

    @property
    def hints(self) -> Mapping[str, type]:
        if self._hints is None:
            self._hints = NO_HINTS if self._expected is Any else hinted_classes(self._expected)
        return self._hints

    def part(self, node: object, depth: int) -> object:
        """The value of one node. Lists and plain objects are turned in place: the tree is ours.

        One frame for each level: what an encode could walk on its stack, this can.
        """
        if type(node) is not list and type(node) is not dict:
            return node
        if depth > self.depth_max:
            raise PayloadTooDeepError(f"payload is nested more than payload.depth_max ({self.depth_max}) levels deep")
        if type(node) is list:
            for index, item in enumerate(node):
                if type(item) is dict or type(item) is list:
                    node[index] = self.part(item, depth + 1)
            return node
        assert type(node) is dict  # for mypy, which does not narrow by `type(x) is not`
        if TAG not in node:
            for name, item in node.items():
                if type(item) is dict or type(item) is list:
                    node[name] = self.part(item, depth + 1)
            return node
        reader = self._reader(node)
        try:
            below: Any = node["v"]
            match reader.parts:
                case Parts.LEAF:
                    pass
                case Parts.ITEMS:
                    below = [self.part(item, depth + 1) for item in need(below, list)]
                case Parts.PAIRS:
                    below = [(self.part(key, depth + 1), self.part(item, depth + 1)) for key, item in need(below, list)]
                case Parts.NAMED:
                    below = {name: self.part(item, depth + 1) for name, item in need(below, dict).items()}
                    if "x" in node:
                        further = need(node["x"], dict).items()
                        node["x"] = {name: self.part(item, depth + 1) for name, item in further}
                case Parts.ONE:
                    below = self.part(below, depth + 1)
            return reader.make(self, node, below)
        except (ValueError, TypeError, LookupError, ArithmeticError, OSError, NotImplementedError) as error:
            if isinstance(error, DecodeError):
                raise
            raise DecodeError(f"payload has a malformed {node[TAG]!r} node: {_text(error)}") from error

    def _reader(self, node: dict[str, Any]) -> Reader:
        tag = node[TAG]
        reader = self.readers.get(tag) if type(tag) is str else None
        if reader is None:
            raise DecodeError(
                f"payload has the unknown tag {str(tag)[:60]!r}. Register its type with this codec; or it was written by a "
                "newer version of durable."
            )
        if "v" not in node or not node.keys() <= reader.keys:
            raise DecodeError(f"payload has a malformed {tag!r} node with keys {sorted(node)[:8]!r:.200}")
        return reader


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _make_deque(decoding: Decoding, node: dict[str, Any], parts: list[Any]) -> object:
    maxlen = node["n"]
    return deque(parts, None if maxlen is None else need(maxlen, int))


def _make_counter(decoding: Decoding, node: dict[str, Any], parts: list[tuple[Any, Any]]) -> object:
    counter: Counter[Any] = Counter()
    # One by one: Counter.update would add counts up, and they need not be numbers.
    for key, count in parts:
        counter[key] = count
    return counter


def _make_defaultdict(decoding: Decoding, node: dict[str, Any], parts: list[tuple[Any, Any]]) -> object:
    name = node["n"]
    return defaultdict(None if name is None else FACTORIES[need(name, str)], parts)


def _make_slice(decoding: Decoding, node: dict[str, Any], parts: list[Any]) -> object:
    start, stop, step = parts
    return slice(start, stop, step)


def _make_enum(decoding: Decoding, node: dict[str, Any], name: object) -> object:
    kind = _enum_class(decoding, node, Enum)
    member = kind._member_map_.get(need(name, str))
    if member is None:
        raise DecodeError(f"enumeration {node['c']!r} has no member {str(name)[:60]!r} any more; keep it as an alias")
    return member


def _make_flag(decoding: Decoding, node: dict[str, Any], parts: list[Any]) -> object:
    kind = _enum_class(decoding, node, Flag)
    bits = 0
    for part in need(parts, list):
        if type(part) is str:
            member = kind._member_map_.get(part)
            if member is None:
                raise DecodeError(f"flag {node['c']!r} has no member {part[:60]!r} any more; keep it as an alias")
            bits |= member._value_
        else:
            bits |= read_int(part)
    return kind(bits)


def _enum_class(decoding: Decoding, node: dict[str, Any], base: type[Enum]) -> type[Enum]:
    kind = find_class(need(node["c"], str), decoding.hints)
    if base not in kind.__mro__:
        raise DecodeError(f"payload needs the {base.__name__.lower()} {node['c'][:200]!r}, but that class is none")
    return kind


def _record_maker(tag: str) -> Maker:
    def make(decoding: Decoding, node: dict[str, Any], stored: dict[str, object]) -> object:
        path = need(node["c"], str)
        kind = find_class(path, decoding.hints)
        shape = None if issubclass(type(kind), type(Enum)) else shape_of(kind)
        if shape is None or shape.kind.tag != tag:
            raise DecodeError(f"payload needs class {path[:200]!r} to be of kind {tag!r}, which it is not (any more)")
        return shape.kind.make(kind, _completed(kind, shape, path, stored), node.get("x", {}))

    return make


def _completed(kind: type, shape: Shape, path: str, stored: dict[str, object]) -> dict[str, object]:
    """The stored fields in the order of the class, with defaults for those it gained since."""
    lost = stored.keys() - shape.fields
    if lost:
        raise DecodeError(
            f"class {path!r} has no field {min(lost)!r:.80} any more, which this payload holds. "
            "Keep the field until the runs that stored it are gone."
        )
    if len(stored) < len(shape.fields):
        stored = {**stored, **missing_fields(kind, shape, stored)}
    fields = {name: stored[name] for name in shape.fields if name in stored}
    for name, item in fields.items():
        if item is REQUIRED:
            raise DecodeError(
                f"class {path!r} has a field {name!r} without a default, which this payload does not hold. Give it a default."
            )
    return fields


def registered_reader(tag: str, decode: Callable[[Any], object]) -> Reader:
    """The reader of a tag that a user registered."""

    def make(decoding: Decoding, node: dict[str, Any], inner: object) -> object:
        try:
            return decode(inner)
        except Exception as error:
            raise DecodeError(f"the decoder registered for tag {tag!r} raised {_text(error)}") from error

    return Reader(_VALUE_ONLY, Parts.ONE, make)


def _leaf(read: Callable[[Any], object]) -> Reader:
    return Reader(_VALUE_ONLY, Parts.LEAF, lambda decoding, node, part: read(part))


def _container(parts: Parts, make: Callable[[Any], object]) -> Reader:
    return Reader(_VALUE_ONLY, parts, lambda decoding, node, below: make(below))


READERS: Mapping[str, Reader] = {
    "int": _leaf(read_int),
    "float": _leaf(read_float),
    "tuple": _container(Parts.ITEMS, tuple),
    "set": _container(Parts.ITEMS, set),
    "frozenset": _container(Parts.ITEMS, frozenset),
    "dict": _container(Parts.PAIRS, dict),
    "ordereddict": _container(Parts.PAIRS, OrderedDict),
    "deque": Reader(_WITH_NOTE, Parts.ITEMS, _make_deque),
    "counter": Reader(_VALUE_ONLY, Parts.PAIRS, _make_counter),
    "defaultdict": Reader(_WITH_NOTE, Parts.PAIRS, _make_defaultdict),
    "slice": Reader(_VALUE_ONLY, Parts.ITEMS, _make_slice),
    "enum": Reader(_WITH_CLASS, Parts.LEAF, _make_enum),
    "flag": Reader(_WITH_CLASS, Parts.LEAF, _make_flag),
    **{tag: Reader(_RECORD, Parts.NAMED, _record_maker(tag)) for tag in RECORD_TAGS},
    **{scalar.tag: _leaf(scalar.read) for scalar in SCALARS},
}
