"""Writing: parcels into bundles, bundles into the database, and what became of those that it refused.

Law: a parcel is written whole, once, under the epochs and after the records by which it was decided, or not at all; one that is refused
takes with it only those that build on it. What is not known to be written is never told to be, nor is the contrary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import psycopg

from durable.clock import Entropy
from durable.core.records import Record
from durable.errors import DurableError
from durable.store.base import Unit
from durable.store.postgres.apart import Apart
from durable.store.postgres.bundle import Bundle
from durable.store.postgres.facts import Asking, Facts
from durable.store.postgres.recent import Recent
from durable.store.postgres.session import Session
from durable.store.postgres.statements import Statements
from durable.store.postgres.writer import RefusedError, UntakenError, Writer, contended
from durable.store.shared import Parcel, make_token

#: How often a bundle is put together anew because others were at the same runs meanwhile.
ATTEMPTS = 20


class Writes:
    """The writing half of a store: one after the other, on one connection.

    Arguments:
        writer: says the statements.
        statements: what is said.
        recent: runs as last seen.
        entropy: where the tokens of `commit` come from.
    """

    def __init__(self, writer: Writer, statements: Statements, recent: Recent, entropy: Entropy) -> None:
        self._writer = writer
        self._statements = statements
        self._recent = recent
        self._entropy = entropy
        self._apart = Apart(writer, statements, recent)
        self._lock = asyncio.Lock()
        #: Parcels of which it is not known whether they are written: they may still be on their way.
        self._doubtful: set[int] = set()
        #: Who holds what is created and at work.
        self.executor: str | None = None

    async def close(self) -> None:
        """Wait for what is being written, and let go of the connection."""
        async with self._lock:
            await self._writer.close()

    # -- parcels

    async def write(self, parcels: Sequence[Parcel]) -> list[DurableError | None]:
        """See `SharedStore.write`."""
        outcomes: list[DurableError | None] = []
        async with self._lock:
            together: list[Parcel] = []
            for parcel in parcels:
                if parcel.connection is None:
                    together.append(parcel)
                    continue
                outcomes += await self._together(together)
                together = []
                outcomes.append(await self._apart.write(parcel, self.executor))
            outcomes += await self._together(together)
        return outcomes

    async def _together(self, parcels: Sequence[Parcel]) -> list[DurableError | None]:
        """Write ordinary parcels, in one bundle if they fit."""
        outcomes: list[DurableError | None] = [None] * len(parcels)
        pending = list(range(len(parcels)))
        facts: Facts | None = None
        for _ in range(ATTEMPTS):
            if not pending:
                return outcomes
            session = await self._writer.session()
            if facts is None:
                await self._load(session, [parcels[place] for place in pending])
            bundle = Bundle(self._recent.runs, facts, self.executor)
            later: list[int] = []
            misfit = False
            for place in pending:
                if bundle.full:
                    later.append(place)
                elif facts is not None and facts.written(parcels[place]):
                    outcomes[place] = None
                else:
                    outcomes[place] = bundle.add(parcels[place])
                    misfit = misfit or outcomes[place] is not None
            try:
                if misfit and facts is None:
                    raise RefusedError
                await self._put(session, bundle)
            except RefusedError:
                facts = await self._look(session, [parcels[place] for place in pending])
            except UntakenError as error:
                return await self._one_by_one(parcels, pending, outcomes, error)
            else:
                self._doubtful.difference_update([parcels[place].token for place in pending])
                pending, facts = later, None
        raise contended()

    async def _one_by_one(
        self, parcels: Sequence[Parcel], pending: list[int], outcomes: list[DurableError | None], error: UntakenError
    ) -> list[DurableError | None]:
        """Find out which parcel it is that the database does not take, or that somebody holds up."""
        if len(pending) == 1:
            token = parcels[pending[0]].token
            if error.for_now and token in self._doubtful:
                raise error.reason  # it may be held up by itself
            outcomes[pending[0]] = error.reason
            return outcomes
        for place in pending:
            (outcomes[place],) = await self._together([parcels[place]])
        return outcomes

    # -- units

    async def commit(self, units: Sequence[Unit]) -> None:
        """See `Store.commit`. Where a connection is lost, `RepositoryUnavailableError` leaves open what became of it: commit it again."""
        parcels = [Parcel(unit, make_token(self._entropy)) for unit in units]
        epochs: dict[str, int] = {}
        facts: Facts | None = None
        async with self._lock:
            for _ in range(ATTEMPTS):
                session = await self._writer.session()
                if facts is None:
                    await self._load(session, parcels)
                bundle = Bundle(self._recent.runs, facts, self.executor)
                refusal = _add_units(bundle, parcels, epochs)
                try:
                    if refusal is not None:
                        raise RefusedError
                    await self._put(session, bundle)
                    return
                except RefusedError:
                    if refusal is not None and facts is not None:
                        raise refusal from None
                    facts = await self._look(session, parcels)
                except UntakenError as error:
                    raise error.reason from None
        raise contended()

    async def check(self, units: Sequence[Unit]) -> None:
        """Raise what `commit` would refuse these units with, as things are now."""
        parcels = [Parcel(unit, 0) for unit in units]
        async with self._lock:
            facts = await self._look(await self._writer.session(), parcels)
            refusal = _add_units(Bundle({}, facts, None), parcels, {})
        if refusal is not None:
            raise refusal

    # -- one statement

    async def _put(self, session: Session, bundle: Bundle) -> None:
        if not bundle.parcels:
            return
        self._recent.mine.update(
            bundle.owned()
        )  # before it is known: what is at work here is never let go of as unknown
        try:
            batch = await self._writer.execute(session, bundle)
        except RefusedError:
            self._recent.forget(bundle.changes)
            raise
        except UntakenError:
            raise
        except BaseException:
            self._doubtful.update(parcel.token for parcel in bundle.parcels)
            raise
        bundle.number(batch)
        for change in bundle.changes.values():
            self._recent.wrote(change.run, change.known_epoch)

    async def _load(self, session: Session, parcels: Iterable[Parcel]) -> None:
        """Have the runs at hand with which these parcels go on."""
        runs = self._recent.runs
        missing: set[str] = set()
        created: set[str] = set()
        for parcel in parcels:
            for record in parcel.records:
                if record.run_id not in runs:
                    if record.seq == 1:
                        created.add(record.run_id)
                    elif record.run_id not in created:
                        missing.add(record.run_id)
        if missing:
            try:
                for known in (await Asking(session, self._statements).states(missing)).values():
                    self._recent.saw(*known)
            except (psycopg.Error, OSError) as error:
                raise self._writer.failed(error) from None

    async def _look(self, session: Session, parcels: Sequence[Parcel]) -> Facts:
        """How all that these parcels concern is now; what was known of it may be old."""
        self._recent.forget(record.run_id for parcel in parcels for record in parcel.records)
        return await self._writer.facts(session, parcels)


def _add_units(bundle: Bundle, parcels: Sequence[Parcel], epochs: dict[str, int]) -> DurableError | ValueError | None:
    """Put what is new of these units into a bundle. `epochs` remembers under which epochs they were meant."""
    for parcel in parcels:
        new: list[Record] = []
        last: dict[str, int] = {}
        for record in parcel.records:
            run_id, seq = record.run_id, record.seq
            before = last.get(run_id)
            if before is None:
                before = bundle.last(run_id)
                if before:
                    epochs.setdefault(run_id, bundle.epoch(run_id))
            if seq > before + 1:
                return ValueError(f"run {run_id}: record {seq} was committed after {before or 'none'}")
            if seq == before + 1:
                last[run_id] = seq
                new.append(record)
        if new:
            refusal = bundle.add(Parcel(new, parcel.token, epochs))
            if refusal is not None:
                return refusal
    return None
