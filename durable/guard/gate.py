"""The gate: what a start asks before it is let in, and who answers.

Law: an answer holds for the start that asked: one that is let in counts from then on, one that is refused has cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from durable.config import Limits
from durable.errors import BackpressureError


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


@dataclass(slots=True)
class GateCounts:
    """What the gate has decided since the application was opened.

    Arguments:
        accepted: starts that were let in.
        refused: starts that were not, by reason: `rate`, `user_rate`, `queue`, `slot_timeout`, `closing` (the application was closed while
            they waited for a slot) or `store` (it takes no new runs now: see `Store.admit`).
    """

    accepted: int = 0
    refused: dict[str, int] = field(default_factory=dict)


class Gate:
    """Lets starts in, or says why not.

    Arguments:
        admission: decides.
        amend: told when a start that was let in has created its run, in the same turn of the loop.
    """

    def __init__(
        self, limits: Limits, admission: Admission, amend: Callable[[str | None, StartBounds], None] | None = None
    ) -> None:
        self._admission = admission
        self._amend = amend
        self.counts = GateCounts()
        #: Called with the reason, the task's name and the user of each start that is refused.
        self.on_refused: Callable[[str, str, str | None], None] | None = None
        self.change(limits)

    def change(self, limits: Limits) -> None:
        """From now on these limits hold; what was counted counts on."""
        self._bounds = StartBounds(
            limits.max_starts_per_window, limits.max_starts_per_user_window, limits.window, limits.max_queued
        )
        #: Whether nothing bounds starts.
        self.is_open = self._bounds[:2] == (None, None) and limits.max_queued is None
        #: How long a start waits for a slot, where no run may wait for one; else None.
        self.slot_timeout = limits.slot_timeout if limits.max_queued == 0 else None

    async def let_in(self, asked: StartAsked, task: str) -> None:
        """Let a start in and count it. Raises `BackpressureError`."""
        if not self.is_open:
            self._raise(await self._admission.let_in(asked, self._bounds), asked, task)
        self.counts.accepted += 1

    def let_by(self) -> None:
        """Count a start where nothing bounds them."""
        self.counts.accepted += 1

    def foresee(self, asked: StartAsked, task: str) -> None:
        """Raise `BackpressureError` where it is known already that the start would be refused."""
        self._raise(self._admission.foresee(asked, self._bounds), asked, task)

    def created(self, user: str | None) -> None:
        """The start that was let in last, in this very turn of the loop, has created its run."""
        if self._amend is not None:
            self._amend(user, self._bounds)

    def refused(self, reason: str, task: str, user: str | None) -> None:
        """A start was refused: count it, and tell."""
        counted = self.counts.refused
        counted[reason] = counted.get(reason, 0) + 1
        if self.on_refused is not None:
            self.on_refused(reason, task, user)

    def _raise(self, refused: StartRefused | None, asked: StartAsked, task: str) -> None:
        if refused is None:
            return
        self.refused(refused.reason, task, asked.user)
        bounds = self._bounds
        limit, what = {
            "rate": (bounds.starts, f"starts in {bounds.window:g} s (limits.max_starts_per_window)"),
            "user_rate": (
                bounds.starts_per_user,
                f"starts of one user in {bounds.window:g} s (limits.max_starts_per_user_window)",
            ),
        }.get(refused.reason, (bounds.queued, "runs that wait for a slot (limits.max_queued)"))
        raise BackpressureError(
            f"task {task!r} was not started: there are {limit} {what}, the most there may be; "
            f"try again in {refused.retry_after:.3g} s",
            retry_after=refused.retry_after, limit=limit,
        )  # fmt: skip
