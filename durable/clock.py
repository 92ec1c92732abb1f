"""The only readers of time and randomness.

Law: everything else takes time and entropy as arguments, so that tests can put a virtual world in their place.
"""

from __future__ import annotations

import os
import time
from typing import Protocol
from uuid import UUID


class Clock(Protocol):
    """Where the time comes from. All values are seconds."""

    def now(self) -> float:
        """Wall-clock time, seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """A clock that never goes back; only differences mean something."""
        ...


class Entropy(Protocol):
    """Where randomness comes from."""

    def token_bytes(self, count: int) -> bytes:
        """Return `count` random bytes, fit for identifiers and secrets."""
        ...


class SystemClock:
    """The machine's own clocks."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


class SystemEntropy:
    """The operating system's random number generator."""

    token_bytes = staticmethod(os.urandom)


SYSTEM_CLOCK: Clock = SystemClock()
SYSTEM_ENTROPY: Entropy = SystemEntropy()


def fraction_of(random_bytes: bytes) -> float:
    """A number in [0, 1) out of at least 7 random bytes, with all 53 bits that a float holds."""
    return (int.from_bytes(random_bytes[:7], "big") >> 3) / (1 << 53)


def uuid4_of(random_bytes: bytes) -> UUID:
    """A version 4 UUID out of at least 16 random bytes."""
    return UUID(bytes=random_bytes[:16], version=4)
