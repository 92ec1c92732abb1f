"""From a value to a tree that JSON can hold: the routes by exact type, and the walk.

Law: a part is dispatched by its exact type, never by `isinstance`, so that a subclass is never stored as its base. What the
tree says is what `decoder` reads: one tag, one shape. A tagged part and a container are one level of depth each.
"""

from __future__ import annotations

import json
import json.encoder
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Mapping
from enum import Enum, Flag
from math import isfinite
from typing import Any

from durable.codec.base import Refused, TooDeep, TooLarge, type_path
from durable.codec.classes import NO_HINTS, hinted_classes, is_findable
from durable.codec.records import shape_of
from durable.codec.refusals import refusal, shown
from durable.codec.scalars import INT_PLAIN_MAX, SCALARS, Scalar, write_float, write_int

TAG = "$"
#: Stands for a part that cannot be stored, in `identity` only; no decoder knows it.
UNKNOWN_TAG = "?"
PLAIN = frozenset((str, bool, type(None)))
FACTORIES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        int,
        float,
        complex,
        bool,
        str,
        bytes,
        bytearray,
        list,
        dict,
        tuple,
        set,
        frozenset,
        deque,
        Counter,
        OrderedDict,
    )
}
_FACTORY_NAMES = {kind: name for name, kind in FACTORIES.items()}

#: Turns one part into its JSON form: (encoding, part, depth).
Route = Callable[["Encoding", Any, int], object]


def _text_writer(*, sort_keys: bool) -> Callable[[object], str]:
    """A JSON encoder that is set up once; `JSONEncoder.encode` would set its C part up for every value, which costs 0.8 µs."""
    # check_circular: the walk bounds the depth, and the check costs a dict entry for every container.
    plain = json.JSONEncoder(
        ensure_ascii=False, allow_nan=False, check_circular=False, sort_keys=sort_keys, separators=(",", ":")
    )
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    try:
        write = make(None, plain.default, json.encoder.encode_basestring, None, ":", ",", sort_keys, False, False)
    except TypeError:  # not there, or with other parameters: it is no documented interface
        return plain.encode
    return lambda tree: "".join(write(tree, 0))


plain_text = _text_writer(sort_keys=False)
sorted_text = _text_writer(sort_keys=True)


class Encoding:
    """The state of one encode: what it may still use, and how parts are routed."""

    __slots__ = (
        "_expected",
        "_hints",
        "active",
        "canonical",
        "depth_max",
        "nodes_left",
        "nodes_max",
        "other",
        "routes",
    )

    def __init__(
        self,
        routes: Mapping[type, Route],
        other: Route,
        depth_max: int,
        nodes_max: int,
        expected: object,
        canonical: bool,
    ) -> None:
        self.routes = routes
        self.other = other
        self.depth_max = depth_max
        self.nodes_max = nodes_max
        self.nodes_left = nodes_max
        self.canonical = canonical
        #: ids of the parts that are being encoded now; kept by `tolerant` only.
        self.active: set[int] = set()
        self._expected = expected
        self._hints: Mapping[str, type] | None = None

    @property
    def hints(self) -> Mapping[str, type]:
        if self._hints is None:
            self._hints = NO_HINTS if self._expected is Any else hinted_classes(self._expected)
        return self._hints

    def part(self, value: object, depth: int) -> object:
        if type(value) in PLAIN:
            return value
        return self.routes.get(type(value), self.other)(self, value, depth)

    def enter(self, count: int, depth: int) -> None:
        """Account for a container of `count` parts at `depth`."""
        if depth > self.depth_max:
            raise TooDeep(f"it is nested more than {self.depth_max} levels deep")
        # Every part takes a byte at least. Without this bound, shared references could make 2**depth parts.
        self.nodes_left -= count + 1
        if self.nodes_left < 0:
            raise TooLarge(self.nodes_max)

    def named(
        self, owner: object, parts: Mapping[str, object], depth: int, segment: str = "[{!r}]"
    ) -> dict[str, object]:
        routes, other = self.routes, self.other
        done: dict[str, object] = {}
        name = ""
        try:
            for name, item in parts.items():
                kind = type(item)
                done[name] = item if kind in PLAIN else routes.get(kind, other)(self, item, depth + 1)
        except Refused as refused:
            refused.via(owner, segment.format(name))
            raise
        return done

    def pairs(self, owner: object, parts: Mapping[Any, object], depth: int) -> list[object]:
        done: list[object] = []
        key: object = None
        try:
            for key, item in parts.items():
                done.append([self.part(key, depth + 1), self.part(item, depth + 1)])
        except Refused as refused:
            refused.via(owner, f"[{shown(key)}]")
            raise
        return done


