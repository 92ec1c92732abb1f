"""The store that was meant, a folder or a PostgreSQL database: opening it to look, and finding the run that was meant.

Law: where there is no store none is made, and what names a store never repeats a password.
"""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from durable.config import Config, PostgresSettings
from durable.core.ids import is_run_id
from durable.core.query import RunFilter
from durable.core.run import Run
from durable.environment import STORE
from durable.errors import ConfigError, ConflictError, RunNotFoundError, StorageError, StoreMismatchError
from durable.store.base import Store
from durable.store.local import LocalStore

DEFAULT_FOLDER = "./.durable"
URL_BEGINNINGS = ("postgresql://", "postgres://")

#: Beside a process that writes, a look may meet half a change: what is wrong is believed when it is seen this often.
LOOKS_MAX = 5

#: Runs that are read at once.
PAGE = 500

_PREFIX = re.compile(r"[0-9a-f]{4,31}\Z")


@dataclass(frozen=True, slots=True)
class Target:
    """A store as the command line names it.

    Arguments:
        text: a folder, or the URL of a PostgreSQL database; the URL may hold a password.
        settings: for PostgreSQL; they create and change no tables.
    """

    text: str
    settings: PostgresSettings

    @classmethod
    def of(cls, args: Namespace) -> Target:
        """The store that was named with --store, else by DURABLE_STORE, else the folder where it is by default. Raises `ConfigError`."""
        text = (os.environ.get(STORE) or DEFAULT_FOLDER) if args.store is None else args.store
        settings = replace(Config.from_env().postgres, migrate=False)
        target = cls(text, settings if args.schema is None else replace(settings, schema=args.schema))
        if not target.is_shared and "://" in text:
            raise ConfigError(
                f"--store {text.split('://')[0]}://...: a URL must begin with postgresql://; else name a folder",
                key="store",
            )
        if not target.is_shared and args.schema is not None:
            raise ConfigError(
                "--schema is for a PostgreSQL store: name that with --store postgresql://...", key="schema"
            )
        return target

    @property
    def is_shared(self) -> bool:
        """Whether several executors may have it open at once."""
        return self.text.startswith(URL_BEGINNINGS)

    @property
    def name(self) -> str:
        """What to call it: a folder, or host, port, database and schema."""
        if not self.is_shared:
            return os.path.abspath(self.text)
        require_psycopg()
        from durable.store.postgres.address import place_of, targets

        return f"{place_of(targets(self.text, self.settings), self.settings)}, schema {self.settings.schema!r}"

    @property
    def goes_on(self) -> str:
        """When a run goes on that was left to whoever executes it."""
        if self.is_shared:
            return "when an executor that knows its task has a slot for it"
        return "when the next application opens this folder"

    def store(self) -> Store:
        """The store, to be opened. Raises `StorageError`, `ConfigError`."""
        if self.is_shared:
            require_psycopg()
            from durable.store.postgres import PostgresStore

            return PostgresStore(self.text, self.settings)
        config = Config.from_env()
        return LocalStore(check_there(self.text), log=config.log, flush=config.flush)


def require_psycopg() -> None:
    """Raise `ConfigError` where the extra for PostgreSQL is not installed."""
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"a PostgreSQL store needs psycopg ({error}): pip install 'durable[postgres]'", key="store"
        ) from error


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
async def opened(args: Namespace) -> AsyncIterator[Store]:
    """The store that was named, to look at, also beside processes that have it open. Raises `StorageError`, `ConfigError`."""
    target = Target.of(args)
    if target.is_shared:
        store = target.store()
        await store.open()
    else:
        store = await _open_beside(check_there(target.text))
    try:
        yield store
    finally:
        await store.close()


async def _open_beside(path: str) -> Store:
    """A store to look at. The process that writes may remove a segment, all flushed, between the list of segments and the look; or
    forget a run, of which the look then finds the end in the log and no beginning."""
    for _ in range(LOOKS_MAX - 1):
        with suppress(FileNotFoundError, StoreMismatchError):
            store = LocalStore(path, read_only=True)
            await store.open()
            return store
    store = LocalStore(path, read_only=True)
    await store.open()
    return store


async def find_run(store: Store, wanted: str, args: Namespace) -> Run:
    """The run with this id, key (of the user that was named), or beginning of an id. Raises `RunNotFoundError`, `ConflictError`."""
    user: str | None = args.user
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
            f"no run {whose}in {Target.of(args).name} has the id or key {wanted!r}; durable runs lists them{hint}"
        )
    return run


async def pages(store: Store, wanted: RunFilter) -> AsyncIterator[list[Run]]:
    """All runs that are wanted, a page at a time, in the order of their creation."""
    wanted = replace(wanted, limit=PAGE)
    while page := await store.query(wanted):
        yield page
        if len(page) < PAGE:
            return
        wanted = replace(wanted, after=page[-1].run_id)


async def children_of(store: Store, run_id: str) -> AsyncIterator[Run]:
    """All runs that a run started, returned or has for a coordinator."""
    async for page in pages(store, RunFilter(parent_id=run_id)):
        for child in page:
            yield child
