"""An engine on a store that others share, where the store answers late, or not at all, or somebody else was quicker."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import pytest

from durable import Child, Config, Durable, Limits, Retry, task
from durable.config import EngineSettings
from durable.core.commands import Cancel
from durable.core.decide import decide
from durable.core.records import Kind
from durable.core.status import Status
from durable.errors import DurableError, RepositoryUnavailableError, RunFailedError
from durable.store.shared import Parcel
from durable.testing.database import SharedDatabase
from durable.testing.shared import SharedMemoryStore
from tests.acceptance.contract_support import until_status
from tests.engine.gate import turns

T = TypeVar("T")
LEASE = 0.3
QUICK = Config(engine=EngineSettings(shutdown_grace_seconds=0.1, cancel_grace_seconds=0.1, idle_seconds=0.05))


class HangingStore(SharedMemoryStore):
    """Does not answer what a test says, and tells when it was asked."""

    def __init__(self, database: SharedDatabase) -> None:
        super().__init__(database, lease_seconds=LEASE, poll_seconds=0.1)
        self.hanging: set[str] = set()
        self.hung = asyncio.Event()
        #: What was asked and answered.
        self.answered: set[str] = set()
        #: Called before parcels are written.
        self.before_write: Callable[[Sequence[Parcel]], Awaitable[None]] = _nothing

    async def _ask(self, what: str, work: Callable[[], T]) -> T:
        if what in self.hanging:
            self.hung.set()
            await asyncio.Event().wait()
        result = await super()._ask(what, work)
        self.answered.add(what)
        return result

    async def write(self, parcels: Sequence[Parcel]) -> list[DurableError | None]:
        await self.before_write(parcels)
        return await super().write(parcels)


async def _nothing(parcels: Sequence[Parcel]) -> None:
    """No test wants anything."""


async def until(happened: Callable[[], object]) -> None:
    """Wait until something has happened."""
    while not happened():
        await asyncio.sleep(0.005)


def kinds(database: SharedDatabase, run_id: str) -> list[Kind]:
    """Of which kinds the run's records are."""
    return [record.kind for record in database.overlay.entries[run_id].records]


def child_of(database: SharedDatabase, run_id: str, place: int = 0) -> str:
    """The id of a child."""
    children = (each for each in sorted(database.rows) if database.run(each).parent_id == run_id)
    return next(itertools.islice(children, place, None), "")


@task(name="sharing_lingering")
async def lingering() -> None:
    try:
        await asyncio.sleep(60)
    finally:
        stopped.append(True)


#: Bodies that were stopped.
stopped: list[bool] = []


#: What bodies wait for, by name.
gates: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def nothing_happened() -> None:
    stopped.clear()
    gates.clear()


def gate(name: str) -> asyncio.Event:
    """What bodies wait for."""
    return gates.setdefault(name, asyncio.Event())


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


async def test_a_sweep_that_hangs_costs_nobody_the_lease() -> None:
    store = HangingStore(SharedDatabase())
    async with Durable(store, config=QUICK, test_mode=True) as app, asyncio.timeout(10):
        await until_status(await app.start(lingering), "running")
        store.hanging = {"sweep"}
        await store.hung.wait()
        await asyncio.sleep(2 * LEASE)
        assert store.lease_left > 0
        assert not stopped


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

        async def overtake(parcels: Sequence[Parcel]) -> None:
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


async def wait_for_gate(name: str) -> str:
    gate(f"{name} began").set()
    await gate(name).wait()
    return name


@task(name="sharing_waiting")
async def waiting(name: str) -> str:
    return await wait_for_gate(name)


async def test_a_run_whose_creation_arrives_after_it_was_given_up_begins() -> None:
    """Else this process would hold it without knowing that, for as long as it lives."""
    database = SharedDatabase()
    store = HangingStore(database)
    lost: list[Parcel] = []

    async def lose(parcels: Sequence[Parcel]) -> None:
        lost.extend(parcels)
        raise RepositoryUnavailableError("it did not answer")

    async with Durable(store, config=QUICK, test_mode=True) as app, asyncio.timeout(10):
        store.before_write = lose
        with pytest.raises(RepositoryUnavailableError):
            await app.start(waiting, "late")
        store.before_write = _nothing
        await until(lambda: "release" in store.answered)
        assert database.write(lost[0], store.executor_id) is None
        await gate("late began").wait()
        gate("late").set()
        assert await (await app.get(lost[0].records[0].run_id)) == "late"


# --- bodies that await children that come and go ------------------------------------------------------------------------------------


@task(name="sharing_leaf", delay=0.05)
async def leaf() -> int:
    return 1


async def waiting_end(children: list[Child[int]]) -> str:
    return await wait_for_gate("end")


@task(name="sharing_gated", on_children_complete=waiting_end)
async def gated() -> list[Child[int]]:
    return [leaf.child()]


@task(name="sharing_awaiting")
async def awaiting() -> str:
    return await gated()


async def test_a_parent_stays_awake_while_the_end_of_a_child_that_came_back_is_on_its_way() -> None:
    """The child only waited and was let go of: who came back is another entry, of whose end nobody would tell a sleeper."""
    database = SharedDatabase()
    store = HangingStore(database)
    arrived, durable_now = asyncio.Event(), asyncio.Event()

    async def hold_the_end(parcels: Sequence[Parcel]) -> None:
        if any(record.payload == b'"end"' for parcel in parcels for record in parcel.records):
            arrived.set()
            await durable_now.wait()

    store.before_write = hold_the_end
    limits = Limits(max_running=2)
    async with Durable(store, config=QUICK, limits=limits, test_mode=True) as app, asyncio.timeout(10):
        parent = await app.start(awaiting)
        await gate("end began").wait()
        assert "release" in store.answered, "the child was kept: nothing is tested"
        for name in ("a", "b"):  # one of them has no slot but the parent's
            await app.start(waiting, name)
        gate("end").set()
        await arrived.wait()
        await asyncio.sleep(4 * QUICK.engine.idle_seconds)
        durable_now.set()
        assert await parent == "end"
        assert Kind.ASLEEP not in kinds(database, parent.run_id)
        gate("a").set()
        gate("b").set()


