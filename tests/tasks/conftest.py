"""An application in memory, for tests of what tasks and steps do in a run."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from durable import Config, Durable
from durable.config import EngineSettings
from durable.store import MemoryStore

QUICK = Config(engine=EngineSettings(shutdown_grace_seconds=0.2, cancel_grace_seconds=0.2, replay_stall_seconds=0.05))


@pytest.fixture
async def app() -> AsyncIterator[Durable]:
    """The only application that is open."""
    async with Durable(MemoryStore(), config=QUICK) as opened:
        yield opened
