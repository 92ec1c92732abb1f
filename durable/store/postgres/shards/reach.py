"""Reach: whether a shard can be asked now.

Law: no question waits for a shard that is known to be away, and none waits long for one that has gone away meanwhile. That it is back is
found out by asking it, beside everything else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from durable.errors import DurableError, RepositoryUnavailableError

logger = logging.getLogger("durable.store")

#: A shard that has not answered for so long is asked whether it is there; and has as long to say so.
PATIENCE_SECONDS = 2.0
#: Between two such questions to a shard that is away.
RETRY_SECONDS = 0.5

T = TypeVar("T")


class Reach:
    """See the module.

    Arguments:
        name: what to call the shard.
        probe: returns when the shard answers; raises `DurableError` where it does not.
        back: called when it answers again.
    """

    def __init__(self, name: str, probe: Callable[[], Coroutine[Any, Any, None]], back: Callable[[], None]) -> None:
        self._name = name
        self._probe = probe
        self._back = back
        #: Why the shard cannot be asked; empty while it can.
        self.absence = ""
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._probing: asyncio.Task[None] | None = None
        self._left: set[asyncio.Future[Any]] = set()

    async def close(self) -> None:
        """Ask nothing more."""
        tasks = [*self._left, *([self._probing] if self._probing is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """Ask the shard something that may be left without an answer. Raises `RepositoryUnavailableError` while it is away."""
        if self.absence:
            self.suspect()
            raise RepositoryUnavailableError(self.absence)
        gone = self._gone
        asking = asyncio.ensure_future(question())
        either: set[asyncio.Future[Any]] = {asking, gone}
        try:
            while True:
                await asyncio.wait(either, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if asking.done():
                    return asking.result()
                if gone.done():
                    break
                self.suspect()
        except RepositoryUnavailableError as error:
            self.suspect()
            raise RepositoryUnavailableError(self._away(error)) from None
        finally:
            if not asking.done():
                self._leave(asking)
        raise RepositoryUnavailableError(self.absence or self._away("it did not answer"))

    def suspect(self) -> None:
        """It may be away: find out."""
        if self._probing is None:
            self._probing = asyncio.create_task(self._find_out(), name="durable-shard")

    def lost(self, why: object) -> None:
        """It is away."""
        if not self.absence:
            logger.error("%s is away, work of the others goes on: %s", self._name, why)
            self._gone.set_result(None)
        self.absence = self._away(why)

    async def _find_out(self) -> None:
        asking: asyncio.Task[None] | None = None
        try:
            while True:
                asking = asking or asyncio.create_task(self._probe())
                await asyncio.wait({asking}, timeout=PATIENCE_SECONDS)
                if not asking.done():  # one question is enough for a server that hangs
                    self.lost(f"it has not answered for {PATIENCE_SECONDS:g} s")
                    continue
                error = asking.exception()
                asking = None
                if error is None:
                    break
                if not isinstance(error, DurableError):
                    raise error
                self.lost(error)
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            self._probing = None
            if asking is not None:
                self._leave(asking)
        if self.absence:
            logger.warning("%s is back", self._name)
            self.absence = ""
            self._gone = asyncio.get_running_loop().create_future()
            self._back()

    def _away(self, why: object) -> str:
        return f"{self._name} cannot be asked now: {why}"

    def _leave(self, asking: asyncio.Future[Any]) -> None:
        """Wait no longer for an answer. A cancelled question may take its time to end, where the server does not answer."""
        asking.cancel()
        self._left.add(asking)
        asking.add_done_callback(self._ended)

    def _ended(self, asking: asyncio.Future[Any]) -> None:
        self._left.discard(asking)
        if not asking.cancelled():
            asking.exception()
