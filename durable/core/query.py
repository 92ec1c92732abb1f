"""Which runs a query wants.

Law: `matches` is the meaning; a store's SQL must select the same runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from durable.core.run import Run
from durable.core.status import Status


def by_death(run: Run) -> tuple[float, str]:
    """The order of dead letters: first the one that died first."""
    return run.ended_at or 0.0, run.run_id


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs a query wants. None means any.

    Arguments:
        status: these statuses.
        task: runs of this task.
        user: runs of this user.
        key: runs that were started with this key, by any user.
        parent_id: children of this run.
        dead: dead letters only.
        open: runs that are not closed only.
        due_after: runs that are due after this time only.
        due_by: runs that are due by this time only.
        ended_by: runs that ended by this time only.
        after: runs that come after the run with this id, in the order of ids (which is the order of creation).
        limit: at most so many.
    """

    status: frozenset[Status] | None = None
    task: str | None = None
    user: str | None = None
    key: str | None = None
    parent_id: str | None = None
    dead: bool = False
    open: bool = False
    due_after: float | None = None
    due_by: float | None = None
    ended_by: float | None = None
    after: str | None = None
    limit: int = 100

    def matches(self, run: Run) -> bool:
        """Whether the run is wanted, apart from `limit`."""
        return (
            (self.status is None or run.status in self.status)
            and (self.task is None or run.task == self.task)
            and (self.user is None or run.user == self.user)
            and (self.key is None or run.key == self.key)
            and (self.parent_id is None or run.parent_id == self.parent_id)
            and (not self.dead or run.dead)
            and (not self.open or not run.closed)
            and (self.due_after is None or (run.due is not None and run.due > self.due_after))
            and (self.due_by is None or (run.due is not None and run.due <= self.due_by))
            and (self.ended_by is None or (run.ended_at is not None and run.ended_at <= self.ended_by))
            and (self.after is None or run.run_id > self.after)
        )
