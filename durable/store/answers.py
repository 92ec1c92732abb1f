"""Answers: what the repository says, with what has been acknowledged since laid over it.

Law: an answer is as new as the last acknowledged commit, wherever its parts lie: here, in the repository, or on the way from here to
there while it is asked. None of them costs more because more runs are stored that it does not tell of.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from durable.core.query import RunFilter
from durable.core.records import Record
from durable.core.run import Run
from durable.errors import DurableError, RepositoryUnavailableError
from durable.repository.base import Repository
from durable.store.overlay import Entry, Overlay, earliest_due, newest

T = TypeVar("T")


class Answers:
    """The questions of `durable.store.base.Store`, for a store with an overlay and a repository.

    Arguments:
        overlay: what is acknowledged and may not be flushed.
        repository: the rest.
        keeps_open: whether runs that were asked for and are not closed stay in the overlay.
    """

    def __init__(self, overlay: Overlay, repository: Repository, *, keeps_open: bool) -> None:
        self._overlay = overlay
        self._repository = repository
        self._keeps_open = keeps_open

    async def load(self, run_ids: Sequence[str]) -> None:
        """Bring runs into the overlay, as they are now."""
        self._overlay.coming = run_ids
        try:
            with self._overlay.watching() as settled:
                found = await self.ask(self._repository.find(run_ids))
                for run_id in run_ids:
                    run = newest(found.get(run_id), settled.get(run_id))
                    if run is not None:
                        self._overlay.adopt(run)
        finally:
            self._overlay.coming = ()

    async def find(self, run_id: str) -> Run | None:
        run = self._overlay.run(run_id)
        if run is None:
            with self._overlay.watching() as settled:
                found = await self.ask(self._repository.find((run_id,)))
                run = self._current(found.get(run_id), run_id, settled)
                self._keep(() if run is None else (run,))
        return None if run is None else run.copy()

    async def find_key(self, user: str | None, key: str) -> Run | None:
        run = self._overlay.run_of_key(user, key)
        if run is None:
            with self._overlay.watching() as settled:
                run = await self.ask(self._repository.find_by_key(user, key))
                if run is None:  # it may have come, and even gone to the repository, while that one was asked
                    gone = (entry.run for entry in settled.values() if entry.key == (user, key))
                    run = self._overlay.run_of_key(user, key) or next(gone, None)
                    if run is None:
                        self._overlay.key_is_free(user, key)
                else:
                    run = self._current(run, run.run_id, settled)
        return None if run is None else run.copy()

    async def history(self, run_id: str, after: int = 0, limit: int | None = None) -> list[Record]:
        after = max(after, 0)
        seq, tail = self._overlay.tail(run_id) or (0, [])
        if seq and (seq <= after or (tail and tail[0].seq <= after + 1)):
            records = [record for record in tail if record.seq > after]
            return records if limit is None else records[:limit]
        records = await self.ask(self._repository.events(run_id, after, limit))
        last = records[-1].seq if records else after
        records.extend(record for record in tail if record.seq > last)
        return records if limit is None else records[:limit]

    async def histories(self, run_ids: Sequence[str]) -> dict[str, list[Record]]:
        tails = {run_id: (self._overlay.tail(run_id) or (0, []))[1] for run_id in run_ids}
        partly = [run_id for run_id, tail in tails.items() if not tail or tail[0].seq > 1]
        stored = await self.ask(self._repository.histories(partly)) if partly else {}
        for run_id, records in stored.items():
            records.extend(record for record in tails[run_id] if record.seq > records[-1].seq)
        return {run_id: records for run_id in run_ids if (records := stored.get(run_id) or tails[run_id])}

    async def query(self, wanted: RunFilter) -> list[Run]:
        found: list[Run] = []
        while len(found) < wanted.limit:
            with self._overlay.watching() as settled:
                rows = await self.ask(self._repository.query(wanted))
                page = {run.run_id: self._current(run, run.run_id, settled) or run for run in rows}
                gone = [
                    run for run_id in settled if (run := self._current(None, run_id, settled)) and wanted.matches(run)
                ]
            is_last = len(rows) < wanted.limit
            for run in chain(gone, self._overlay.matching(wanted)):
                if is_last or run.run_id <= rows[-1].run_id:
                    page.setdefault(run.run_id, run)
            matching = [page[run_id] for run_id in sorted(page) if wanted.matches(page[run_id])]
            self._keep(matching)
            found.extend(run.copy() for run in matching)
            if is_last:
                break
            wanted = replace(wanted, after=rows[-1].run_id)
        return found[: max(wanted.limit, 0)]

    async def count(self, wanted: RunFilter) -> int:
        newer = dict(self._overlay.unflushed)
        with self._overlay.watching() as settled:
            # What is newer here counts as it is here; what becomes so while the repository is asked counts as it was or as it is.
            stored = await self.ask(self._repository.count(wanted, newer.keys()))
            entries = (
                self._overlay.entries.get(run_id) or settled.get(run_id, entry) for run_id, entry in newer.items()
            )
            return stored + sum(1 for entry in entries if entry.run.seq and wanted.matches(entry.run))

    async def prune(self, before: float, limit: int, going: set[str]) -> int:
        """See `Store.prune`; `going` has the runs that are about to be forgotten, while they are."""

        def lets_go(run_ids: Collection[str], watchers: Collection[str]) -> bool:
            if not self._overlay.let_go(run_ids, watchers):
                return False
            going.update(run_ids)
            return True

        try:
            return len(await self.ask(self._repository.prune(before, limit, lets_go)))
        finally:
            going.clear()

    async def next_due(self, after: float) -> float | None:
        unflushed = self._overlay.unflushed
        with self._overlay.watching() as settled:
            # Of all that may be newer here than there, what is there does not count, be it stored before or while it is asked.
            stored = await self.ask(self._repository.next_due(after, ChainMap(unflushed, settled)))
            newer = chain(unflushed.values(), (entry for run_id, entry in settled.items() if run_id not in unflushed))
            here = earliest_due(newer, after)
        return min((due for due in (stored, here) if due is not None), default=None)

    def _keep(self, runs: Iterable[Run]) -> None:
        """What was asked for and is not closed is likely to go on: spare its next commit the query."""
        if self._keeps_open:
            for run in runs:
                if not run.closed and run.run_id not in self._overlay.entries:
                    self._overlay.adopt(run.copy())
            self._overlay.shed()

    def _current(self, run: Run | None, run_id: str, settled: Mapping[str, Entry]) -> Run | None:
        """The newest of what the repository answered, what was flushed while it was asked, and what is here."""
        return newest(newest(run, settled.get(run_id)), self._overlay.entries.get(run_id))

    async def ask(self, question: Awaitable[T]) -> T:
        """The repository's answer. Raises `RepositoryUnavailableError` for whatever it raises that is no error of durable."""
        try:
            return await question
        except DurableError:
            raise
        except Exception as error:
            raise RepositoryUnavailableError(f"the repository cannot answer now: {error!r}") from error
