"""Places that executors share: how many runs may execute at once, in all processes together.

Law: a run executes in a place that the store says is this process's. Some are held in advance, so that a busy process asks rarely; what
was not used for a second is given back. With the lease, all are gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from durable.config import Limits
from durable.engine.pipeline import RETRY_SECONDS
from durable.store.shared import SharedStore, UserBounds

logger = logging.getLogger("durable.engine")

#: With no more places than these, one is taken at a time, when it is needed: nobody holds one in advance that another could use.
FEW = 16
#: Of more, this part is taken at once, no more than so many; and by who uses more already, as many again.
PARTS, CHUNK_MAX = 8, 64
#: Of more than these, each process may have one in so many while nobody can be asked.
SHARE = 16
#: What was not used for so long is given back, seconds.
UNUSED_SECONDS = 1.0
#: A notice that there may be places is gone after no sooner than so many seconds after the last.
NOTICE_SECONDS = 0.02


class Scope:
    """The places of all, or of one user."""

    __slots__ = ("asking", "held", "lacking", "name", "spare", "used", "user")

    def __init__(self, user: str | None = None) -> None:
        self.user = user
        self.name = "" if user is None else f"={user}"
        self.held = 0
        self.used = 0
        #: The fewest that were not used since it was last looked for such.
        self.spare = 0
        #: Whether more are being asked for; and whether there were none when it was last asked.
        self.asking = self.lacking = False

    def changed(self) -> None:
        self.spare = min(self.spare, self.held - self.used)


class SharedPlaces:
    """See the module, and `durable.guard.places.Places`."""

    def __init__(self, store: SharedStore, limits: Limits) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self.freed: Callable[[str | None], None] = lambda user: None
        #: Called with the user for whom there is no place, so that what waits here for one may wait in the store; None: for anybody.
        self.none_left: Callable[[str | None], None] = lambda user: None
        #: Called when there are places again, and what waits for one may wait in the store.
        self.found: Callable[[], None] = lambda: None
        self._all = Scope()
        self._users: dict[str, Scope] = {}
        #: What to ask for, and what to give back.
        self._wanted: dict[Scope, None] = {}
        self._given: dict[str, int] = {}
        self._speaking: asyncio.Task[None] | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._sorting: asyncio.TimerHandle | None = None
        #: Which lease it is; with another one, an answer says nothing.
        self._life = 0
        #: The ledger cannot be asked, but runs of other shards go on.
        self._alone = False
        self._closed = False
        self.full = False
        self.change(limits)

    def change(self, limits: Limits) -> None:
        """From now on there are so many. What is taken stays taken."""
        self._most, self._most_of_user = limits.max_running, limits.max_running_per_user
        for scope in (self._all, *self._users.values()):
            scope.lacking = False  # there may be more of them

    async def open(self) -> None:
        """Take some in advance."""
        if self._most > FEW:
            self._want(self._all)
            if self._speaking is not None:
                await asyncio.wait((self._speaking,))

    async def close(self) -> None:
        """Ask for nothing more: what is held is given back with the lease."""
        self._closed = True
        for timer in (self._looking, self._sorting):
            if timer is not None:
                timer.cancel()
        if self._speaking is not None:
            self._speaking.cancel()
            await asyncio.wait((self._speaking,))

    # -- what the scheduler asks

    def take(self, user: str | None) -> bool:
        """See `Places.take`."""
        scopes = self._scopes(user)
        missing = self._missing(user)
        self.full = self._all in missing
        for scope in missing:
            if not scope.lacking:
                self._want(scope)
        if missing:
            self._look_later(self._store.poll_seconds)
            return False
        for scope in scopes:
            scope.used += 1
            scope.changed()
            most = self._bound(scope)
            if most is not None and not scope.lacking and scope.held - scope.used < _more(most, scope.used) // 4:
                self._want(scope)
        return True

    def give(self, user: str | None) -> None:
        """See `Places.give`."""
        for scope in self._scopes(user):
            scope.used -= 1
            if scope.lacking:
                self.found()  # others of the kind may wait in the store
        self._sort_later()

    def may_come(self, user: str | None) -> bool:
        """See `Places.may_come`."""
        missing = self._missing(user)
        return bool(missing) and not (self._closed or any(scope.lacking for scope in missing))

    def _missing(self, user: str | None) -> list[Scope]:
        return [scope for scope in self._scopes(user) if self._room(scope) <= 0]

    async def seek(self, user: str | None) -> bool:
        """See `Places.seek`."""
        if not self.may_come(user):
            return False
        missing = self._missing(user)
        for scope in missing:
            self._want(scope)
        while self._speaking is not None and any(scope.asking for scope in missing):
            await asyncio.wait((self._speaking,))
        return not any(scope.lacking or scope.asking for scope in missing)

    def is_missed(self, user: str | None) -> bool:
        """See `Places.is_missed`."""
        return any(scope.lacking for scope in self._scopes(user))

    @property
    def some_missed(self) -> bool:
        """See `Places.some_missed`."""
        return any(scope.lacking for scope in (self._all, *self._users.values()))

    @property
    def room(self) -> int:
        """How many more runs there may be places for: those that are held, or, where more may be had, some that are not yet."""
        room = self._room(self._all)
        if self._all.lacking or self._alone:
            return max(room, 0)
        return max(room, min(_more(self._most, self._all.used), self._most - self._all.used), 0)

    @property
    def users(self) -> UserBounds | None:
        """How many runs of each user may be claimed; None where users are not bounded."""
        if self._most_of_user is None:
            return None
        known = ((user, scope) for user, scope in self._users.items() if scope.lacking or scope.asking)
        return UserBounds(_more(self._most_of_user), {user: max(self._room(scope), 0) for user, scope in known})

    def _scopes(self, user: str | None) -> Iterable[Scope]:
        if user is None:
            return (self._all,)
        scope = self._users.get(user)
        if scope is None:
            scope = self._users[user] = Scope(user)
        return (self._all, scope)

    def _bound(self, scope: Scope) -> int | None:
        return self._most if scope is self._all else self._most_of_user

    def _room(self, scope: Scope) -> int:
        most = self._bound(scope)
        if most is None:
            return 1
        held = min(scope.held, most)
        return (max(held, most // SHARE) if self._alone and most > FEW else held) - scope.used

    # -- what is heard

    def look(self) -> None:
        """There may be places that were not there."""
        if self.some_missed:
            self._look_later(NOTICE_SECONDS)

    def forget(self) -> None:
        """The lease has passed: nothing is held any more."""
        self._life += 1
        self._given.clear()
        for scope in (self._all, *self._users.values()):
            scope.held, scope.spare, scope.lacking = 0, 0, False

    def _look_later(self, seconds: float) -> None:
        when = self._loop.time() + seconds
        if self._closed or (self._looking is not None and self._looking.when() <= when):
            return
        if self._looking is not None:
            self._looking.cancel()
        self._looking = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._looking = None
        for scope in (self._all, *self._users.values()):
            if scope.lacking:
                self._want(scope)
        if self._wanted or self._given:
            self._speak()

    # -- what is not used

    def _sort_later(self) -> None:
        if self._sorting is None and not self._closed:
            self._sorting = self._loop.call_later(UNUSED_SECONDS, self._sort)

    def _sort(self) -> None:
        """Give back what was not used since the last time."""
        self._sorting = None
        for scope in (self._all, *list(self._users.values())):
            if scope.spare > 0:
                scope.held -= scope.spare
                self._given[scope.name] = self._given.get(scope.name, 0) + scope.spare
            scope.spare = max(scope.held - scope.used, 0)
            if not (scope.held or scope.used or scope.asking or scope.lacking) and scope.user is not None:
                del self._users[scope.user]
        if self._given:
            self._speak()
        if self._all.held or self._users:
            self._sort_later()

    # -- what is said to the store

    def _want(self, scope: Scope) -> None:
        if not scope.asking and not self._closed and self._bound(scope) is not None:
            scope.asking = True
            self._wanted[scope] = None
            self._speak()

    def _speak(self) -> None:
        if self._speaking is None:
            self._speaking = asyncio.create_task(self._say(), name="durable-places")

    async def _say(self) -> None:
        try:
            while self._wanted or self._given:
                given, self._given = self._given, {}
                wanted, self._wanted = list(self._wanted), {}
                try:
                    if given:
                        await self._store.give_places(given)
                    if wanted:
                        await self._take(wanted)
                except Exception as error:  # noqa: BLE001 - places that nobody asks for are runs that never begin
                    logger.warning("places for runs cannot be asked for now: %s", error)
                    self._given = {
                        **dict.fromkeys(given, 0),
                        **self._given,
                    }  # the store may not know that they are back
                    self._away(wanted)
                    return  # `_look` goes on
        finally:
            self._speaking = None

    async def _take(self, scopes: list[Scope]) -> None:
        """Ask for places, and tell who waits for them."""
        life, wanted = self._life, dict[str, tuple[int, int]]()
        for scope in scopes:
            most = self._bound(scope)
            if most is not None:
                wanted[scope.name] = (max(_more(most, scope.used), scope.used - scope.held + 1), most)
        got = await self._store.take_places(wanted)
        self._alone = False
        for scope in scopes:
            scope.asking = False
            if life == self._life:
                scope.held += got.get(scope.name, 0)
                scope.lacking = self._room(scope) <= 0
        for scope in scopes:
            if scope.lacking:
                self._look_later(self._store.poll_seconds)
                self.none_left(scope.user)
            else:
                for _ in range(max(got.get(scope.name, 0), 1)):
                    self.freed(scope.user)
                self.found()
        self._sort_later()

    def _away(self, scopes: list[Scope]) -> None:
        """The ledger does not answer: what is held is what there is, or a part of all where runs of other shards can go on."""
        for scope in scopes:
            scope.asking, scope.lacking = False, True
        self._look_later(RETRY_SECONDS)
        if len(self._store.shards) > 1 and not self._alone:
            self._alone = True
            self.freed(None)


def _more(most: int, used: int = 0) -> int:
    """How many of so many places are taken at once by who uses some already."""
    return 1 if most <= FEW else min(max(most // PARTS, used), CHUNK_MAX)
