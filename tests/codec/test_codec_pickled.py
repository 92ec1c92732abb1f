"""The opt-in pickle codec: nothing is unpickled that was not signed for this very place."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest

from durable.codec import Codec, Pickled, TaggedJson, pickled
from durable.config import PayloadSettings
from durable.errors import (
    ConfigError,
    DecodeError,
    NotStorableError,
    PayloadTooDeepError,
    PayloadTooLargeError,
    SignatureMismatchError,
)

SETTINGS = PayloadSettings(pickle_key=b"k" * 32)
unpickled: list[int] = []


def explode() -> None:
    unpickled.append(1)


class Bomb:
    def __reduce__(self) -> Any:
        return explode, ()


def test_what_json_refuses_comes_back() -> None:
    """Closures and local classes are what this codec is for."""

    class Local:
        def __init__(self, a: int) -> None:
            self.a = a

    codec = Pickled(SETTINGS)
    restored: Any = codec.decode(memoryview(codec.encode([Local(3), lambda x: x + 1])))
    assert (restored[0].a, restored[1](1)) == (3, 2)


def test_without_a_key_it_cannot_be_made() -> None:
    """The error names the setting to set."""
    with pytest.raises(ConfigError, match=r"PayloadSettings\(pickle_key=\.\.\.\)") as caught:
        Pickled(PayloadSettings())
    assert caught.value.key == "payload.pickle_key"


def test_unsigned_or_foreign_payload_is_not_unpickled() -> None:
    """No signature, another key, another place or one changed bit: refused before a byte is unpickled."""
    unpickled.clear()
    codec = Pickled(SETTINGS).bind(b"store/run/1")
    payload = codec.encode(Bomb())
    foreign = Pickled(PayloadSettings(pickle_key=b"x" * 32)).bind(b"store/run/1")
    flipped = [payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :] for at in range(len(payload))]
    truncated = [payload[:end] for end in range(len(payload))]
    for bad in (b"", pickle.dumps(Bomb()), foreign.encode(Bomb()), payload + b"x", *flipped, *truncated):
        with pytest.raises(SignatureMismatchError, match="was not unpickled"):
            codec.decode(bad)
    assert not unpickled
    codec.decode(payload)
    assert unpickled == [1]


def test_payload_copied_to_another_place_is_refused() -> None:
    """The signature covers the context, and the border between context and payload."""
    codec = Pickled(SETTINGS)
    payload = codec.bind(b"run-a").encode(1)
    assert codec.bind(b"run-a").decode(payload) == 1
    for context in (b"", b"run-b", b"run-", b"run-aD"):
        with pytest.raises(SignatureMismatchError):
            codec.bind(context).decode(payload)
    with pytest.raises(SignatureMismatchError):
        codec.decode(payload)


def test_payload_of_another_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytecode of another Python version crashes without an exception; the header keeps it away."""
    codec = Pickled(SETTINGS)
    monkeypatch.setattr(pickled, "_INTERPRETER", ["cpython", 3, 2])
    payload = codec.encode(Bomb())
    monkeypatch.undo()
    unpickled.clear()
    with pytest.raises(DecodeError, match=r"written by cpython 3 2"):
        codec.decode(payload)
    assert not unpickled


def test_limits_and_failures_are_payload_errors() -> None:
    """Size, depth, and what not even cloudpickle takes."""
    with pytest.raises(NotStorableError, match="result"):
        Pickled(SETTINGS).encode(threading.Lock(), label="result")
    small = Pickled(PayloadSettings(pickle_key=b"k" * 32, bytes_max=256))
    with pytest.raises(PayloadTooLargeError):
        small.encode("x" * 300)
    with pytest.raises(PayloadTooLargeError):
        small.decode(Pickled(SETTINGS).encode("x" * 300))
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(PayloadTooDeepError):
        Pickled(SETTINGS).encode(deep)


def test_failure_to_unpickle_is_a_decode_error() -> None:
    """A class that is gone since shows as DecodeError that names the versions."""

    class Fails:
        def __reduce__(self) -> Any:
            return int, ("x",)

    codec = Pickled(SETTINGS)
    with pytest.raises(DecodeError, match="cloudpickle"):
        codec.decode(codec.encode(Fails()))


def test_comparing_is_that_of_the_default_codec() -> None:
    """Equal values may have different pickles, so pickles are not compared."""
    codec: Codec = Pickled(SETTINGS)
    assert (
        codec.canonical({"b": 1, "a": 2})
        == codec.canonical({"a": 2, "b": 1})
        == TaggedJson().canonical({"a": 2, "b": 1})
    )
    assert codec.identity([threading.Lock()]) == TaggedJson().identity([threading.Lock()])


def test_key_never_shows() -> None:
    """The key is in no repr and no error."""
    assert "kkkk" not in repr(Pickled(SETTINGS)) + repr(SETTINGS)
