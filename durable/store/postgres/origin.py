"""Which state of which store a session leads to, and whether that may be.

Law: after a state was seen, no older one is taken, and no other store's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from durable.errors import StoreMismatchError
from durable.store.postgres.failures import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which state of which store a session leads to; None: not known.

    Arguments:
        system: the identifier that a server shares with its standbys.
        timeline: raised by each promotion of a standby.
        store_id: of the store.
        generation: raised when the store is opened or a promotion is seen, so that older copies have lower ones.
    """

    system: str | None = None
    timeline: int | None = None
    store_id: str | None = None
    generation: int | None = None

    def require_same(self, seen: Origin, place: Place) -> None:
        """Raise `StoreMismatchError` if this, found at a place, is another server's, or another store, than what was seen."""
        for what, mine, theirs in (
            ("PostgreSQL system", self.system, seen.system),
            ("store", self.store_id, seen.store_id),
        ):
            if mine is not None and theirs is not None and mine != theirs:
                raise StoreMismatchError(
                    f"{place} is another {what} ({mine}) than the address led to before ({theirs}); the session was closed, nothing was "
                    "written. If that is meant, restart the processes that use the store"
                )

    def require_recent(self, seen: Origin, place: Place) -> None:
        """Raise `StoreMismatchError` if this, found at a place, is an older state than what was seen."""
        if less(self.timeline, seen.timeline):
            raise StoreMismatchError(
                f"{place} is on timeline {self.timeline}, but timeline {seen.timeline} was seen: this is the old primary, from "
                "before a failover, and lacks what was written since; the session was closed. Make it a standby of the new one"
            )
        if less(self.generation, seen.generation) and not less(seen.timeline, self.timeline):
            raise StoreMismatchError(
                f"the store at {place} is of generation {self.generation}, but generation {seen.generation} was seen: this is an "
                "older copy of it, such as an old primary or a restored backup; the session was closed. If that is meant, restart "
                "the processes that use the store"
            )

    def newest(self, seen: Origin) -> Origin:
        """What is to be remembered after both were seen."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        if less(self.generation, seen.generation) and not less(seen.timeline, self.timeline):
            known["generation"] = seen.generation
        if less(self.timeline, seen.timeline):
            return seen
        return replace(seen, **known)


def less(mine: int | None, theirs: int | None) -> bool:
    """Whether both are known and the first is less."""
    return mine is not None and theirs is not None and mine < theirs
