"""Payloads that nobody's encode wrote: the outcome is a value or a PayloadError, and nothing else happens."""

from __future__ import annotations

import collections
import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from durable.codec import TaggedJson
from durable.config import PayloadSettings
from durable.errors import DecodeError, NotStorableError, PayloadError, PayloadTooDeepError, PayloadTooLargeError

CODEC = TaggedJson()


@dataclass
class Sample:
    a: int


PATH = f"{__name__}:Sample"
TAGS = [
    "int", "float", "tuple", "set", "frozenset", "dict", "deque", "ordereddict", "counter", "defaultdict", "slice", "enum",
    "flag", "namedtuple", "pydantic", "attrs", "struct", "dataclass", "bytes", "bytearray", "decimal", "fraction", "complex",
    "uuid", "datetime", "date", "time", "timedelta", "range", "path", "?", "", "eval", "__class__",
]  # fmt: skip
SHAPES: list[object] = [
    None, True, 5, -1, 1.5, "x", "", "0x", "0xg", "os:system", [], [1], [1, 2], [1, 2, 3], [[1, 2]], [[[], 1]], [{}], {},
    {"a": 1}, {"$": 1}, {"$": "nope", "v": 1}, ["x", "y", "z"], [None, None, None], ["2026-01-01", "../../etc/passwd", 0],
    ["2026-01-01", "America", 0], ["2026-01-01", [[0, 0, 0], 5], 0], [10**30, 1, 1], ["PosixPath", "\0"], ["1", "0"],
    "1e999999999999999999999", [{"$": "int", "v": "1"}, {"$": "int", "v": "2"}],
]  # fmt: skip
HOSTILE_TEXTS = [
    b"", b" ", b"nul", b"[", b"]", b"[1,]", b"{", b'{"a"}', b"NaN", b"-Infinity", b"[NaN]", b'"\xff"', b"\xff\xfe", b"\x00",
    b"1 2", b"1" * 5000, b'{"$":"int","v":"' + b"9" * 5000 + b'"}', b'{"$":["tuple"],"v":[]}', b'{"$":null,"v":[]}',
    b'{"$":"tuple"}', b'{"$":"tuple","v":[],"extra":1}', b'{"$":{"$":"x"},"v":1}', b'{"$":"decimal","v":"1e99999999999999999999"}',
    b'{"$":"set","v":[[1]]}', b'{"$":"dict","v":[[[1],2]]}', b'{"$":"dict","v":[[1]]}', b'{"$":"deque","v":[],"n":-1}',
    b'{"$":"defaultdict","v":[],"n":"eval"}', b'{"$":"fraction","v":["1","0"]}', b'{"$":"range","v":[1,2,0]}',
    b'{"$":"float","v":"nan:0000000000000000"}', b'{"$":"tuple","v":"abc"}', b'{"$":"bytes","v":"!!"}',
]  # fmt: skip


@pytest.mark.parametrize("payload", HOSTILE_TEXTS, ids=range(len(HOSTILE_TEXTS)))
def test_malformed_payload_is_a_decode_error(payload: bytes) -> None:
    """Damage shows as DecodeError, whatever library met it first."""
    with pytest.raises(DecodeError):
        CODEC.decode(payload)


@pytest.mark.parametrize("tag", TAGS)
def test_tag_with_any_shape_gives_a_value_or_a_payload_error(tag: str) -> None:
    """No shape of a known tag gets another exception out."""
    classes = (
        None,
        PATH,
        5,
        "",
        ":",
        "builtins:int",
        "enum:Enum",
        "collections:Counter",
        f"{__name__}:CODEC",
        "os:system",
    )
    for shape in SHAPES:
        for extra in (
            {},
            {"n": None},
            {"n": "list"},
            {"n": 2},
            *({"c": path} for path in classes),
            {"c": PATH, "x": shape},
        ):
            for node in ({"$": tag, "v": shape, **extra}, [{"$": tag, "v": [shape], **extra}]):
                with suppress(PayloadError):
                    CODEC.decode(json.dumps(node).encode())


@pytest.mark.parametrize(
    "path",
    ["os:system", "builtins:eval", "builtins:type", "subprocess:Popen", "os:_wrap_close", "json:decoder.JSONDecoder",
     "sys:modules", "a.b:c", "..:x", "", "::", f"{__name__}:Sample.__init__", f"{__name__}:Sample.__class__",
     "functools:partial", "pathlib:Path", "collections:OrderedDict"],
)  # fmt: skip
@pytest.mark.parametrize("tag", ["dataclass", "enum", "flag", "namedtuple", "attrs", "pydantic", "struct"])
def test_path_of_anything_but_a_class_of_that_kind_is_refused(tag: str, path: str) -> None:
    """A path leads to a class of a known kind or to DecodeError."""
    for value in ({}, {"a": 1}, "x", [], ["x"]):
        with pytest.raises(DecodeError):
            CODEC.decode(json.dumps({"$": tag, "c": path, "v": value}).encode())


