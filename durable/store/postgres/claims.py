"""Holding runs: claims, the lease under which they are held, messages for them, and where they are.

Law: taking hold of a run raises its epoch, in the statement that sees that nobody holds it; so does letting go of it. An executor whose
lease has passed takes hold of nothing, and has no other way back than to become another executor.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from durable.clock import Clock, Entropy
from durable.config import PostgresSettings
from durable.core.messages import Answer, Message, decode_command
from durable.errors import LeaseLostError
from durable.store.postgres.columns import Longs, Texts, escape, escape_some, unescape
from durable.store.postgres.queries import Queries
from durable.store.postgres.recent import Recent
from durable.store.postgres.statements import Statements
from durable.store.shared import Claimed, Executor, Held, Known, Placement, UserBounds

#: Candidates beyond those that are wanted, for each task: others may be about to take the first.
SPARE = 50


class Claims:
    """What an executor does that is not writing.

    Arguments:
        queries: says the statements.
        statements: what is said.
        recent: which runs are held.
        settings: how long a lease lasts, and a statement.
        clock, entropy: of this process.
    """

    def __init__(
        self,
        queries: Queries,
        statements: Statements,
        recent: Recent,
        *,
        settings: PostgresSettings,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._queries = queries
        self._statements = statements
        self._recent = recent
        self._lease_seconds = settings.lease_seconds
        self._statement_seconds = settings.statement_seconds
        self._clock = clock
        self._entropy = entropy
        self._renewed_at: float | None = None
        self._taking = asyncio.Lock()
        #: Until when a claim or a write whose answer did not come may still be carried out.
        self._strays_until: float | None = None
        #: Empty while it is none.
        self.executor_id = ""

    # -- the lease

    async def enroll(self, known: Sequence[Known]) -> None:
        """See `SharedStore.enroll`."""
        made = self._entropy.token_bytes(16).hex()
        sent_at = self._clock.monotonic()
        me = {"me": made, "old": self.executor_id, "host": escape(socket.gethostname()), "pid": os.getpid()}
        await self._queries.change(self._statements.ENROLL, {**me, **self._lease(known)})
        self.executor_id, self._renewed_at, self._strays_until = made, sent_at, None
        self._recent.mine.clear()

    async def renew(self, known: Sequence[Known]) -> None:
        """See `SharedStore.renew`."""
        sent_at = self._clock.monotonic()
        values = {"me": self.executor_id, **self._lease(known)}
        if not await self._queries.change(self._statements.RENEW, values):
            self._renewed_at = None
            raise LeaseLostError(
                f"the lease of executor {self.executor_id or '(none)'} has passed: others may hold its runs; enroll anew"
            )
        self._renewed_at = sent_at
        if self._strays_until is not None:
            async with self._taking:
                await self._free_strays()

    async def leave(self) -> None:
        """See `SharedStore.leave`."""
        me, self.executor_id, self._renewed_at = self.executor_id, "", None
        if me:
            await self._queries.change(self._statements.LEAVE, {"me": me})

    async def sweep(self) -> int:
        """See `SharedStore.sweep`."""
        return await self._queries.change(self._statements.SWEEP, ())

    @property
    def lease_left(self) -> float:
        """See `SharedStore.lease_left`."""
        if self._renewed_at is None:
            return 0.0
        return self._renewed_at + self._lease_seconds - self._clock.monotonic()

    def _lease(self, known: Sequence[Known]) -> dict[str, Any]:
        return {"lease": float(self._lease_seconds), **_columns(known)}

    # -- holding runs

    async def claim(self, known: Sequence[Known], limit: int, now: float, users: UserBounds | None = None) -> Claimed:
        """See `SharedStore.claim`."""
        me = self.executor_id
        values = {"me": me, "limit": limit, "reach": 2 * limit + SPARE, "now": float(now), **_columns(known)}
        statement = self._statements.CLAIM
        if users is not None:
            statement = self._statements.CLAIM_FEW
            names, counts = Texts([escape(user) for user in users.of]), Longs(list(users.of.values()))
            values |= {"users": names, "counts": counts, "most": users.most}
        async with self._held_only_if_told():
            rows = await self._queries.tell(statement, values)
            self._recent.mine.update(row[1] for row in rows if row[1] is not None)
        held = [self._queries.held(row[1:6], row[6], me) for row in rows if row[1] is not None]
        return Claimed(held, len(held) >= limit, rows[0][0])

    async def take(self, run_ids: Sequence[str]) -> list[Held]:
        """See `SharedStore.take`."""
        me = self.executor_id
        ids = Texts([escape(run_id) for run_id in run_ids])
        async with self._held_only_if_told():
            rows = await self._queries.tell(self._statements.TAKE, {"me": me, "ids": ids})
            self._recent.mine.update(row[0] for row in rows)
        return [self._queries.held(row[:5], row[5], me) for row in rows]

    async def release(self, held: Iterable[tuple[str, int]]) -> None:
        """See `SharedStore.release`."""
        runs = list(held)
        if runs:
            ids, epochs = Texts([escape(run_id) for run_id, _ in runs]), Longs([epoch for _, epoch in runs])
            values = {"me": self.executor_id, "ids": ids, "epochs": epochs}
            self._recent.mine.difference_update(run_id for run_id, _ in runs)
            if await self._queries.change(self._statements.RELEASE, values) < len(runs):
                self._expect_strays()  # what creates one of them was given up, and may still be carried out

    @asynccontextmanager
    async def _held_only_if_told(self) -> AsyncIterator[None]:
        """Around taking hold of runs: where no answer comes, what was taken is let go of, else nobody would go on with it."""
        async with self._taking:
            try:
                yield
            except BaseException:
                self._expect_strays()
                raise

    def _expect_strays(self) -> None:
        self._strays_until = self._clock.monotonic() + self._statement_seconds + self._lease_seconds

    async def _free_strays(self) -> None:
        """Let go of what is held without having been told so. What was asked for may be carried out late, so this is done for a while."""
        rows = await self._queries.ask(self._statements.OWNED, (self.executor_id,))
        await self.release((run_id, epoch) for run_id, epoch in rows if run_id not in self._recent.mine)
        if self._strays_until is not None and self._clock.monotonic() > self._strays_until:
            self._strays_until = None

    # -- messages

    async def mail(self, known: Sequence[Known], limit: int) -> list[Message]:
        """See `SharedStore.mail`."""
        values = {"me": self.executor_id, "limit": limit, **_columns(known)}
        rows = await self._queries.ask(self._statements.MAIL, values)
        return [
            Message(unescape(run_id), decode_command(body, payload), unescape(answer_to), message_id)
            for message_id, run_id, body, payload, answer_to in rows
        ]

    async def answer(self, token: str) -> Answer | None:
        """See `SharedStore.answer`. What the message carried in bytes is not kept with its answer."""
        rows = await self._queries.ask(self._statements.ANSWER, (escape(token),))
        if not rows:
            return None
        run_id, body, code, text = rows[0]
        return Answer(Message(unescape(run_id), decode_command(body, None), token), unescape(code), unescape(text))

    async def placement(self, run_id: str) -> Placement | None:
        """See `SharedStore.placement`."""
        rows = await self._queries.ask(self._statements.PLACEMENT, (escape(run_id),))
        if not rows:
            return None
        owner, host, pid, left, epoch, messages, executors, versions = rows[0]
        known = [None if version is None else unescape(version) for version in versions]
        return Placement(owner, unescape(host or ""), pid or 0, left or 0.0, epoch, messages, executors, known)

    async def executors(self) -> list[Executor]:
        """See `PostgresStore.executors`."""
        rows = await self._queries.ask(self._statements.EXECUTORS, ())
        return [Executor(executor_id, unescape(host), *rest) for executor_id, host, *rest in rows]


def _columns(known: Sequence[Known]) -> dict[str, Texts]:
    tasks, versions = [escape(task) for task, _ in known], [escape_some(version) for _, version in known]
    return {"tasks": Texts(tasks), "versions": Texts(versions)}