def _encode_int(encoding: Encoding, value: int, depth: int) -> object:
    if -INT_PLAIN_MAX <= value <= INT_PLAIN_MAX:
        return value
    encoding.enter(0, depth)
    return {TAG: "int", "v": write_int(value)}


def _encode_float(encoding: Encoding, value: float, depth: int) -> object:
    if isfinite(value):
        return value
    encoding.enter(0, depth)
    return {TAG: "float", "v": write_float(value)}


def _encode_items(encoding: Encoding, parts: Collection[object], depth: int, segment: str = "[{}]") -> list[object]:
    """The route of a list, and what the routes of other sequences begin with: one frame for each level of lists."""
    encoding.enter(len(parts), depth)
    if type(parts) is list and len(parts) > 8 and all_plain(parts):
        return parts
    routes, other = encoding.routes, encoding.other
    done: list[object] = []
    try:
        for item in parts:
            kind = type(item)
            done.append(item if kind in PLAIN else routes.get(kind, other)(encoding, item, depth + 1))
    except Refused as refused:
        refused.via(parts, segment.format(len(done)))
        raise
    return done


def _encode_dict(encoding: Encoding, value: dict[Any, object], depth: int) -> object:
    encoding.enter(len(value), depth)
    routes, other = encoding.routes, encoding.other
    done: dict[str, object] = {}
    key: Any = None
    try:
        for key, item in value.items():
            if type(key) is not str or key == TAG:
                break
            kind = type(item)
            done[key] = item if kind in PLAIN else routes.get(kind, other)(encoding, item, depth + 1)
        else:
            return done
    except Refused as refused:
        refused.via(value, f"[{shown(key)}]")
        raise
    encoding.nodes_left += len(done)  # these are walked once more
    return {TAG: "dict", "v": _in_order(encoding, encoding.pairs(value, value, depth))}


def _encode_tuple(encoding: Encoding, value: tuple[object, ...], depth: int) -> object:
    return {TAG: "tuple", "v": _encode_items(encoding, value, depth)}


def _encode_set(encoding: Encoding, value: set[object] | frozenset[object], depth: int) -> object:
    parts = _encode_items(encoding, value, depth, "{{element}}")
    # Always in order: iteration order differs from process to process, and equal sets should be equal bytes.
    if parts and set(map(type, parts)) not in ({str}, {int}):
        parts.sort(key=sorted_text)
    else:
        parts.sort()
    return {TAG: type(value).__name__, "v": parts}


def _encode_deque(encoding: Encoding, value: deque[object], depth: int) -> object:
    return {TAG: "deque", "v": _encode_items(encoding, value, depth), "n": value.maxlen}


def _encode_ordered(encoding: Encoding, value: OrderedDict[object, object], depth: int) -> object:
    encoding.enter(len(value), depth)
    _require_no_attributes(value)
    return {TAG: "ordereddict", "v": encoding.pairs(value, value, depth)}


def _encode_counter(encoding: Encoding, value: Counter[object], depth: int) -> object:
    encoding.enter(len(value), depth)
    _require_no_attributes(value)
    return {TAG: "counter", "v": _in_order(encoding, encoding.pairs(value, value, depth))}


def _encode_defaultdict(encoding: Encoding, value: defaultdict[object, object], depth: int) -> object:
    encoding.enter(len(value), depth)
    factory = value.default_factory
    name = None if factory is None else _FACTORY_NAMES.get(factory)  # type: ignore[call-overload]
    if factory is not None and name is None:
        raise Refused(
            "its default_factory is code", f"Only these can be stored: {', '.join(FACTORIES)}; or store dict(value)."
        )
    return {TAG: "defaultdict", "v": _in_order(encoding, encoding.pairs(value, value, depth)), "n": name}


def _in_order(encoding: Encoding, pairs: list[object]) -> list[object]:
    if encoding.canonical:
        pairs.sort(key=sorted_text)
    return pairs


def _encode_slice(encoding: Encoding, value: slice, depth: int) -> object:
    return {TAG: "slice", "v": _encode_items(encoding, (value.start, value.stop, value.step), depth)}


def _scalar_route(scalar: Scalar) -> Route:
    tag, write = scalar.tag, scalar.write

    def route(encoding: Encoding, value: object, depth: int) -> object:
        if depth > encoding.depth_max:
            raise TooDeep(f"it is nested more than {encoding.depth_max} levels deep")
        return {TAG: tag, "v": write(value)}

    return route


