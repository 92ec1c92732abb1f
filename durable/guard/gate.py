"""The gate: what a start asks before it is let in, and who answers.

Law: an answer holds for the start that asked: one that is let in counts from then on, one that is refused has cost nothing.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class StartBounds(NamedTuple):
    """What bounds the starts of all processes together; None means no bound.

    Arguments:
        starts: starts in any `window`.
        starts_per_user: starts of one user in any `window`.
        window: seconds.
        queued: started runs that wait for their first slot: those that no run started, that are due, and that have not begun yet.
    """

    starts: int | None
    starts_per_user: int | None
    window: float
    queued: int | None


class StartAsked(NamedTuple):
    """A start that wants to be let in.

    Arguments:
        run_id: the run that it is about to create.
        user: whose.
        waits: whether it will wait for a slot, and so counts for the queue: it has none yet, and is to begin without delay.
    """

    run_id: str
    user: str | None
    waits: bool


class StartRefused(NamedTuple):
    """Why a start is not let in: `rate`, `user_rate` or `queue`, and after how many seconds it may be."""

    reason: str
    retry_after: float


class Admission(Protocol):
    """Decides starts, and counts those that are let in: in this process, or for all that share a store."""

    async def let_in(self, asked: StartAsked, bounds: StartBounds) -> StartRefused | None:
        """Decide a start; None where it is let in.

        Looks first at `starts`, then at `starts_per_user`, then, for one that waits, at `queued`. In one process it must not suspend:
        the run is on the table in the same turn. `bounds` are those of the moment, and may be others each time.
        """
        ...

    def foresee(self, asked: StartAsked, bounds: StartBounds) -> StartRefused | None:
        """What is known here already, without asking anybody or counting anything; None where nothing refuses the start.

        Asked before a start waits for a slot (`max_queued=0`), so that one which the rate refuses does not wait in vain; `let_in`
        follows when it has the slot.
        """
        ...
