"""`Repository`: the tables that a local store flushes its log into, and answers queries from.

Law: `apply_batch` is atomic with its position and idempotent by (run, seq), so that whatever the log still holds may be applied
again. A repository holds nothing that is not in the log or was not before: it is a projection, and the log is the truth.

To bring your own, implement `Repository` and pass it as `LocalStore(path, repository=...)`; whether it holds is shown by the suite of
`durable.testing.repository_conformance` and, with the store in front, of `durable.testing.conformance`. What the methods may raise:

- `RepositoryUnavailableError`: away for now (network, disk full, locked). Work goes on; the flusher tries again behind a breaker.
- `RecordRefusedError`: this content can never be stored (a broken constraint, a value out of range). The flusher looks for the run
  that it is about, withholds that one, says so, and goes on with the others.
- `StoreFormatError`, `StoreMismatchError`, `StorageError` from `peek` and `initialize`: the store does not open.
- Anything else counts as being away.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Sequence
from typing import NamedTuple, Protocol

from durable.core.query import RunFilter
from durable.core.records import Record
from durable.core.run import Run
from durable.errors import StorageError
from durable.repository.projection import RecordRow, RunRow


class RecordRefusedError(StorageError):
    """The repository refuses this content, now and in every later try."""

    code = "record_refused"


class RepositoryState(NamedTuple):
    """Whose rows a repository holds, and how far it has applied the log. Both None: it is new and holds nothing."""

    store_id: str | None
    applied: int | None


class Repository(Protocol):
    """See the module. All methods are called from one event loop; the queries also while `apply_batch` is at work."""

    async def peek(self) -> RepositoryState:
        """Look, without writing a byte. Queries work from here on; called before the store is locked, and alone by readers."""
        ...

    async def initialize(self) -> RepositoryState:
        """Create or migrate what is needed, once the store is locked for this process."""
        ...

    async def adopt(self, store_id: str) -> None:
        """Belong to this store from now on, with nothing applied. Only called on a repository without a store id."""
        ...

    async def apply_batch(self, records: Sequence[RecordRow], runs: Sequence[RunRow], position: int) -> None:
        """Store all of it or nothing, durably, in one transaction.

        Arguments:
            records: to be inserted where (run_id, seq) is not there yet.
            runs: states to be stored where `seq` is higher than the stored one. A state may be ahead of `records` by records
                that are durable in the log and come with a later batch.
            position: everything in the log up to here has been applied; `initialize` returns it as `applied`. It may stay where
                it was, when a run is withheld.
        """
        ...

    async def find(self, run_ids: Sequence[str]) -> dict[str, Run]:
        """The runs with these ids, as far as they are there."""
        ...

    async def find_by_key(self, user: str | None, key: str) -> Run | None:
        """The run that `user` started with `key`."""
        ...

    async def query(self, wanted: RunFilter) -> list[Run]:
        """The runs that match, in order of their ids, at most `wanted.limit`."""
        ...

    async def count(self, wanted: RunFilter, but: Collection[str] = ()) -> int:
        """How many runs match, of all but those with an id in `but`; `wanted.limit` is ignored."""
        ...

    async def prune(
        self, before: float, limit: int, lets_go: Callable[[Collection[str], Collection[str]], bool]
    ) -> list[str]:
        """Forget families of runs, in one transaction, until there are `limit` runs in them; return the ids of all that are gone.

        Which, and in which order, says `durable.core.families.prunable`. A run stays, with its family, that has a record above the
        position: the log would bring it back. So does a family for which `lets_go(run_ids, watchers)` is false; it is asked on the
        event loop, once nothing else stands against it, and for one that it let go of what is told may be believed to be gone.
        """
        ...

    async def next_due(self, after: float, but: Container[str] = ()) -> float | None:
        """The earliest `due` later than `after` of all runs but those with an id in `but`; None if none is due later.

        Ask `but` as late as you can: it may grow meanwhile. Must not cost more for more runs.
        """
        ...

    async def events(self, run_id: str, after: int, limit: int | None) -> list[Record]:
        """Records of the run with `seq` above `after`, in order, at most `limit`, with their `batch`."""
        ...

    async def histories(self, run_ids: Sequence[str]) -> dict[str, list[Record]]:
        """All records of these runs, each run's in order; for recovery, which needs many at once."""
        ...

    async def health_check(self) -> None:
        """Raise `RepositoryUnavailableError` if a transaction cannot be begun now."""
        ...

    async def close(self) -> None:
        """Let go of everything. Safe to call twice, and on a repository that was never opened."""
        ...