def registered_route(tag: str, encode: Callable[[Any], object]) -> Route:
    """The route of a type that a user registered."""

    def route(encoding: Encoding, value: object, depth: int) -> object:
        encoding.enter(1, depth)
        try:
            inner = encode(value)
        except Refused:
            raise  # an encoder of durable's own, which says itself what to do
        except Exception as error:
            raise Refused(
                f"the encoder registered for tag {tag!r} raised {error!r}", "Correct that encoder."
            ) from error
        try:
            return {TAG: tag, "v": encoding.part(inner, depth + 1)}
        except Refused as refused:
            refused.via(value, "")
            raise

    return route


def encode_object(encoding: Encoding, value: object, depth: int) -> object:
    """The route of every type that has none of its own: enumerations, records, and what is refused."""
    kind = type(value)
    encoding.enter(1, depth)
    if issubclass(kind, Enum):
        return _encode_enum(encoding, value, kind)  # type: ignore[arg-type]
    shape = shape_of(kind)
    if shape is None:
        raise refusal(value)
    _require_findable(encoding, kind)
    fields, extras = shape.kind.take(value, shape)
    encoding.enter(len(fields) + len(extras), depth)
    node = {TAG: shape.kind.tag, "c": type_path(kind), "v": encoding.named(value, fields, depth, ".{}")}
    if shape.kind.tag == "pydantic" and encoding.canonical:
        extras.pop("set", None)  # which fields were given explicitly is no part of equality
    if extras:
        node["x"] = encoding.named(value, extras, depth, ".{}")
    return node


def _encode_enum(encoding: Encoding, value: Enum, kind: type[Enum]) -> object:
    _require_findable(encoding, kind)
    name = value._name_
    if name is not None and kind._member_map_.get(name) is value and not issubclass(kind, Flag):
        return {TAG: "enum", "c": type_path(kind), "v": name}
    if not isinstance(value, Flag):
        raise Refused(f"{value!r} is no declared member of its enumeration")
    # By names, like other members: a flag's bits may be renumbered by the next release.
    rest = value._value_
    parts: list[object] = []
    for member in type(value):
        if member._value_ and value._value_ & member._value_ == member._value_:
            parts.append(member._name_)
            rest &= ~member._value_
    if rest:
        parts.append(write_int(rest) if rest > INT_PLAIN_MAX else rest)
    return {TAG: "flag", "c": type_path(kind), "v": parts}


def tolerant(route: Route) -> Route:
    """The same route, but what it refuses becomes a marker with the name of the type."""

    def lenient(encoding: Encoding, value: object, depth: int) -> object:
        # Without this, objects that refer to each other would be walked along every way of `depth_max` steps.
        if id(value) in encoding.active:
            return {TAG: UNKNOWN_TAG, "v": type_path(type(value))}
        encoding.active.add(id(value))
        try:
            return route(encoding, value, depth)
        except RecursionError:
            raise  # how full the stack is must not show in an identity
        except Exception:  # noqa: BLE001 - `identity` never fails: the marker stands for whatever user code raises
            return {TAG: UNKNOWN_TAG, "v": type_path(type(value))}
        finally:
            encoding.active.discard(id(value))

    return lenient


def _require_findable(encoding: Encoding, kind: type) -> None:
    if encoding.canonical or is_findable(kind, encoding.hints):
        return  # a canonical form is never decoded
    where = "it is defined inside a function" if "<locals>" in kind.__qualname__ else "its module has no such name"
    raise Refused(
        f"class {type_path(kind)} could not be found again when it is read: {where}",
        "Move it to the top level of its module, or name it in the type hint (of the parameter or the return value).",
    )


def _require_no_attributes(value: object) -> None:
    if getattr(value, "__dict__", None):
        raise Refused("it has attributes of its own", "Make it a dataclass.")


def all_plain(parts: list[object]) -> bool:
    """Whether every part is a JSON scalar as it stands, found out in C where the types are uniform."""
    kinds = set(map(type, parts))
    if kinds <= PLAIN:
        return True
    if kinds == {int}:
        return min(parts) >= -INT_PLAIN_MAX and max(parts) <= INT_PLAIN_MAX  # type: ignore[type-var,operator]
    return kinds == {float} and all(map(isfinite, parts))  # type: ignore[arg-type]


ROUTES: Mapping[type, Route] = {
    str: lambda encoding, value, depth: value,
    bool: lambda encoding, value, depth: value,
    type(None): lambda encoding, value, depth: value,
    int: _encode_int,
    float: _encode_float,
    list: _encode_items,
    dict: _encode_dict,
    tuple: _encode_tuple,
    set: _encode_set,
    frozenset: _encode_set,
    deque: _encode_deque,
    OrderedDict: _encode_ordered,
    Counter: _encode_counter,
    defaultdict: _encode_defaultdict,
    slice: _encode_slice,
    **{scalar.kind: _scalar_route(scalar) for scalar in SCALARS},
}
