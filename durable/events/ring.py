"""One run's stream: the last records of it in memory, and those who read them.

Law: what is here between `floor` and `last` is the run's record without a hole, durable, and bounded in number and in bytes. Readers share
it and hold a place in it: adding a record costs the same for one reader and for a thousand, but for waking those who wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from durable.core.records import ENDS, Kind, Record
from durable.core.run import Run

#: Above any `seq`: nothing is known of the run yet.
UNKNOWN = 1 << 62
#: Records that a reader takes at once.
BATCH = 64
#: What a record takes besides its payload, about, in bytes.
RECORD_BYTES = 256


class Ring:
    """The last records of a run.

    Arguments:
        size: most records, and most ephemeral events that wait for records before them.
        bytes_max: most bytes of records; one record is kept even if it has more.
    """

    __slots__ = ("_bytes", "_bytes_max", "_early", "_items", "_size", "_waiting", "closed", "end", "ended", "floor",
                 "last", "news", "readers", "reading", "start")  # fmt: skip

    def __init__(self, size: int, bytes_max: int) -> None:
        self._size = size
        self._bytes_max = bytes_max
        self._bytes = 0
        self._items: list[Record | None] = []
        #: Ephemeral events that come after records which are not durable yet.
        self._early: deque[Record] = deque(maxlen=size)
        self._waiting: set[asyncio.Future[None]] = set()
        #: Positions of the oldest item, and of the one that comes next. They only rise.
        self.start = self.end = 0
        #: All records with a `seq` above `floor`, up to `last`, are here.
        self.floor, self.last = UNKNOWN, -1
        #: Whether the run had ended with `last`.
        self.ended = False
        #: The store may have more, or nobody has asked it yet.
        self.news = True
        #: Held while somebody reads, for all, what comes after `last`.
        self.reading = asyncio.Lock()
        self.readers = 0
        #: Nothing comes here any more: the application was closed.
        self.closed = False

    def __len__(self) -> int:
        return self.end - self.start

    def items(self, position: int, count: int) -> list[Record]:
        """What is at a position from `start` to before `end`, and some of what follows."""
        first = position % self._size
        last = min(first + min(count, self.end - position), len(self._items))
        return self._items[first:last]  # type: ignore[return-value]  # no place in between is empty

    # --- what comes ---------------------------------------------------------------------------------------------------------------

    def push(self, record: Record) -> None:
        """Take a durable record. One that is here already changes nothing; where some are missing before it, it begins anew."""
        seq = record.seq
        if seq <= self.last:
            return
        if seq != self.last + 1:
            self._begin(seq - 1)
            self.news = True
        self._put(record)
        self.last = seq
        if record.kind in ENDS:
            self.ended = True
        elif record.kind is Kind.RESUMED:
            self.ended = False
        if self._early:
            self._put_early()
        if self._waiting:
            self.wake()

    def push_ephemeral(self, record: Record) -> None:
        """Take an event that is not stored; its `seq` is that of the last record, durable by now or not, before it."""
        self._early.append(record)
        if record.seq <= self.last:
            self._put_early()
            self.wake()

    def learn(self, after: int, page: Sequence[Record], run: Run | None) -> None:
        """Take what the store has above `after`.

        Arguments:
            run: what the store said after that, where the page is all that there was; else None.
        """
        news = self.news  # since the store was asked
        for record in page:
            self.push(record)
        self.news = news or run is None
        if run is None:
            return
        if self.last < run.seq <= max(after, page[-1].seq if page else 0):
            self._begin(run.seq)
            self.last = run.seq
        if self.last == run.seq:
            self.ended = run.ended
        else:
            self.news = True  # more came between the two answers
        self._put_early()
        self.wake()

    def forget(self) -> None:
        """The store does not have what is here: ask it again."""
        self._begin(UNKNOWN)
        self.last = -1
        self.news = True

    def look_again(self) -> None:
        """The store may have more."""
        self.news = True
        self.wake()

    def left(self) -> None:
        """Nobody reads any more: what is for live readers only is for nobody."""
        self._early.clear()

    def _begin(self, floor: int) -> None:
        while self.start < self.end:
            self._drop()
        self.floor = floor

    def _put(self, record: Record) -> None:
        if self.end - self.start == self._size:
            self._drop()
        index = self.end % self._size
        if index == len(self._items):
            self._items.append(record)
        else:
            self._items[index] = record
        self.end += 1
        self._bytes += RECORD_BYTES + len(record.payload or b"")
        while self._bytes > self._bytes_max and self.end - self.start > 1:
            self._drop()

    def _put_early(self) -> None:
        while self._early and self._early[0].seq <= self.last:
            record = self._early.popleft()
            if record.seq == self.last:  # else what it came before is here already
                self._put(record)

    def _drop(self) -> None:
        index = self.start % self._size
        record = self._items[index]
        assert record is not None
        self._items[index] = None
        self.start += 1
        self._bytes -= RECORD_BYTES + len(record.payload or b"")
        if "ephemeral" not in record.head:
            self.floor = record.seq

    # --- who waits ----------------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Let those who wait look."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()

    def wait(self) -> asyncio.Future[None]:
        """What is done when something comes, from this call on."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        waiter.add_done_callback(self._waiting.discard)
        return waiter


class Reader:
    """A place in a ring: what was read last.

    Arguments:
        after: the `seq` after which to begin.
    """

    __slots__ = ("_at", "_born", "_page", "_placed", "after", "ring")

    def __init__(self, ring: Ring, after: int) -> None:
        self.ring = ring
        #: The last `seq` that was read.
        self.after = after
        self._page: Sequence[Record] = ()
        self._at, self._born = ring.start, ring.end
        self._placed = False

    def ready(self) -> Sequence[Record]:
        """The records that come next, as far as they are at hand; not many at a time, for they are held for this reader alone."""
        if page := self._page:
            self._page = ()
            self.after = page[-1].seq
            return page
        ring = self.ring
        if self.after < ring.floor:
            return ()
        self._placed = True
        at = self._at = max(self._at, ring.start)
        found: Sequence[Record] = ()
        while not found and at < ring.end:
            first, found = at - self._born, ring.items(at, BATCH)
            at += len(found)
            if found[0].seq != self.after + 1 or found[-1].seq != self.after + len(found):
                found = self._mine(found, first)
        self._at = at
        if found:
            self.after = found[-1].seq
        return found

    def _mine(self, items: Sequence[Record], first: int) -> Sequence[Record]:
        """Of these, what was not read yet, and is not for those who were here earlier."""
        found, after = list[Record](), self.after
        for number, record in enumerate(items, first):
            if "ephemeral" in record.head:
                if number >= 0 and record.seq == after:
                    found.append(record)
            elif record.seq > after:
                after = record.seq
                found.append(record)
        return found

    @property
    def behind(self) -> bool:
        """Whether what comes next was in memory, and is not any more."""
        return self.after < self.ring.floor < UNKNOWN

    @property
    def has_to_ask(self) -> bool:
        """When nothing is at hand: whether the store has to be asked."""
        return self.after < self.ring.floor or self.ring.news

    def take(self, page: Sequence[Record]) -> None:
        """Go on with what the store had above `after`."""
        self._page = page
        self._placed = False

    def fell_behind(self) -> bool:
        """Whether it was in its place before, and is behind."""
        fell, self._placed = self._placed and self.behind, False
        return fell
