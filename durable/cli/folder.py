"""The folder of a store: opening it to look, and finding the run that was meant.

Law: a folder that holds no store is refused, never made into one.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from durable.core.ids import is_run_id
from durable.core.query import RunFilter
from durable.core.run import Run
from durable.errors import ConflictError, RunNotFoundError, StorageError
from durable.store.local import LocalStore

#: Beside a process that writes, a look may meet half a change: what is wrong is believed when it is seen this often.
LOOKS_MAX = 5

#: Runs that are read at once.
PAGE = 500

_PREFIX = re.compile(r"[0-9a-f]{4,31}\Z")


def check_there(path: str) -> str:
    """Return the path of a folder that holds a store. Raises `StorageError` for any other."""
    if not os.path.isdir(path):
        raise StorageError(f"there is no folder {path!r}: name the one that holds the store with --dir DIR")
    if not os.path.isdir(os.path.join(path, "log")) and not os.path.isfile(os.path.join(path, "repository.db")):
        raise StorageError(
            f"{path!r} holds no store of durable (no log, no repository.db): name the right folder with --dir DIR"
        )
    return path


@asynccontextmanager
async def opened(path: str) -> AsyncIterator[LocalStore]:
    """The store in a folder, to look at, also beside a process that has it open. Raises `StorageError`."""
    store = await _open_beside(check_there(path))
    try:
        yield store
    finally:
        await store.close()


async def _open_beside(path: str) -> LocalStore:
    """A store to look at. The process that writes may remove a segment, all flushed, between the list of segments and the look."""
    for _ in range(LOOKS_MAX - 1):
        with suppress(FileNotFoundError):
            store = LocalStore(path, read_only=True)
            await store.open()
            return store
    store = LocalStore(path, read_only=True)
    await store.open()
    return store


async def find_run(store: LocalStore, wanted: str, user: str | None) -> Run:
    """The run with this id, key (of this user), or beginning of an id. Raises `RunNotFoundError`, `ConflictError`."""
    run = await store.find(wanted) if is_run_id(wanted) else None
    if run is None:
        run = await store.find_key(user, wanted)
    if run is None and _PREFIX.match(wanted):
        # In the order of ids, all that begin so follow directly on what they begin with.
        found = await store.query(RunFilter(after=wanted, limit=2))
        found = [each for each in found if each.run_id.startswith(wanted)]
        if len(found) > 1:
            raise ConflictError(
                f"several runs have ids that begin with {wanted!r}: give more digits (durable runs lists them)"
            )
        run = found[0] if found else None
    if run is None:
        whose = f"of user {user!r} " if user is not None else ""
        hint = "" if user is not None else "; the key of a user's run needs --user"
        raise RunNotFoundError(
            f"no run {whose}in {store.path} has the id or key {wanted!r}; durable runs lists them{hint}"
        )
    return run


async def pages(store: LocalStore, wanted: RunFilter) -> AsyncIterator[list[Run]]:
    """All runs that are wanted, a page at a time, in the order of their creation."""
    wanted = replace(wanted, limit=PAGE)
    while page := await store.query(wanted):
        yield page
        if len(page) < PAGE:
            return
        wanted = replace(wanted, after=page[-1].run_id)


async def children_of(store: LocalStore, run_id: str) -> AsyncIterator[Run]:
    """All runs that a run started, returned or has for a coordinator."""
    async for page in pages(store, RunFilter(parent_id=run_id)):
        for child in page:
            yield child
