"""The queue for places: who begins next.

Law: of those who may have a place, the one that stands first; whoever may have none now keeps nobody else waiting. What a turn costs
grows with the logarithm of how many wait, however many of them may have no place.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")


class Turn(Generic[T]):
    """A place in the queue.

    Arguments:
        user: for whom it is.
        what: who waits.
        starts: whether it is a run that was started and waits for its first slot: those count for `max_queued`.
    """

    __slots__ = ("aside", "live", "starts", "user", "what")

    def __init__(self, user: str | None, what: T, starts: bool) -> None:
        self.user = user
        self.what = what
        self.starts = starts
        #: Whether it still waits.
        self.live = True
        #: Whether its user could have no place when it was asked for.
        self.aside = False


#: Where it stands, and in what order it came.
Item = tuple[float, str, int, Turn[T]]


class FairQueue(Generic[T]):
    """Those who wait for a place."""

    def __init__(self) -> None:
        self._line: list[Item[T]] = []
        #: Those of users who could have no place when they were asked for.
        self._aside: dict[str | None, list[Item[T]]] = {}
        self._came = 0
        self._live = 0
        self._live_aside = 0
        #: Turns in the line or aside that wait no more.
        self._dead = 0
        #: How many of those that wait count for `max_queued`.
        self.starts = 0

    def __len__(self) -> int:
        return self._live

    @property
    def ready(self) -> int:
        """How many wait that are not set aside."""
        return self._live - self._live_aside

    def is_aside(self, user: str | None) -> bool:
        """Whether runs of this user are set aside."""
        return user in self._aside

    def push(self, standing: float, ident: str, user: str | None, what: T, *, starts: bool = False) -> Turn[T]:
        """Wait; lower `standing` goes first, then lower `ident`."""
        turn = Turn(user, what, starts)
        self._came += 1
        self._live += 1
        self.starts += starts
        heapq.heappush(self._line, (standing, ident, self._came, turn))
        return turn

    def drop(self, turn: Turn[T]) -> None:
        """It waits no more."""
        if not turn.live:
            return
        self._end(turn)
        self._dead += 1
        if turn.aside:
            self._live_aside -= 1
        else:
            self.freed(turn.user)  # it may have been there for all of its user's
        if self._dead > self._live:
            self._tidy()

    def first(self) -> Turn[T] | None:
        """Who stands first of those not set aside."""
        while self._line:
            turn = self._line[0][3]
            if turn.live:
                return turn
            heapq.heappop(self._line)
            self._dead -= 1
        return None

    def pop(self) -> None:
        """The first one waits no more: it has its place."""
        self._end(heapq.heappop(self._line)[3])

    def set_aside(self) -> None:
        """The first one's user can have no place now: others go first until `freed`."""
        item = heapq.heappop(self._line)
        item[3].aside = True
        self._live_aside += 1
        heapq.heappush(self._aside.setdefault(item[3].user, []), item)

    def freed(self, user: str | None) -> None:
        """There may be a place for this user: one of theirs comes back into the line."""
        items = self._aside.get(user)
        while items:
            item = heapq.heappop(items)
            if not items:
                del self._aside[user]
            if item[3].live:
                self._bring_back(item)
                return
            self._dead -= 1

    def freed_all(self) -> None:
        """There may be places for everybody."""
        aside, self._aside = self._aside, {}
        for items in aside.values():
            for item in items:
                if item[3].live:
                    self._bring_back(item)
                else:
                    self._dead -= 1

    def _bring_back(self, item: Item[T]) -> None:
        item[3].aside = False
        self._live_aside -= 1
        heapq.heappush(self._line, item)

    def _end(self, turn: Turn[T]) -> None:
        turn.live = False
        self._live -= 1
        self.starts -= turn.starts

    def _tidy(self) -> None:
        self._line = [item for item in self._line if item[3].live]
        heapq.heapify(self._line)
        for user, items in list(self._aside.items()):
            kept = self._aside[user] = [item for item in items if item[3].live]
            heapq.heapify(kept)
            if not kept:
                del self._aside[user]
        self._dead = 0
