"""The default codec: JSON, with a tag for everything that JSON does not know.

Law: what `encode` takes, `decode` gives back with the same type and value; everything else is refused. A tag never changes
its meaning; new ones may come.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from durable.codec.base import Refused, check_size, type_path
from durable.codec.decoder import READERS, Decoding, registered_reader
from durable.codec.encoder import (
    ROUTES,
    TAG,
    UNKNOWN_TAG,
    Encoding,
    all_plain,
    encode_object,
    plain_text,
    registered_route,
    sorted_text,
    tolerant,
)
from durable.codec.scalars import INT_PLAIN_MAX
from durable.config import PayloadSettings
from durable.errors import ConfigError, DecodeError, PayloadError, PayloadTooDeepError

T = TypeVar("T")

_TAG_MARK = f'"{TAG}"'
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
#: `identity` looks no deeper than this, whatever the settings: its answer may not depend on how full the stack is.
_IDENTITY_DEPTH_MAX = 100
#: And at no more parts, so that a dense graph of objects costs a second or two at worst.
_IDENTITY_NODES_MAX = 2**20
#: Arguments of most calls are no more than these, and scalars.
_FEW = 8


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)
_scan: Callable[[str, int], tuple[object, int]] = _decoder.scan_once  # type: ignore[attr-defined]


def _parse(text: str) -> object:
    """Read JSON without the white space around it that no encode writes; `JSONDecoder.decode` takes 0.9 µs to look for it."""
    try:
        tree, end = _scan(text, 0)
    except StopIteration:
        end = -1
    if end != len(text):
        tree = _decoder.decode(text)
    return tree


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        # A surrogate can only be inside a JSON string, where its escape is JSON too. Two that would make a pair must not be
        # escaped: every JSON reader would join them to one character.
        return text.encode("utf-8", "surrogatepass" if _SURROGATE_PAIR.search(text) else "backslashreplace")


def _on_fresh_stack(work: Callable[[], T], label: str) -> T:
    """Run `work` once more with all of the interpreter's stack.

    So neither the caller's own depth decides whether a value can be stored, nor can a value be stored that a caller further
    down cannot read.
    """
    context = copy_context()
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            return pool.submit(context.run, work).result()
        except RecursionError:
            raise PayloadTooDeepError(
                f"{label} is nested too deeply for the interpreter's stack. Flatten it."
            ) from None


class TaggedJson:
    """The codec ``json``. Safe to decode: nothing is imported, no code that a payload names is run."""

    name = "json"

    def __init__(self, settings: PayloadSettings = PayloadSettings()) -> None:
        self._bytes_max = settings.bytes_max
        self._depth_max = settings.depth_max
        self._routes = dict(ROUTES)
        # Numbers go without: they cannot fail, and there are many of them.
        self._tolerant_routes = {
            kind: route if kind in (int, float) else tolerant(route) for kind, route in ROUTES.items()
        }
        self._readers = dict(READERS)

    def register(self, kind: type[T], tag: str, encode: Callable[[T], object], decode: Callable[[Any], T]) -> None:
        """Teach this instance a type.

        Arguments:
            kind: the exact class; subclasses are not included.
            tag: stored with each value; must stay the same as long as values are stored under it.
            encode: turns a value into one that the codec knows; `decode` gets an equal one and gives the value back.

        Raises:
            ConfigError: the type is stored by the codec itself, or type or tag are taken.
        """
        if kind in self._routes:
            raise ConfigError(f"type {type_path(kind)} is stored already; register another class", key="register.type")
        if not tag or tag in self._readers or tag == UNKNOWN_TAG:
            raise ConfigError(
                f"tag {tag!r} is taken or empty; choose one such as 'myapp.{kind.__name__}'", key="register.tag"
            )
        route = registered_route(tag, encode)
        self._routes[kind] = route
        self._tolerant_routes[kind] = tolerant(route)
        self._readers[tag] = registered_reader(tag, decode)

    def encode(self, value: object, expected: object = Any, label: str = "value") -> bytes:
        """Return the bytes of `value`; see `Codec.encode`."""
        if type(value) is int and -INT_PLAIN_MAX <= value <= INT_PLAIN_MAX:
            return b"%d" % value
        if value is None:
            return b"null"
        if value is True or value is False:
            return b"true" if value else b"false"
        try:
            return self._encoded(value, expected, label, canonical=False)
        except RecursionError:
            return _on_fresh_stack(lambda: self._encoded(value, expected, label, canonical=False), label)

    def canonical(self, value: object, label: str = "value") -> bytes:
        """Bytes for hashing and comparing, not for decoding: equal values of equal types give equal bytes.

        The order of dicts and sets does not count, nor which fields of a pydantic model were given explicitly.

        Raises:
            NotStorableError, PayloadTooLargeError, PayloadTooDeepError
        """
        try:
            return self._encoded(value, Any, label, canonical=True)
        except RecursionError:
            return _on_fresh_stack(lambda: self._encoded(value, Any, label, canonical=True), label)

    def identity(self, value: object) -> bytes:
        """Like `canonical`, but never fails: a part that cannot be stored becomes a marker with the name of its type.

        Tells step calls apart by their arguments. Beyond 100 levels or a million parts only types count. The size of the
        answer has no bound.
        """
        if type(value) is int and -INT_PLAIN_MAX <= value <= INT_PLAIN_MAX:
            return b"%d" % value
        if type(value) is list and len(value) <= _FEW and all_plain(value):
            return _utf8(plain_text(value))  # scalars as they stand: the canonical form is the plain one
        try:
            return self._identified(value)
        except RecursionError:
            pass
        try:
            return _on_fresh_stack(lambda: self._identified(value), "value")
        except PayloadTooDeepError:
            return _utf8(plain_text({TAG: UNKNOWN_TAG, "v": type_path(type(value))}))

    def decode(self, data: bytes | memoryview, expected: object = Any) -> object:
        """Return the value that was encoded.

        Arguments:
            expected: the type hint at the place that reads; classes it mentions are found even inside functions. The value is
                not checked against it.

        Raises:
            DecodeError: the bytes are no payload, or need a class or tag that is not there; says which.
            PayloadTooLargeError, PayloadTooDeepError: before the limit is exceeded, not after.
        """
        size = data.nbytes if type(data) is memoryview else len(data)
        check_size(size, self._bytes_max, "payload")
        try:
            return self._decoded(data, expected)
        except RecursionError:
            return _on_fresh_stack(lambda: self._decoded(data, expected), "payload")

    def _encoded(self, value: object, expected: object, label: str, *, canonical: bool) -> bytes:
        encoding = Encoding(self._routes, encode_object, self._depth_max, self._bytes_max, expected, canonical)
        try:
            tree = encoding.part(value, 1)
        except Refused as refused:
            raise refused.error(label) from refused.__cause__
        encoded = _utf8(sorted_text(tree) if canonical else plain_text(tree))
        if len(encoded) > self._bytes_max:
            check_size(len(encoded), self._bytes_max, label)
        return encoded

    def _identified(self, value: object) -> bytes:
        depth_max = min(self._depth_max, _IDENTITY_DEPTH_MAX)
        nodes_max = min(self._bytes_max, _IDENTITY_NODES_MAX)
        encoding = Encoding(self._tolerant_routes, _tolerant_object, depth_max, nodes_max, Any, canonical=True)
        return _utf8(sorted_text(encoding.part(value, 1)))

    def _decoded(self, payload: bytes | memoryview, expected: object) -> object:
        try:
            text = str(payload, "utf-8", "surrogatepass")
            tree = _parse(text)
            # Without a tag and without depth, what JSON read is the value. The single character is found 50 times as fast.
            if ("$" not in text or _TAG_MARK not in text) and text.count("[") + text.count("{") <= self._depth_max:
                return tree
            return Decoding(self._readers, self._depth_max, expected).part(tree, 1)
        except (PayloadError, MemoryError, RecursionError):
            raise
        except Exception as error:
            raise DecodeError(f"payload is malformed: {type(error).__name__}: {error}"[:300]) from error


_tolerant_object = tolerant(encode_object)
