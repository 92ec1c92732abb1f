"""An engine on a store that others share, where the store answers late, or not at all, or somebody else was quicker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from durable import Child, Config, Durable, task
from durable.config import EngineSettings
from durable.store.shared import Parcel
from durable.testing.database import SharedDatabase
from durable.testing.shared import SharedMemoryStore
from tests.acceptance.contract_support import until_status

T = TypeVar("T")
LEASE = 0.3
QUICK = Config(engine=EngineSettings(shutdown_grace_seconds=0.1, cancel_grace_seconds=0.1))


class HangingStore(SharedMemoryStore):
    """Does not answer what a test says, and tells when it was asked."""

    def __init__(self, database: SharedDatabase) -> None:
        super().__init__(database, lease_seconds=LEASE, poll_seconds=0.1)
        self.hanging: set[str] = set()
        self.hung = asyncio.Event()
        #: Called before a write.
        self.before_write: Callable[[], None] = lambda: None

    async def _ask(self, what: str, work: Callable[[], T]) -> T:
        if what in self.hanging:
            self.hung.set()
            await asyncio.Event().wait()
        if what == "write":
            self.before_write()
        return await super()._ask(what, work)


@task(name="sharing_lingering")
async def lingering() -> None:
    try:
        await asyncio.sleep(60)
    finally:
        stopped.append(True)


#: Bodies that were stopped.
stopped: list[bool] = []


@pytest.fixture(autouse=True)
def nothing_stopped() -> None:
    stopped.clear()


@pytest.mark.parametrize("hanging", [{"sweep", "renew"}, {"renew"}], ids=["during a sweep", "at work"])
async def test_a_store_that_hangs_is_given_up_in_time(hanging: set[str], caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it hangs in: bodies are stopped when the lease has passed."""
    store = HangingStore(SharedDatabase())
    app = await Durable(store, config=QUICK).open()
    try:
        handle = await app.start(lingering)
        await until_status(handle, "running")
        if "sweep" in hanging:
            store.hanging = {"sweep"}
            async with asyncio.timeout(10):
                await store.hung.wait()
        store.hanging = {*hanging, "enroll"}
        async with asyncio.timeout(LEASE + 2):
            while not stopped:
                await asyncio.sleep(0.01)
        assert "lost its lease" in caplog.text
    finally:
        store.hanging.clear()
        await app.close()


@task(name="sharing_keyed", key=lambda name: f"sharing:{name}")
async def keyed(name: str) -> str:
    return name.upper()


@task(name="sharing_parent")
async def parent(name: str) -> list[Child[str]]:
    return [keyed.child(name)]


async def test_another_process_brings_the_child_into_being_that_several_here_are_about_to() -> None:
    """Who waits here for the creation that was refused joins the run that there is, as does who made it."""
    database = SharedDatabase()
    store = HangingStore(database)
    other = SharedMemoryStore(database)
    async with Durable(store, config=QUICK, test_mode=True) as app:
        handles: list[Any] = []
        written: list[Parcel] = []
        await other.open()

        def overtake() -> None:
            """As the first of the parents' units is about to be written, the key is taken elsewhere."""
            starter = app.engine.parts.starter
            if starter._creating and not written:
                entry = next(iter(starter._creating.values()))
                taken = entry.run.copy()
                assert taken.key is not None
                record = next(record for each, record in entry.in_flight.items if each is entry and record.seq == 1)  # type: ignore[union-attr]
                run_id = starter.make_id()
                stolen = type(record)(run_id, 1, record.kind, record.at, 1, record.name, head={
                    name: value for name, value in record.head.items() if name in {"key", "fingerprint", "user"}
                }, payload=record.payload)  # fmt: skip
                written.append(Parcel([stolen], 1))
                assert other._write(written, None) == ([None], set())

        store.before_write = overtake
        handles = [await app.start(parent, "a") for _ in range(3)]
        async with asyncio.timeout(10):
            children = await asyncio.gather(*handles)
            assert [[child.result for child in of_one] for of_one in children] == [["A"]] * 3
        assert written, "nobody was quicker: nothing was tested"
        assert len([run async for run in app.runs(task=keyed)]) == 1
