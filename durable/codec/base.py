"""What a codec is, and how the refusal of a part finds its way to the caller.

Law: a codec stores a value exactly or refuses it with a `PayloadError`; it never changes one in silence.
"""

from __future__ import annotations

from typing import Any, Protocol

from durable.errors import NotStorableError, PayloadError, PayloadTooDeepError, PayloadTooLargeError

ADVICE = (
    "Store plain data instead, make it a dataclass, teach the codec with "
    "`register(type, tag, encode, decode)`, or opt in to codec='cloudpickle' for this task or step."
)


class Codec(Protocol):
    """Turns values into bytes and back. `name` is stored next to the bytes and selects the codec that reads them."""

    name: str

    def encode(self, value: object, expected: object = Any, label: str = "value") -> bytes:
        """Return the bytes of `value`.

        Arguments:
            expected: the type hint that `decode` will get; only classes that cannot be found by their path need it.
            label: what the value is called in an error's path, for example ``result``.

        Raises:
            NotStorableError, PayloadTooLargeError, PayloadTooDeepError
        """

    def decode(self, data: bytes | memoryview, expected: object = Any) -> object:
        """Return the value that `encode` was given.

        Raises:
            DecodeError, PayloadTooLargeError, PayloadTooDeepError
        """

    def canonical(self, value: object, label: str = "value") -> bytes:
        """Return bytes for comparing, equal for equal values of equal types whatever the order of dicts and sets.

        Raises:
            NotStorableError, PayloadTooLargeError, PayloadTooDeepError
        """

    def identity(self, value: object) -> bytes:
        """Like `canonical`, but never fails: what cannot be stored becomes a marker of its type."""


class Refused(Exception):
    """Unwinds an encode and collects the way from the refused part up to the root. No caller of a codec ever sees it."""

    def __init__(self, reason: str, advice: str = ADVICE) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice
        #: (container, how its part is reached from it), innermost first.
        self.trail: list[tuple[object, str]] = []

    def via(self, owner: object, segment: str) -> None:
        self.trail.append((owner, segment))

    def path(self, label: str) -> str:
        return label + "".join(segment for _, segment in reversed(self.trail))

    def error(self, label: str) -> PayloadError:
        return NotStorableError(f"cannot store {self.path(label)}: {self.reason}. {self.advice}")


class TooDeep(Refused):
    """The nesting limit was met; what was collected on the way up tells whether the cause is a cycle."""

    def error(self, label: str) -> PayloadError:
        seen: dict[int, str] = {}
        path = label
        for owner, segment in reversed(self.trail):
            if id(owner) in seen:
                return NotStorableError(
                    f"cannot store {path}: it is {seen[id(owner)]} again, a cycle. Store identifiers instead of references back."
                )
            seen[id(owner)] = path
            path += segment
        shown = path if len(path) <= 120 else f"{path[:60]}…{path[-40:]}"
        return PayloadTooDeepError(
            f"cannot store {shown}: {self.reason}. Flatten the value or raise payload.depth_max."
        )


class TooLarge(Refused):
    """More parts than the size limit has bytes."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__("too large")
        self.limit_bytes = limit_bytes

    def error(self, label: str) -> PayloadError:
        return PayloadTooLargeError(
            f"cannot store {label}: it has more parts than payload.bytes_max ({self.limit_bytes}) has bytes. "
            "Store it elsewhere and keep a reference here.",
            size_bytes=self.limit_bytes + 1,
            limit_bytes=self.limit_bytes,
        )


def check_size(size_bytes: int, limit_bytes: int, label: str) -> None:
    """Raise `PayloadTooLargeError` where `size_bytes` is over the limit."""
    if size_bytes > limit_bytes:
        raise PayloadTooLargeError(
            f"{label} has {size_bytes} encoded bytes, more than payload.bytes_max ({limit_bytes}). "
            "Store it elsewhere and keep a reference here, or raise the limit.",
            size_bytes=size_bytes,
            limit_bytes=limit_bytes,
        )


def type_path(kind: type) -> str:
    """The name under which a class is stored: ``module:Outer.Inner``."""
    return f"{kind.__module__}:{kind.__qualname__}"
