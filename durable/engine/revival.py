"""Revival: a run that failed is tried again, with those of its family that failed, or were cancelled, with it.

Law: what completed is kept. All of a family that goes on goes on by one commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

from durable.core.commands import Command, Coordinate, Revive
from durable.core.query import RunFilter
from durable.core.run import Run
from durable.core.status import ENDED, Status
from durable.engine.closing import Closing
from durable.engine.entry import Entry
from durable.engine.holding import HeldElsewhere
from durable.engine.kinship import Kinship, told_of_end
from durable.engine.pipeline import Wish
from durable.engine.services import patiently
from durable.errors import LeaseLostError, RunNotFoundError

#: How long to wait before looking again at a child that others are about to close, seconds.
AGAIN_SECONDS = 0.02


class Revival:
    """Tries families again, one at a time: two at once would gather the same runs."""

    def __init__(self, kinship: Kinship, closing: Closing) -> None:
        self._kinship = kinship
        self._closing = closing
        #: Held while a family is tried again. Where no other process writes, who holds it can forget runs that are over.
        self.lock = asyncio.Lock()

    async def revive(self, entry: Entry, letter_retries: int | None = None) -> None:
        """Stage the retry of a run; see `Revive.letter_retries`. Raises `TransitionError`, `LimitError`, `RunNotFoundError`."""
        await self._revive(entry, None, letter_retries)

    async def revive_awaited(self, parent: Entry, run_id: str, note: Command) -> None:
        """Stage the retry of a child that a body awaited, and awaits again; `note` is what the body records of that.

        Nothing where the child has not ended, or has completed: there is nothing to try again.
        """
        while True:
            try:
                return await self._revive_awaited(parent, run_id, note)
            except (HeldElsewhere, LeaseLostError):  # the latter: one of the family has come into other hands
                if parent.lost:
                    raise
                run = await self._kinship.find(run_id)
                if run is None or not run.ended or run.status is Status.COMPLETED:
                    return None
            await asyncio.sleep(AGAIN_SECONDS)

    async def _revive_awaited(self, parent: Entry, run_id: str, note: Command) -> None:
        child = await patiently(partial(self._kinship.load, run_id))
        if child is None or child.run.parent_id != parent.run.run_id or not child.run.attached:
            return
        child.held += 1
        try:
            await self._revive(child, (parent, note))
        finally:
            child.held -= 1
            self._kinship.let_go(child)

    async def _revive(
        self, entry: Entry, first: tuple[Entry, Command] | None, letter_retries: int | None = None
    ) -> None:
        may_be_gone = self._kinship.holding is None and first is None
        async with self.lock:
            family: dict[Entry, list[Entry]] = {}
            try:
                if may_be_gone and await self._kinship.find(entry.run.run_id) is None:
                    raise RunNotFoundError(f"run {entry.run.run_id} was forgotten meanwhile (retention.closed_seconds)")
                await self._gather(entry, family)
                if first is not None and (not entry.run.ended or entry.run.status is Status.COMPLETED):
                    return
                wishes = list(self._wishes(entry, family, by_parent=first is not None, letter_retries=letter_retries))
                ties = [(child, parent) for parent, children in family.items() for child in children]
                if first is not None:
                    wishes.insert(0, first)
                    ties.append((entry, first[0]))
                self._stage(wishes, ties)
                if may_be_gone:
                    await self._kinship.pipeline.durable(entry)  # until then the store would let go of the run
            finally:
                for children in family.values():
                    for child in children:
                        child.held -= 1
                        self._kinship.let_go(child)

    async def _gather(self, entry: Entry, family: dict[Entry, list[Entry]]) -> None:
        """Load the runs that may go on with this one, and theirs."""
        await self._closing.closed(entry)
        await self._require_settled(entry.run)
        run, ids = entry.run, list[str]()
        if run.returned_seq and run.status is not Status.ON_CHILDREN_COMPLETE_FAILED:
            again = {Status.CANCELLED} if run.lenient else ENDED - {Status.COMPLETED}
            async for child in self._kinship.relatives(RunFilter(parent_id=run.run_id, status=frozenset(again))):
                if child.joined and child.run_id != run.coordinator_id:
                    ids.append(child.run_id)
        if run.returned_seq and not ids and run.coordinator_id is not None:
            ids.append(run.coordinator_id)
        children = family[entry] = []
        for run_id in ids:
            loaded = await patiently(partial(self._kinship.load, run_id))
            if loaded is None:
                raise RunNotFoundError(f"no run has the id {run_id!r}, which belongs to run {run.run_id}")
            loaded.held += 1
            children.append(loaded)
            await self._gather(loaded, family)

    async def _require_settled(self, run: Run) -> None:
        """Raise `HeldElsewhere` where others still close the run, or have sent it what is about the time before."""
        holding = self._kinship.holding
        if holding is None or not run.ended:
            return
        if not run.closed or await patiently(partial(holding.has_mail, run.run_id)):
            raise HeldElsewhere(run.run_id)

    def _wishes(
        self, entry: Entry, family: dict[Entry, list[Entry]], *, by_parent: bool, letter_retries: int | None = None
    ) -> Iterator[Wish]:
        run = entry.run
        failed = [child for child in family[entry] if child.run.ended and child.run.status is not Status.COMPLETED]
        coordinator = next((child.run for child in family[entry] if child.run.run_id == run.coordinator_id), None)
        if coordinator is not None:
            yield entry, Revive(0, by_parent, letter_retries)
            yield entry, Coordinate(run.coordinator_id)
            if coordinator.status is Status.COMPLETED:  # elsewhere, while the run was being cancelled
                yield entry, told_of_end(coordinator)
        else:
            yield entry, Revive(len(failed), by_parent, letter_retries)
        for child in failed:
            yield from self._wishes(child, family, by_parent=True)

    def _stage(self, wishes: list[Wish], ties: list[tuple[Entry, Entry]]) -> None:
        going = {entry for entry, _ in wishes if isinstance(entry, Entry)}
        ties = [(child, parent) for child, parent in ties if child in going]
        for child, parent in ties:
            child.parent = parent
            parent.children.add(child)
        try:
            (entry, command), *further = wishes
            assert isinstance(entry, Entry)
            self._kinship.pipeline.stage(entry, command, *further)
        except BaseException:
            for child, parent in ties:
                child.parent = None
                parent.children.discard(child)
            raise
