"""Places: how many runs may execute at once, in all and of one user.

Law: never more places are taken than there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from durable.config import Limits


class Places(Protocol):
    """The places that the scheduler takes for runs that begin, and gives back."""

    #: Called when a place may have become free that was refused before, with the user for whom; None: for anybody.
    freed: Callable[[str | None], None]

    def take(self, user: str | None) -> bool:
        """Take a place for a run of this user that begins now. False: there is none now; `freed` is called when there may be one."""
        ...

    @property
    def full(self) -> bool:
        """After `take` said False: whether nobody has a place now. Else it is this user who has none, and others go first."""
        ...

    @property
    def room(self) -> int:
        """How many more there may be."""
        ...

    def give(self, user: str | None) -> None:
        """Give a place back."""
        ...

    def may_come(self, user: str | None) -> bool:
        """Whether there is no place here for this user, but it is not known that there is none at all: `seek` finds out."""
        ...

    async def seek(self, user: str | None) -> bool:
        """Wait for what is known soon: whether there is a place for this user after all. False: there is none, as far as is known."""
        ...

    def is_missed(self, user: str | None) -> bool:
        """Whether a run that waits where nobody here sees it could have the place of a run of this user."""
        ...

    @property
    def some_missed(self) -> bool:
        """Whether that is so of any user."""
        ...


class LocalPlaces:
    """The places of one process. It is changed, and asked, on one event loop."""

    def __init__(self, limits: Limits) -> None:
        self.freed: Callable[[str | None], None] = lambda user: None
        self._taken = 0
        self._by_user: dict[str, int] = {}
        self.change(limits)

    def change(self, limits: Limits) -> None:
        """From now on there are so many. What is taken stays taken; `freed` is not called."""
        self._most = limits.max_running
        self._most_of_user = limits.max_running_per_user

    @property
    def full(self) -> bool:
        """Whether nobody has a place now."""
        return self._taken >= self._most

    @property
    def room(self) -> int:
        """How many more there are."""
        return self._most - self._taken

    def take(self, user: str | None) -> bool:
        """Take a place for a run of this user, if there is one."""
        if self._taken >= self._most:
            return False
        if user is not None:
            own = self._by_user.get(user, 0)
            if self._most_of_user is not None and own >= self._most_of_user:
                return False
            self._by_user[user] = own + 1
        self._taken += 1
        return True

    def give(self, user: str | None) -> None:
        """Give a place back."""
        self._taken -= 1
        if user is not None:
            own = self._by_user[user] - 1
            if own:
                self._by_user[user] = own
            else:
                del self._by_user[user]

    def may_come(self, user: str | None) -> bool:
        """All is known here."""
        return False

    async def seek(self, user: str | None) -> bool:
        """The same."""
        return False

    def is_missed(self, user: str | None) -> bool:
        """All who wait are seen here."""
        return False

    @property
    def some_missed(self) -> bool:
        """The same."""
        return False
