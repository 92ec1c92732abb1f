"""The courier: brings messages that lie in one shard to the runs of another that they are for.

Law: a message is at its shard before it is gone where it lay: see `Membership`. One that cannot be delivered now stays where it is, and
keeps no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from durable.errors import DurableError, RepositoryUnavailableError
from durable.store.postgres.shards.membership import Membership, Stray
from durable.store.postgres.shards.reach import Reach

logger = logging.getLogger("durable.store")

#: How often it is looked, in seconds, for what who wrote it did not come to deliver.
LOOK_SECONDS = 5.0


class Post(Protocol):
    """A shard, as the courier knows it."""

    @property
    def store_id(self) -> str:
        """Identity of the shard."""
        ...

    @property
    def membership(self) -> Membership:
        """Where its messages are handed on, and received."""
        ...


class Courier:
    """See the module.

    Arguments:
        posts: the shards, each with whether it can be asked.
        shard_of: tells a run's shard from its id.
        delivered: called when messages have arrived.
    """

    def __init__(
        self,
        posts: Sequence[tuple[Post, Reach]],
        shard_of: Callable[[str], int],
        delivered: Callable[[], None],
    ) -> None:
        self._posts = posts
        self._shard_of = shard_of
        self._delivered = delivered
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Look for messages from now on."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="durable-courier")

    def call(self) -> None:
        """There is something to deliver."""
        self.open()
        self._wake.set()

    async def close(self) -> None:
        """Deliver nothing more; others do."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            for post, reach in self._posts:
                if not reach.absence:
                    await self._collect(post, reach)
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _collect(self, post: Post, reach: Reach) -> None:
        try:
            await reach.ask(partial(post.membership.hand_on, partial(self._deliver, post.store_id)))
        except RepositoryUnavailableError as error:
            logger.warning("messages for other shards wait: %s", error)
        except DurableError:
            logger.exception("messages for other shards cannot be handed on")

    async def _deliver(self, source: str, strays: Sequence[Stray], oldest: int) -> Sequence[Stray]:
        """Bring messages to their shards; those that have arrived."""
        by_shard: dict[int, list[Stray]] = {}
        for stray in strays:
            by_shard.setdefault(self._shard_of(stray.run_id), []).append(stray)
        arrived: list[Stray] = []
        for place, some in by_shard.items():
            post, reach = self._posts[place]
            try:
                await reach.ask(partial(post.membership.receive, source, some, oldest))
            except RepositoryUnavailableError:
                continue
            arrived += some
        if arrived:
            self._delivered()
        return arrived
