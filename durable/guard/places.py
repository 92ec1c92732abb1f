"""Places: how many runs may execute at once, in all and of one user.

Law: never more places are taken than there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


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

    def give(self, user: str | None) -> None:
        """Give a place back."""
        ...
