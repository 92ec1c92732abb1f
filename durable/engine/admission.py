"""Admission where several processes share a store: the store decides, by its clock.

Law: what comes while one question is on its way is asked in the next, all together. What is known to be refused is not asked for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from durable.guard.gate import StartAsked, StartBounds, StartRefused
from durable.store.shared import SharedStore

#: Most starts that are asked for at once.
BATCH_MAX = 500
#: Refusals that are remembered.
REFUSED_MAX = 10_000

Asking = tuple[StartAsked, StartBounds, "asyncio.Future[StartRefused | None]"]


class SharedAdmission:
    """See `durable.guard.gate.Admission`.

    Arguments:
        now: a clock of this process that never goes back.
    """

    def __init__(self, store: SharedStore, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now
        self._coming: list[Asking] = []
        self._asking: asyncio.Task[None] | None = None
        #: Until when a user's starts are refused by a rate, by this process's clock, and under which bounds.
        self._refused: dict[str | None, tuple[float, str, StartBounds]] = {}

    async def let_in(self, asked: StartAsked, bounds: StartBounds) -> StartRefused | None:
        """See `Admission.let_in`. Raises `RepositoryUnavailableError` where the store cannot be asked."""
        if (refused := self.foresee(asked, bounds)) is not None:
            return refused
        if bounds.starts is None and bounds.starts_per_user is None and not asked.waits:
            return None
        future: asyncio.Future[StartRefused | None] = asyncio.get_running_loop().create_future()
        self._coming.append((asked, bounds, future))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="durable-admission")
        return await future

    def foresee(self, asked: StartAsked, bounds: StartBounds) -> StartRefused | None:
        """See `Admission.foresee`."""
        until, reason, under = self._refused.get(asked.user, (0.0, "", None))
        left = until - self._now()
        return StartRefused(reason, left) if left > 0 and under == bounds else None

    async def _ask(self) -> None:
        await asyncio.sleep(0)  # those that come in the same turn are asked for together
        while self._coming:
            bounds = self._coming[0][1]
            some = [each for each in self._coming if each[1] == bounds][:BATCH_MAX]
            chosen = {id(each[2]) for each in some}
            self._coming = [each for each in self._coming if id(each[2]) not in chosen]
            sent_at = self._now()
            try:
                decided = await self._store.let_in([asked for asked, *_ in some], bounds)
            except Exception as error:  # noqa: BLE001 - it is the answer of those who ask
                for *_, future in some:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (asked, _, future), refused in zip(some, decided, strict=True):
                if refused is not None and refused.reason != "queue":
                    self._remember(asked.user, sent_at + refused.retry_after, refused.reason, bounds)
                if not future.done():
                    future.set_result(refused)
        self._asking = None

    def _remember(self, user: str | None, until: float, reason: str, bounds: StartBounds) -> None:
        self._refused.pop(user, None)
        self._refused[user] = (until, reason, bounds)
        if len(self._refused) > REFUSED_MAX:
            del self._refused[next(iter(self._refused))]
