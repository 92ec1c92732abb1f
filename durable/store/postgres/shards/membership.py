"""Membership: what a store does as one of several shards: it knows the others, and hands on what is for their runs.

Law: who belongs together is written down once, in each of them. A message that was handed on arrives once, wherever a crash comes between.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

from durable.errors import StoreMismatchError
from durable.store.postgres.columns import Blobs, Longs, Texts, unescape
from durable.store.postgres.queries import Queries
from durable.store.postgres.session import Sessions
from durable.store.postgres.statements import Statements

#: Messages that are handed on at once.
PAGE = 500


class Stray(NamedTuple):
    """A message for a run of another shard, as it is stored."""

    message_id: int
    run: str
    body: bytes
    payload: bytes | None
    answer_to: str

    @property
    def run_id(self) -> str:
        """The run that it is for."""
        return unescape(self.run)


#: Delivers messages, given with the least number that any has which is still to be handed on; returns those that have arrived.
Deliver = Callable[[Sequence[Stray], int], Awaitable[Sequence[Stray]]]


class Membership:
    """See the module.

    Arguments:
        sessions: where connections come from.
        queries: says the statements.
        statements: what is said.
    """

    def __init__(self, sessions: Sessions, queries: Queries, statements: Statements) -> None:
        self._sessions = sessions
        self._queries = queries
        self._statements = statements

    async def ping(self) -> None:
        """Return when the shard answers. Raises as any question."""
        await self._queries.ask(self._statements.STORE_ID)

    # -- who belongs together

    async def members(self) -> frozenset[str]:
        """The ids of all shards of the set that this one belongs to; empty where it belongs to none."""
        ((members, _),) = await self._queries.ask(self._statements.MEMBERS)
        return frozenset((members or "").split())

    async def require_alone(self) -> None:
        """Raise `StoreMismatchError` where this is one of several shards."""
        if members := await self.members():
            raise StoreMismatchError(
                f"the store in {self._sessions.place} is one of {len(members)} shards: open them together, as PostgresStore(urls=[...])"
            )

    async def join(self, store_ids: Iterable[str]) -> None:
        """Belong to these shards from now on. Raises `StoreMismatchError` where it belongs to others, or has runs of its own already."""
        wanted = frozenset(store_ids)
        ((members, has_runs),) = await self._queries.ask(self._statements.MEMBERS)
        if members is None and has_runs:
            raise StoreMismatchError(
                f"the store in {self._sessions.place} has runs already, and they are not where a set of shards would look for them: "
                "give each shard an empty schema"
            )
        if members is None:
            await self._queries.change(self._statements.JOIN, (" ".join(sorted(wanted)),))
        found = await self.members()
        if found != wanted:
            missing, added = sorted(found - wanted), sorted(wanted - found)
            raise StoreMismatchError(
                f"the store in {self._sessions.place} is one of {len(found)} shards, but was opened as one of {len(wanted)}"
                + (f"; missing: {', '.join(missing)}" if missing else "")
                + (f"; new: {', '.join(added)}" if added else "")
                + ". Name all shards of the set, and no others; docs/scale.md says how to have more of them"
            )

    # -- handing on

    async def hand_on(self, deliver: Deliver) -> None:
        """Hand messages on to their shards, unless another process is about it: here they are gone once they have arrived."""
        if not await self._queries.ask(self._statements.STRAYS, (0, 1)):
            return
        async with self._sessions.connection() as session:
            with self._sessions.translated():
                async with session.transaction():
                    cursor = session.cursor(binary=True)
                    if not await (await cursor.execute(self._statements.HAND_ON)).fetchall():
                        return
                    oldest, after = 0, 0
                    while True:
                        await cursor.execute(self._statements.STRAYS, (after, PAGE))
                        strays = [Stray(*row) for row in await cursor.fetchall()]
                        if not strays:
                            return
                        after = strays[-1].message_id
                        oldest = oldest or strays[0].message_id
                        arrived = Longs([stray.message_id for stray in await deliver(strays, oldest)])
                        await cursor.execute(self._statements.HANDED_ON, (arrived,))

    async def receive(self, source: str, strays: Sequence[Stray], oldest: int) -> None:
        """Have messages that another shard hands on, once each.

        Arguments:
            source: the id of that shard's store.
            oldest: the least number of those that are still there.
        """
        values = {
            "source": source,
            "oldest": oldest,
            "ids": Longs([stray.message_id for stray in strays]),
            "runs": Texts([stray.run for stray in strays]),
            "bodies": Blobs([stray.body for stray in strays]),
            "payloads": Blobs([stray.payload for stray in strays]),
            "tokens": Texts([stray.answer_to for stray in strays]),
        }
        await self._queries.change(self._statements.RECEIVE, values)
