"""Stores that are closed when their test ends, however it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from durable.store import LocalStore

Opener = Callable[..., Awaitable[LocalStore]]


@pytest.fixture
async def open_store(tmp_path: Path) -> AsyncIterator[Opener]:
    """Open a `LocalStore` in the test's folder."""
    opened: list[LocalStore] = []

    async def opener(**options: Any) -> LocalStore:
        store = LocalStore(tmp_path / "store", **options)
        opened.append(store)
        await store.open()
        return store

    yield opener
    for store in opened:
        await store.close()
