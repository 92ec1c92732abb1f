"""Notices: hints between processes, by NOTIFY, that there may be work or news.

Law: nothing depends on a notice. None is sent from within a transaction that writes: notices take turns, and so would those. None is sent
to nobody: who listens says so when it begins, and again from time to time.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import psycopg

from durable.errors import ConfigError, StorageError
from durable.store.postgres.session import Session, Sessions
from durable.store.shared import Notice

#: Notices are sent at once, but no more often than this: what comes in between is gathered, and sent together.
GATHER_SECONDS = 0.005
#: How long closing waits for the last notices to be sent.
CLOSE_SECONDS = 2.0
#: PostgreSQL takes less than 8,000 bytes.
PAYLOAD_BYTES = 7_500
#: More runs than these are no hint any more: everybody is to look at all of them.
RUNS_MAX = 2_000
BACKOFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

#: Who listens says so this often, and counts as listening for this long, seconds.
PRESENT_EVERY_SECONDS, PRESENT_SECONDS = 20.0, 60.0
#: Who begins to listen waits so long for answers to its greeting before it takes itself to be alone.
REPLY_SECONDS = 2.0

_WORK, _MAIL, _HELLO, _PRESENT, _EVERYTHING = "w", "m", "h", "p", "*"


class Notices:
    """Sends and hears notices of the stores on one schema.

    Arguments:
        sessions: where connections come from.
        schema: the schema, from which the channel has its name.
        sender: who this is: its own notices are not heard.
    """

    def __init__(self, sessions: Sessions, schema: str, sender: str) -> None:
        self._sessions = sessions
        self._channel = f"{schema}_notices"
        self._sender = sender
        self._marks: set[str] = set()
        self._runs: set[str] = set()
        #: Until when others count as listening, by the loop's clock; for ever where this one cannot hear them.
        self._present_until = math.inf
        self._timer: asyncio.TimerHandle | None = None
        #: When notices were last sent, by the loop's clock.
        self._sent_at = 0.0
        self._sending: asyncio.Task[None] | None = None
        self._listening: list[asyncio.Task[None]] = []

    async def close(self) -> None:
        """Hear and send nothing any more; what was gathered is sent."""
        if self._timer is not None:
            self._timer.cancel()
            self._begin()
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=CLOSE_SECONDS)
        ending, self._listening = self._listening, []
        if self._sending is not None:  # to a server that hangs
            ending.append(self._sending)
        for task in ending:
            task.cancel()
        if ending:  # the driver waits 10 s for the answer to a cancel: where none comes, it ends by itself
            await asyncio.wait(ending, timeout=CLOSE_SECONDS)

    # -- sending

    def notify(self, *, work: bool, mail: bool, runs: Iterable[str]) -> None:
        """See `SharedStore.notify`."""
        if asyncio.get_running_loop().time() < self._present_until:
            self._marks.update(mark for mark, given in ((_WORK, work), (_MAIL, mail)) if given)
            self._runs.update(runs)
            self._send_soon()

    def _say(self, mark: str) -> None:
        self._marks.add(mark)
        self._send_soon()

    def _send_soon(self) -> None:
        if (self._marks or self._runs) and self._timer is None and self._sending is None:
            self._timer = asyncio.get_running_loop().call_at(self._sent_at + GATHER_SECONDS, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._sent_at = asyncio.get_running_loop().time()
        self._sending = asyncio.ensure_future(self._send())
        self._sending.add_done_callback(self._sent)

    def _sent(self, sending: asyncio.Task[None]) -> None:
        self._sending = None
        self._send_soon()  # what was gathered meanwhile

    async def _send(self) -> None:
        payloads = list(self._payloads())
        # A notice that cannot be sent is one that got lost.
        with suppress(psycopg.Error, OSError, StorageError, ConfigError):
            async with self._sessions.connection() as session, session.answered():
                await session.execute(
                    "SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) AS n (payload)", (self._channel, payloads)
                )

    def _payloads(self) -> Iterator[str]:
        """`SENDER;wm;RUN,RUN`: letters for what there is, then the runs with news, or * for all of them."""
        marks, runs, self._marks, self._runs = self._marks, self._runs, set(), set()
        head = f"{self._sender};{''.join(sorted(marks))};"
        if len(runs) > RUNS_MAX:
            yield head + _EVERYTHING
            return
        some: list[str] = []
        size = len(head)
        for run_id in runs:
            if size + len(run_id) + 1 > PAYLOAD_BYTES:
                yield head + ",".join(some)
                some, size = [], len(head)
            some.append(run_id)
            size += len(run_id) + 1
        yield head + ",".join(some)

    # -- hearing

    def listen(self, heard: Callable[[Notice], None]) -> None:
        """See `SharedStore.listen`."""
        self._listening.append(asyncio.ensure_future(self._hear(heard)))

    async def _hear(self, heard: Callable[[Notice], None]) -> None:
        failures = 0
        while True:
            session: Session | None = None
            try:
                session = await self._sessions.dedicated()
                await session.execute(f'LISTEN "{self._channel}"'.encode())
                heard(Notice(True, None, True))  # others may have been sent before it listened
                failures = 0
                self._present_until = asyncio.get_running_loop().time() + REPLY_SECONDS
                self._say(_HELLO)
                while True:
                    async for notice in session.notifies(timeout=PRESENT_EVERY_SECONDS):
                        self._told(notice.payload, heard)
                    self._say(_PRESENT)
            except (psycopg.Error, OSError, StorageError, ConfigError):
                self._present_until = math.inf
            finally:
                if session is not None:
                    with suppress(psycopg.Error):
                        await session.close()
            await asyncio.sleep(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)])
            failures += 1

    def _told(self, payload: str, heard: Callable[[Notice], None]) -> None:
        sender, _, rest = payload.partition(";")
        marks, _, runs = rest.partition(";")
        if sender == self._sender:
            return
        self._present_until = asyncio.get_running_loop().time() + PRESENT_SECONDS
        if _HELLO in marks:
            self._say(_PRESENT)
        named = None if runs == _EVERYTHING else frozenset(runs.split(",")) if runs else frozenset[str]()
        if named is None or named or _WORK in marks or _MAIL in marks:
            heard(Notice(_WORK in marks, named, _MAIL in marks))
