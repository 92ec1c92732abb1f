"""Identifiers of runs.

Law: an id is 32 hexadecimal digits in time order (UUID version 7 without dashes), so that new rows land at the end of an index. Its last
digits name the family: a store of several shards finds a run, and keeps its family together, by the id alone.
"""

from __future__ import annotations

import re
from hashlib import sha256

_RUN_ID = re.compile(r"[0-9a-f]{32}\Z")


#: How many of the last digits of an id are those of the first ancestor that a run belongs to, or came from.
FAMILY_DIGITS = 4


def make_run_id(now: float, entropy: bytes, family: str | None = None) -> str:
    """Build an id from a wall-clock time in seconds and 10 random bytes (RFC 9562, section 5.7).

    Arguments:
        family: the last digits, where the run belongs to a family, or is found by its key; else they are random, too.
    """
    tail = int.from_bytes(entropy[:10], "big")
    value = (int(now * 1000) & 0xFFFF_FFFF_FFFF) << 80
    value |= 0x7 << 76 | (tail >> 68 & 0xFFF) << 64 | 0b10 << 62 | (tail & 0x3FFF_FFFF_FFFF_FFFF)
    made = f"{value:032x}"
    return made if family is None else made[:-FAMILY_DIGITS] + family


def after_run_id(last: str, made: str) -> str:
    """`made`, or, where it would sort before the `last` id of this process, one of the same family that sorts close behind that.

    Ids of one millisecond are in no order by themselves, and a clock may step back; runs are listed in the order of their creation.
    """
    if made > last:
        return made
    return f"{int(last[:-FAMILY_DIGITS], 16) + 1:028x}{family_of(made)}"


def family_of(run_id: str) -> str:
    """The digits that a run has in common with all that descend from the same first ancestor."""
    return run_id[-FAMILY_DIGITS:]


def family_of_key(user: str | None, key: str) -> str:
    """The family of a run that joins no other and has this key."""
    text = f"{'' if user is None else 'u' + user}\0{key}"
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:FAMILY_DIGITS]


def is_run_id(text: str) -> bool:
    """Tell whether `text` has the form of a run id."""
    return _RUN_ID.match(text) is not None
