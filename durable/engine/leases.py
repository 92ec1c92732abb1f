"""The lease: for how long this process may believe that it holds its runs.

Law: this process gives up first. Its time counts from the moment at which its last renewal was sent, by a clock that nobody sets; when
that has passed, every body is stopped and nothing more is written, before others may take the runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from durable.clock import Clock, Entropy, fraction_of
from durable.engine.claims import Claims, known_tasks
from durable.engine.pipeline import RETRY_SECONDS
from durable.errors import DurableError, LeaseLostError, RepositoryUnavailableError
from durable.store.shared import SharedStore

logger = logging.getLogger("durable.engine")

#: How often a lease is renewed while it lasts.
RENEWALS = 3


class Lease:
    """Keeps the lease, and frees the runs of executors that did not.

    Arguments:
        store: one shard.
        forsake: stops all that goes on in runs that are held there.
        changed: called when the lease is lost, and when there is one again.
        scanned: told how many runs of executors that are gone were freed, and how many seconds that took.
    """

    def __init__(
        self,
        store: SharedStore,
        claims: Claims,
        entropy: Entropy,
        forsake: Callable[[], None],
        changed: Callable[[], None],
        *,
        clock: Clock,
        scanned: Callable[[int, float], None],
    ) -> None:
        self._store = store
        self._claims = claims
        self._entropy = entropy
        self._forsake = forsake
        self._changed = changed
        self._clock = clock
        self._scanned = scanned
        #: Whether there is none.
        self.is_lost = False
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Become an executor, and begin to renew. A shard that is away is waited for beside the others."""
        try:
            await self._store.enroll(known_tasks())
        except RepositoryUnavailableError as error:
            logger.error("this process is no executor yet: %s", error)
            self.is_lost = True
            self._changed()
        self._tasks = [
            asyncio.create_task(self._keep(), name="durable-lease"),
            asyncio.create_task(self._sweep_often(), name="durable-sweep"),
        ]

    async def close(self) -> None:
        """Be no executor any more."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:  # one that waits for a server that hangs takes longer to end than there is time
            await asyncio.wait(self._tasks, timeout=max(self._store.lease_left, 0.0))
        try:
            async with asyncio.timeout(max(self._store.lease_left, 0.0)):
                await self._store.leave()
        except (DurableError, TimeoutError) as error:
            logger.warning("others take the runs of this process when its lease has passed: %s", error)

    @property
    def is_over(self) -> bool:
        """Whether others may hold the runs by now."""
        return self._store.lease_left <= 0

    async def _keep(self) -> None:
        pause = self._store.lease_seconds / RENEWALS
        if self.is_lost:
            await self._come_back()
        while True:
            await asyncio.sleep(max(min(pause, self._store.lease_left), 0.0))
            if not await self._renewed() or self.is_lost:  # given up meanwhile by who was about to write
                self.give_up()
                await self._come_back()

    async def _renewed(self) -> bool:
        """Renew in time, trying again while there is time."""
        while not self.is_over:
            renewing = asyncio.ensure_future(self._store.renew(known_tasks()))
            try:
                # A server that hangs is asked to stop, which takes longer than there is time: nobody waits for that.
                await asyncio.wait((renewing,), timeout=self._store.lease_left)
                if not renewing.done():
                    return False
                renewing.result()
                return True
            except LeaseLostError:
                return False
            except Exception as error:  # noqa: BLE001 - a lease that nobody looks after is one that is kept for ever
                logger.warning("the lease cannot be renewed now, %.1f s are left: %s", self._store.lease_left, error)
            finally:
                renewing.cancel()
            await asyncio.sleep(min(RETRY_SECONDS, max(self._store.lease_left, 0.0)))
        return False

    def give_up(self) -> None:
        """The lease has passed: stop everything."""
        if not self.is_lost:
            logger.error(
                "this process lost its lease (a database that was away, or an event loop that was blocked, for %.1f s): "
                "its runs go on where they are claimed next",
                self._store.lease_seconds,
            )
            self.is_lost = True
            self._forsake()
            self._changed()

    async def _come_back(self) -> None:
        """Become an executor again."""
        while True:
            try:
                await self._store.enroll(known_tasks())
                break
            except Exception as error:  # noqa: BLE001 - the same
                logger.warning("this process cannot become an executor again now: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
        self.is_lost = False
        self._changed()
        self._claims.all()

    async def _sweep_often(self) -> None:
        """Free what executors held that are gone; beside the renewals, which wait for nothing else, and not all executors at once."""
        pause = self._store.lease_seconds / RENEWALS
        while True:
            await asyncio.sleep(pause * (1 + fraction_of(self._entropy.token_bytes(7)) / 4))
            if not self.is_lost:
                await self._sweep()

    async def _sweep(self) -> None:
        began = self._clock.monotonic()
        try:
            freed = await self._store.sweep()
        except Exception as error:  # noqa: BLE001 - the same
            logger.warning("runs of executors that are gone cannot be freed now: %s", error)
            return
        self._scanned(freed, self._clock.monotonic() - began)
        if freed:
            logger.warning("%d runs of executors that are gone were freed", freed)
            self._claims.work()
            self._store.notify(work=True)
