"""The grounds on which the tests of keeping stand: a store in memory, one in a folder and one in PostgreSQL, opened as often as wanted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from durable import Config, Durable, Limits
from durable.clock import SystemClock
from durable.config import FlushSettings, PostgresSettings, RetentionSettings
from durable.store import LocalStore, MemoryStore, PostgresStore, Store

#: How long anything may take that the tests wait for.
SECONDS_MAX = 60.0


class Later(SystemClock):
    """The machine's clock, set forward by so many seconds, which a test may change."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:  # type: ignore[override]
        return time.time() + self.seconds


@dataclass
class Ground:
    """A place for one store.

    Arguments:
        store: makes the store, again for each opening.
    """

    name: str
    store: Callable[[], Store]
    clock: Later

    def app(self, *, limits: Limits = Limits(), interval: float = 0.05, **retention: Any) -> Durable:
        """An application that looks often for what is over."""
        config = Config(retention=RetentionSettings(interval_seconds=interval, **retention))
        return Durable(self.store(), limits=limits, config=config, clock=self.clock)


def memory() -> Ground:
    """A store in memory, which keeps what it has while it is closed."""
    store = MemoryStore()
    return Ground("memory", lambda: store, Later())


def folder(path: Path) -> Ground:
    """A store in a folder."""
    return Ground("folder", lambda: LocalStore(path, flush=FlushSettings(interval_seconds=0.02)), Later())


def postgres(url: str, schema: str) -> Ground:
    """A store in PostgreSQL."""
    settings = PostgresSettings(schema=schema, poll_seconds=0.2)
    return Ground("postgres", lambda: PostgresStore(url, settings), Later())


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    """Look again and again, until it is so: the keeper works by itself, and tells nobody."""
    ends_at = time.monotonic() + SECONDS_MAX
    while not await holds():
        assert time.monotonic() < ends_at, f"not so after {SECONDS_MAX:g} s: {what}"
        await asyncio.sleep(0.02)