@task(name="sharing_distant_leaf", delay=60)
async def distant_leaf() -> int:
    return 1


@task(name="sharing_patient")
async def patient() -> list[Child[int]]:
    return [distant_leaf.child()]


@task(name="sharing_giving_up")
async def giving_up() -> str:
    child = asyncio.ensure_future(patient())
    await gate("enough").wait()
    child.cancel()
    await asyncio.wait({child})
    return "gave up"


async def test_a_child_that_is_given_up_is_cancelled_wherever_it_is() -> None:
    database = SharedDatabase()
    other = SharedMemoryStore(database)
    await other.open()
    await other.enroll([])
    async with Durable(HangingStore(database), config=QUICK, test_mode=True) as app, asyncio.timeout(10):
        parent = await app.start(giving_up)
        await until(lambda: child_of(database, child_of(database, parent.run_id)))
        child_id = child_of(database, parent.run_id)
        while not await other.take([child_id]):
            await asyncio.sleep(0.01)
        gate("enough").set()
        assert await parent == "gave up"
        messages = {message.run_id: message.command for message in database.mail(other.executor_id, [], 10)}
        assert isinstance(messages[child_id], Cancel)


@task(name="sharing_keyed_waiting", key=lambda name: f"sharing waiting:{name}")
async def keyed_waiting(name: str) -> str:
    return await wait_for_gate(name)


@task(name="sharing_awaiting_stranger")
async def awaiting_stranger() -> str:
    gate("awaits").set()
    return await keyed_waiting("key")


async def test_a_body_that_awaits_a_run_of_another_family_is_not_put_to_sleep() -> None:
    """The run that its key names has no parent to tell: nobody would wake it."""
    database = SharedDatabase()
    one = Config(engine=EngineSettings(cancel_grace_seconds=0.1, idle_seconds=0.05, concurrency=1))
    elsewhere = Durable(HangingStore(database), config=one, test_mode=True)
    here = Durable(HangingStore(database), config=one, test_mode=True)
    async with elsewhere, here, asyncio.timeout(10):
        await elsewhere.start(keyed_waiting, "key")
        await gate("key began").wait()
        parent = await here.start(awaiting_stranger)
        await gate("awaits").wait()
        more = await here.start(waiting, "a")
        gate("a").set()
        await asyncio.sleep(6 * QUICK.engine.idle_seconds)
        gate("key").set()
        assert await parent == "key"
        assert await more == "a"


@task(name="sharing_naming")
async def naming() -> list[Child[str]]:
    return [keyed.child("ended"), keyed.child("ended")]


async def test_a_run_that_a_key_names_counts_as_ended_whoever_holds_it() -> None:
    """As one that another process is about to close."""
    database = SharedDatabase()
    other = SharedMemoryStore(database)
    await other.open()
    await other.enroll([])
    async with Durable(HangingStore(database), config=QUICK, test_mode=True) as app, asyncio.timeout(10):
        ended = await app.start(keyed, "ended")
        assert await ended == "ENDED"
        while not await other.take([ended.run_id]):
            await asyncio.sleep(0.01)
        assert [child.result for child in await (await app.start(naming))] == ["ENDED"] * 2


@task(name="sharing_failing")
async def failing() -> int:
    await gate("fail").wait()
    raise ValueError("as planned")


@task(name="sharing_family")
async def family() -> list[Child[Any]]:
    return [failing.child(), patient.child()]


@task(name="sharing_retrying", retry=Retry(2, delay=0.01))
async def retrying() -> Any:
    return await family()


async def test_that_a_relative_came_into_other_hands_is_no_outcome_of_a_child() -> None:
    """A family is tried again while one of it is being closed, which another process takes just then."""
    database = SharedDatabase()
    store = HangingStore(database)
    other = SharedMemoryStore(database)
    await other.open()
    await other.enroll([])
    taken: list[str] = []

    async def take(parcels: Sequence[Parcel]) -> None:
        """Whoever of the family is written to as closed is taken before."""
        closed = {each.run_id for parcel in parcels for each in parcel.records if each.kind is Kind.CLOSED} & {slow_id}
        if closed and not taken:
            await turns()  # the retry waits for it by now
            taken.extend(held.run.run_id for held in database.take(other.executor_id, list(closed)))

    slow_id = ""
    async with Durable(store, config=QUICK, test_mode=True) as app, asyncio.timeout(10):
        parent = await app.start(retrying)
        await until(lambda: child_of(database, child_of(database, child_of(database, parent.run_id), 1)))
        slow_id = child_of(database, child_of(database, parent.run_id), 1)
        leaf_id = child_of(database, slow_id)
        await until(lambda: database.rows[slow_id].owner is None)
        (held,) = await other.take([leaf_id])
        store.before_write = take
        gate("fail").set()
        await until(lambda: kinds(database, parent.run_id).count(Kind.STARTED) == 2)
        await turns()
        records = decide(held.run, Cancel(), 0.0, 1000)
        assert await other.write([Parcel(records, 1, {leaf_id: held.epoch})]) == [None]
        await until(lambda: taken)
        await other.leave()
        with pytest.raises(RunFailedError, match="as planned"):
            await parent
        run = database.run(parent.run_id)
        assert (run.status, run.awaiting) == (Status.FAILED, 0)
