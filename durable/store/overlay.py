"""The overlay: what has been acknowledged, in memory, until the repository has it too.

Law: only acknowledged records are folded, in the order in which they became durable, so whatever is read here is durable. An entry
is let go only when the repository holds all of it and nothing of it is on its way into the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

from durable.core.families import prunable
from durable.core.query import RunFilter
from durable.core.records import Record
from durable.core.run import Run, apply
from durable.errors import ConflictError

#: Most runs that are not closed and are kept although the repository has all of them: the next fold of one of these needs no query.
CLEAN_RUNS_MAX = 4096
#: Most keys of which it is remembered that no run has them.
FREE_KEYS_MAX = 4096


class Entry:
    """One run: its state, the records that the repository may lack, and how far it is promised to the log and flushed."""

    __slots__ = ("flushed", "key", "parent_id", "promised", "records", "run")

    def __init__(self, run: Run, key: tuple[str | None, str] | None, parent_id: str | None) -> None:
        self.run = run
        self.key = key
        self.parent_id = parent_id
        self.records: list[Record] = []
        self.promised = self.flushed = run.seq


class Overlay:
    """Runs by id, by key and by parent. `run.seq == 0` means that nothing of the run is acknowledged yet: it is not visible."""

    def __init__(self, *, clean_runs_max: int = CLEAN_RUNS_MAX) -> None:
        self.entries: dict[str, Entry] = {}
        #: Those of which the repository may lack something: what has to be laid over its answers.
        self.unflushed: dict[str, Entry] = {}
        self._keys: dict[tuple[str | None, str], str] = {}
        self._free_keys: dict[tuple[str | None, str], None] = {}
        self._children: dict[str, dict[str, None]] = {}
        self._clean: dict[str, None] = {}
        self._clean_runs_max = clean_runs_max
        #: Runs that are being brought here, for a commit that goes on with them.
        self.coming: Collection[str] = ()
        self._watchers: dict[int, dict[str, Entry]] = {}

    # -- writing

    def missing(self, units: Iterable[Sequence[Record]]) -> tuple[list[str], list[tuple[str | None, str]]]:
        """What has to be asked of the repository before `promise`.

        Returns the ids of runs that the units go on with and that are not here (`adopt` them), and the (user, key) pairs of runs that
        they create, of which it is not known that no run has them (say `key_is_free` of each that is).
        """
        entries = self.entries
        runs: dict[str, None] = {}
        keys: list[tuple[str | None, str]] = []
        created: set[str] = set()
        for unit in units:
            for record in unit:
                if record.run_id not in entries:
                    if record.seq == 1:
                        created.add(record.run_id)
                        if "key" in record.head:
                            pair = (record.head.get("user"), record.head["key"])
                            if pair not in self._free_keys and pair not in self._keys:
                                keys.append(pair)
                    elif record.run_id not in created:
                        runs[record.run_id] = None
        return list(runs), keys

    def key_is_free(self, user: str | None, key: str) -> None:
        """The repository has no run with this key, nor is one on its way there: its creation need not ask again."""
        if (user, key) not in self._keys:
            self._free_keys[user, key] = None
            if len(self._free_keys) > FREE_KEYS_MAX:
                del self._free_keys[next(iter(self._free_keys))]

    def adopt(self, run: Run) -> None:
        """Take over a run as the repository has it, unless a state of it is here already. `shed` after a number of these."""
        if run.run_id not in self.entries:
            self._add(run, run.user, run.key, run.parent_id)
            self._clean[run.run_id] = None

    def promise(self, units: Iterable[Sequence[Record]]) -> list[tuple[Entry, int]]:
        """Check the units and mark their records as being on the way to the log; returns the marks, for `withdraw`.

        Raises `ValueError` where `seq` leaves a gap, `ConflictError` where a key is taken; then nothing is marked.
        """
        entries = self.entries
        marks: list[tuple[Entry, int]] = []
        try:
            for unit in units:
                for record in unit:
                    entry = entries.get(record.run_id)
                    if entry is None:
                        entry = self._create(record)
                    seq = record.seq
                    if seq == entry.promised + 1:
                        entry.promised = seq
                        self.unflushed[record.run_id] = entry
                        marks.append((entry, seq))
                    elif seq > entry.promised:
                        raise ValueError(f"run {record.run_id}: record {seq} was committed after {entry.promised}")
        except (ValueError, ConflictError):
            self.withdraw(marks)
            raise
        return marks

    def withdraw(self, marks: Sequence[tuple[Entry, int]]) -> None:
        """Undo `promise` for records that were not written."""
        for entry, seq in reversed(marks):
            if entry.run.seq < seq <= entry.promised:
                entry.promised = seq - 1
                if not entry.promised:
                    self._drop(entry)

    def fold(self, record: Record) -> bool:
        """Make an acknowledged record visible; tell whether it was new. One that was there changes nothing, and its run may be gone."""
        entry = self.entries.get(record.run_id)
        if entry is None or record.seq <= entry.run.seq:
            return False
        apply(entry.run, record)
        entry.records.append(record)
        return True

    def replay(self, records: Sequence[Record]) -> None:
        """Fold records that were found in the log. The repository may have some of them, and rows that are ahead of its records."""
        for record in records:
            entry = self.entries.get(record.run_id)
            if entry is None:
                entry = self._create(record)
            run, seq = entry.run, record.seq
            if seq > run.seq + 1:
                raise ValueError(f"run {record.run_id}: record {seq} follows {run.seq}")
            apply(run, record)
            entry.promised = run.seq
            self.unflushed[record.run_id] = entry
            if not entry.records or seq == entry.records[-1].seq + 1:
                entry.flushed = min(entry.flushed, seq - 1)
                entry.records.append(record)

    def flushed(self, run_id: str, seq: int) -> None:
        """The repository holds the run up to `seq`, durably: what is held only for its sake can go."""
        entry = self.entries.get(run_id)
        if entry is None or seq <= entry.flushed:
            return
        entry.flushed = seq
        records = entry.records
        if records and records[0].seq <= seq:
            del records[: seq - records[0].seq + 1]
        if entry.promised == seq:
            self.unflushed.pop(run_id, None)
            for settled in self._watchers.values():
                settled[run_id] = entry
            if entry.run.closed:
                self._drop(entry)
            else:
                self._clean.pop(run_id, None)  # to the end of the line
                self._clean[run_id] = None
                self.shed()

    def shed(self) -> None:
        """Let go of the longest unused of the runs that the repository has whole, down to their bound."""
        while len(self._clean) > self._clean_runs_max:
            run_id = next(iter(self._clean))
            del self._clean[run_id]
            entry = self.entries[run_id]
            # Else it is in use again, and comes back into the line when it is flushed.
            if entry.promised == entry.flushed:
                self._drop(entry)

    def let_go(self, run_ids: Collection[str], watchers: Collection[str]) -> bool:
        """Begin to forget a family that the repository forgets; False, and nothing has changed, where the repository does not know all:
        something of it, of a further child or of one that watches it is on its way there, or is about to be."""
        children = chain.from_iterable(self._children.get(run_id, ()) for run_id in run_ids)
        if any(run_id in self.unflushed or run_id in self.coming for run_id in chain(run_ids, watchers, children)):
            return False
        for run_id in run_ids:
            if run_id in self.entries:
                self._drop(self.entries[run_id])
        return True

    def prune(self, before: float, limit: int, told: Collection[str] = ()) -> int:
        """See `Store.prune`, for a store that has all its runs here; families stay that have one of `told`."""
        gone: list[str] = []
        for family in prunable({run_id: entry.run for run_id, entry in self.entries.items() if entry.run.seq}, before):
            if len(gone) >= limit:
                break
            if not any(run_id in told for run_id in family):
                gone += family
        for run_id in gone:
            self._drop(self.entries[run_id])
        return len(gone)

    def _create(self, record: Record) -> Entry:
        if record.seq != 1:
            raise ValueError(f"run {record.run_id}: record {record.seq} was committed, but no run has this id")
        head = record.head
        return self._add(Run(record.run_id), head.get("user"), head.get("key"), head.get("parent"))

    def _add(self, run: Run, user: str | None, key: str | None, parent_id: str | None) -> Entry:
        pair = None if key is None else (user, key)
        if pair is not None:
            self._free_keys.pop(pair, None)
            holder = self._keys.setdefault(pair, run.run_id)
            if holder != run.run_id:
                raise ConflictError(f"key {key!r} belongs to run {holder} already; find it by its key", key=key)
        if parent_id is not None:
            self._children.setdefault(parent_id, {})[run.run_id] = None
        entry = self.entries[run.run_id] = Entry(run, pair, parent_id)
        return entry

    def _drop(self, entry: Entry) -> None:
        run_id = entry.run.run_id
        del self.entries[run_id]
        self.unflushed.pop(run_id, None)  # of a creation that was withdrawn
        self._clean.pop(run_id, None)
        if entry.key is not None:
            del self._keys[entry.key]
        if entry.parent_id is not None:
            siblings = self._children[entry.parent_id]
            del siblings[run_id]
            if not siblings:
                del self._children[entry.parent_id]

    # -- reading: live objects, for the store to copy

    @contextmanager
    def watching(self) -> Iterator[dict[str, Entry]]:
        """Gather the entries that are flushed meanwhile: a repository that was asked before that does not show them as they are."""
        settled: dict[str, Entry] = {}
        self._watchers[id(settled)] = settled
        try:
            yield settled
        finally:
            del self._watchers[id(settled)]

    def run(self, run_id: str) -> Run | None:
        """The run, if it is here and acknowledged."""
        entry = self.entries.get(run_id)
        return entry.run if entry is not None and entry.run.seq else None

    def run_of_key(self, user: str | None, key: str) -> Run | None:
        """The run of a key, if it is here and acknowledged."""
        run_id = self._keys.get((user, key))
        return None if run_id is None else self.run(run_id)

    def matching(self, wanted: RunFilter) -> list[Run]:
        """The runs that match, in order of their ids, not cut to `limit`: all that the repository may lack, and perhaps more."""
        if wanted.parent_id is not None:
            runs = [self.entries[run_id].run for run_id in self._children.get(wanted.parent_id, ())]
        else:
            runs = [entry.run for entry in self.unflushed.values()]
        return sorted((run for run in runs if run.seq and wanted.matches(run)), key=_id_of)

    def tail(self, run_id: str) -> tuple[int, list[Record]] | None:
        """The run's `seq` and the records that the repository may lack; None when the run is not here."""
        entry = self.entries.get(run_id)
        return (entry.run.seq, list(entry.records)) if entry is not None and entry.run.seq else None


def _id_of(run: Run) -> str:
    return run.run_id


def newest(run: Run | None, entry: Entry | None) -> Run | None:
    """The newer of what a repository answered and what is, or was, here."""
    if entry is None or not entry.run.seq or (run is not None and run.seq > entry.run.seq):
        return run
    return entry.run


def earliest_due(entries: Iterable[Entry], after: float) -> float | None:
    """The earliest time later than `after` at which one of these runs is due."""
    runs = (entry.run for entry in entries)
    return min((due for run in runs if run.seq and (due := run.due) is not None and due > after), default=None)


class Commit:
    """A commit on its way: acknowledged in the very call that learns of the sync, whether or not its caller still waits."""

    __slots__ = ("_acknowledged", "_withdraw", "told")

    def __init__(self, acknowledged: Callable[[int], None], withdraw: Callable[[], None]) -> None:
        self._acknowledged = acknowledged
        self._withdraw = withdraw
        self.told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(self) -> bool:
        return False

    def set_result(self, lsn: int, /) -> None:
        self._acknowledged(lsn)
        if not self.told.done():
            self.told.set_result(None)

    def set_exception(self, exception: Exception, /) -> None:
        self._withdraw()
        if not self.told.done():
            self.told.set_exception(exception)
