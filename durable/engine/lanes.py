"""Lanes: in which order units are committed, and how large one may get.

Law: the units of a lane are committed in the order in which they were begun; what is in other lanes does not wait for them.
"""

from __future__ import annotations

import asyncio

from durable.core.records import Record
from durable.engine.entry import Unit

#: A unit becomes one frame of the log: with this many bytes in it, the next record of its run goes into another unit.
UNIT_BYTES_MAX = 8 * 1024 * 1024


class Lane:
    """Units that are committed one batch after another. What is in other lanes does not wait for them."""

    __slots__ = ("busy", "pending", "wake", "worker")

    def __init__(self) -> None:
        self.pending: list[Unit] = []
        #: Whether a batch is on its way, or being published.
        self.busy = False
        self.wake: asyncio.Future[None] | None = None
        self.worker: asyncio.Task[None] | None = None

    def kick(self) -> None:
        """There is something to do."""
        if self.wake is not None and not self.wake.done():
            self.wake.set_result(None)


def size_of(record: Record) -> int:
    """About how many bytes it will have."""
    size = 256 + len(record.payload or b"") + len(record.ident)
    return size + 4 * len(record.head["traceback"]) if "traceback" in record.head else size