def test_decode_imports_nothing() -> None:
    """Every hostile payload leaves sys.modules as it was, in a process that has imported nothing but the codec."""
    script = f"""
import json, sys
from durable.codec import TaggedJson
codec = TaggedJson()
codec.decode(codec.encode([1, (2,)]))
before = set(sys.modules)
for path in ("colorsys:X", "wave:Wave_read", "xml.dom:Node", "json.tool:main", "this:s", "dataclasses:Field"):
    for tag in {TAGS!r}:
        for value in ({{}}, "RED", ["RED"]):
            for keys in ({{}}, {{"c": path}}):
                try:
                    codec.decode(json.dumps({{"$": tag, "v": value, **keys}}).encode())
                except ValueError:
                    pass
assert set(sys.modules) == before, set(sys.modules) - before
assert not {{"pydantic", "attr", "msgspec", "cloudpickle", "orjson"}} & before
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_module_getattr_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module's own __getattr__ may import; a payload does not get to call it."""
    asked: list[str] = []
    module = type(sys)("codec_lazy_module")
    module.__getattr__ = asked.append  # type: ignore[method-assign,assignment]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(DecodeError, match="no such class"):
        CODEC.decode(b'{"$":"dataclass","c":"codec_lazy_module:Secret","v":{}}')
    assert not asked


def test_setters_are_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields and further attributes go into the instance's namespace, past properties."""
    called: list[object] = []

    @dataclass
    class Careful:
        a: int
        door = property(lambda self: None, lambda self, value: called.append(value))

    Careful.__qualname__ = "Careful"
    monkeypatch.setattr(sys.modules[__name__], "Careful", Careful, raising=False)
    node = {"$": "dataclass", "c": f"{__name__}:Careful", "v": {"a": 1}, "x": {"door": 5, "__class__": 7}}
    restored = CODEC.decode(json.dumps(node).encode())
    assert type(restored) is Careful
    assert not called


@pytest.mark.parametrize("text", [b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
                                  b'{"$":"tuple","v":[' * 50_000 + b"]}" * 50_000])  # fmt: skip
def test_deeply_nested_payload_is_refused(text: bytes) -> None:
    """A hundred thousand brackets neither crash the interpreter nor leave as RecursionError."""
    with pytest.raises((PayloadTooDeepError, DecodeError)):
        CODEC.decode(text)


def nested(depth: int, wrap: Any) -> Any:
    value: Any = wrap()
    for _ in range(depth - 1):
        value = wrap(value)
    return value


WRAPS: list[Any] = [
    lambda *inner: list(inner),
    lambda *inner: dict.fromkeys("a", *inner),
    lambda *inner: tuple(inner),
    lambda *inner: {1: inner[0] if inner else 0},
    lambda *inner: frozenset(inner),
    lambda *inner: Sample(*inner) if inner else Sample(0),
    lambda *inner: collections.deque(inner),
]


@pytest.mark.parametrize("wrap", WRAPS, ids=range(len(WRAPS)))
@pytest.mark.parametrize("limit", [1, 3, 100, 300])
def test_depth_limit_is_the_same_in_both_directions(wrap: Any, limit: int) -> None:
    """What may be stored can be read back under the same limit; one level more is refused, and named so."""
    codec = TaggedJson(PayloadSettings(depth_max=limit))
    at_limit = codec.encode(nested(limit, wrap))
    assert codec.encode(codec.decode(at_limit)) == at_limit
    with pytest.raises(PayloadTooDeepError, match="levels deep"):
        codec.encode(nested(limit + 1, wrap))
    with pytest.raises(PayloadTooDeepError):
        codec.decode(TaggedJson(PayloadSettings(depth_max=500)).encode(nested(limit + 1, wrap)))


def test_limit_of_500_holds_for_plain_containers() -> None:
    """The largest limit that the settings allow fits the interpreter's default stack."""
    codec = TaggedJson(PayloadSettings(depth_max=500))
    for wrap in WRAPS[:2]:
        value = nested(500, wrap)
        assert codec.decode(codec.encode(value)) == value


def test_cycle_is_named_as_one() -> None:
    """A cycle is refused by name and place, not reported as depth or RecursionError."""
    loop: dict[str, Any] = {"a": [1]}
    loop["a"].append(Sample(loop))  # type: ignore[arg-type]
    with pytest.raises(NotStorableError, match=r"value\['x'\]\['a'\]\[1\]\.a: it is value\['x'\] again, a cycle"):
        CODEC.encode({"x": loop})
    with pytest.raises(NotStorableError, match="cycle"):
        CODEC.canonical({"x": loop})


def test_size_limit_holds_in_both_directions() -> None:
    """Too large is refused with both sizes, before parsing when reading."""
    codec = TaggedJson(PayloadSettings(bytes_max=64))
    assert codec.decode(codec.encode("x" * 62)) == "x" * 62
    with pytest.raises(PayloadTooLargeError, match="65 encoded bytes") as caught:
        codec.encode("x" * 63)
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (65, 64)
    with pytest.raises(PayloadTooLargeError):
        codec.encode("é" * 32)
    for payload in (b"[" * 65, memoryview(b"[" * 65)):
        with pytest.raises(PayloadTooLargeError):
            codec.decode(payload)


def test_shared_references_do_not_explode() -> None:
    """2**60 parts that are one object sixty times are refused at once."""
    value: list[object] = []
    for _ in range(60):
        value = [value, value]
    with pytest.raises(PayloadTooLargeError):
        TaggedJson(PayloadSettings(bytes_max=10_000)).encode(value)
    assert TaggedJson(PayloadSettings(bytes_max=10_000)).identity(value)
