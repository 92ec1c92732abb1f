"""Applications for the engine's tests: each test runs on every store.

Tests that stand between the engine and a store that is one process's own do not run on PostgreSQL: there is `commit` to be held and
refused, and what is not held by a process is not in its memory. What becomes of such failures in a store that is shared is tested in
`test_sharing.py`, and with a real server that is stopped in `tests/acceptance/test_postgres_away.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from durable import Config, Durable, Limits
from durable.config import EngineSettings, PostgresSettings
from durable.store.base import Store
from durable.store.local import LocalStore
from durable.store.memory import MemoryStore
from durable.store.postgres import PostgresStore

QUICK = Config(engine=EngineSettings(shutdown_grace_seconds=0.2, cancel_grace_seconds=0.2, replay_stall_seconds=0.05))

MakeApp = Callable[..., Durable]


#: Modules whose tests need nothing of the store but that it keeps its contract.
ON_EVERY_STORE = {"test_attempts", "test_keyed_children", "test_recovery", "test_replay", "test_residence", "test_runs"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on the stores that it is for."""
    if "make_app" in metafunc.fixturenames:
        kinds = ["memory", "local"]
        alone = metafunc.definition.get_closest_marker("one_process")
        if metafunc.module.__name__.rpartition(".")[2] in ON_EVERY_STORE and alone is None:
            kinds.append("postgres")
        metafunc.parametrize("make_app", kinds, indirect=True)


@pytest.fixture
def make_app(request: pytest.FixtureRequest, tmp_path: Path) -> MakeApp:
    """Makes an application; called again, another one on the same store."""
    memory = MemoryStore()
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
        settings = PostgresSettings(schema=request.getfixturevalue("postgres_schema"))

    def make(
        *, config: Config = QUICK, limits: Limits = Limits(), wrap: Callable[[Store], Store] = lambda store: store
    ) -> Durable:
        store: Store
        if request.param == "postgres":
            store = PostgresStore(url, settings)
        else:
            store = memory if request.param == "memory" else LocalStore(tmp_path / "store")
        return Durable(wrap(store), config=config, limits=limits, test_mode=True)

    return make
