"""Identifiers of runs.

Law: an id is 32 hexadecimal digits in time order (UUID version 7 without dashes), so that new rows land at the end of an index.
"""

from __future__ import annotations

import re

_RUN_ID = re.compile(r"[0-9a-f]{32}\Z")


def make_run_id(now: float, entropy: bytes) -> str:
    """Build an id from a wall-clock time in seconds and 10 random bytes (RFC 9562, section 5.7)."""
    tail = int.from_bytes(entropy[:10], "big")
    value = (int(now * 1000) & 0xFFFF_FFFF_FFFF) << 80
    value |= 0x7 << 76 | (tail >> 68 & 0xFFF) << 64 | 0b10 << 62 | (tail & 0x3FFF_FFFF_FFFF_FFFF)
    return f"{value:032x}"


def after_run_id(last: str, made: str) -> str:
    """`made`, or, where it would sort before the `last` id of this process, one that sorts close behind that.

    Ids of one millisecond are in no order by themselves, and a clock may step back; runs are listed in the order of their creation.
    """
    if made > last:
        return made
    return f"{int(last, 16) + 1 + int(made[-4:], 16):032x}"


def is_run_id(text: str) -> bool:
    """Tell whether `text` has the form of a run id."""
    return _RUN_ID.match(text) is not None
