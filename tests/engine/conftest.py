"""Applications for the engine's tests: each test runs on every store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from durable import Config, Durable, Limits
from durable.config import EngineSettings
from durable.store.base import Store
from durable.store.local import LocalStore
from durable.store.memory import MemoryStore

QUICK = Config(engine=EngineSettings(shutdown_grace_seconds=0.2, cancel_grace_seconds=0.2, replay_stall_seconds=0.05))

MakeApp = Callable[..., Durable]


@pytest.fixture(params=["memory", "local"])
def make_app(request: pytest.FixtureRequest, tmp_path: Path) -> MakeApp:
    """Makes an application; called again, another one on the same store."""
    memory = MemoryStore()

    def make(
        *, config: Config = QUICK, limits: Limits = Limits(), wrap: Callable[[Store], Store] = lambda store: store
    ) -> Durable:
        store: Store = memory if request.param == "memory" else LocalStore(tmp_path / "store")
        return Durable(wrap(store), config=config, limits=limits, test_mode=True)

    return make
