"""Applications for the tests of streams, on the stores that are one process's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from durable import Config, Durable
from durable.config import EngineSettings, StreamSettings
from durable.store.base import Store
from durable.store.local import LocalStore
from durable.store.memory import MemoryStore

ENGINE = EngineSettings(shutdown_grace_seconds=0.2, cancel_grace_seconds=0.2)

MakeApp = Callable[..., Durable]


@pytest.fixture(params=["memory", "local"])
def make_app(request: pytest.FixtureRequest, tmp_path: Path) -> MakeApp:
    """Makes an application with these settings of streams; called again, another one on the same store."""
    memory = MemoryStore()

    def make(wrap: Callable[[Store], Store] = lambda store: store, **settings: float) -> Durable:
        store: Store = memory if request.param == "memory" else LocalStore(tmp_path / "store")
        config = Config(engine=ENGINE, stream=StreamSettings(**settings))  # type: ignore[arg-type]
        return Durable(wrap(store), config=config, test_mode=True)

    return make
