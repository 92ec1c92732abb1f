"""One of two shards is away, each a server of its own: stopped, or hanging."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from durable.config import PostgresSettings
from durable.core.commands import Send
from durable.core.ids import family_of, make_run_id
from durable.core.messages import Message
from durable.core.query import RunFilter
from durable.core.records import Kind, Record
from durable.errors import RepositoryUnavailableError
from durable.store import PostgresStore
from durable.store.postgres.shards.store import ShardedStore
from durable.store.shared import Parcel
from durable.testing.samples import NOW
from tests.conftest import need_postgres
from tests.support.pgserver import PostgresServer, children_of

from .parcels import TASK, tokens

SECONDS_MAX = 30.0
#: Of a question while a shard is known to be away.
AT_ONCE = 1.0


@dataclass
class Pair:
    """Two servers, and the store whose shards they are."""

    servers: list[PostgresServer]
    store: ShardedStore

    def server(self, place: int) -> PostgresServer:
        """The server of a shard."""
        shard = self.store.shards[place]
        assert isinstance(shard, PostgresStore)
        return next(server for server in self.servers if str(server.port) in shard.place)

    def run_id(self, place: int) -> str:
        """A new run of this shard."""
        while True:
            made = make_run_id(NOW, os.urandom(10))
            if self.store.shard_of(made) == place:
                return made

    async def create(self, place: int, count: int = 1) -> list[str]:
        """Runs of this shard, as somebody starts them."""
        made = [self.run_id(place) for _ in range(count)]
        parcels = [
            Parcel([Record(run_id, 1, Kind.CREATED, NOW, 1, "task", payload=b"null")], next(tokens)) for run_id in made
        ]
        assert await self.store.write(parcels) == [None] * count
        return made


def new_store(servers: list[PostgresServer]) -> Any:
    settings = PostgresSettings(statement_seconds=5.0, connect_seconds=2.0, lease_seconds=60.0)
    return PostgresStore(None, settings, urls=[server.url for server in servers])


@pytest.fixture(scope="module")
def servers() -> Iterator[list[PostgresServer]]:
    need_postgres()
    with PostgresServer(tcp=True) as one, PostgresServer(tcp=True) as two:
        yield [one, two]


@pytest.fixture
async def pair(servers: list[PostgresServer]) -> AsyncIterator[Pair]:
    for server in servers:
        if not server.running:
            server.start()
        server.sql("DROP SCHEMA IF EXISTS durable_store CASCADE")
    store = new_store(servers)
    await store.open()
    await store.enroll(TASK)
    yield Pair(servers, store)
    await store.close()


async def until(condition: Callable[[], Awaitable[Any] | Any], what: str) -> None:
    give_up = time.monotonic() + SECONDS_MAX
    while True:
        found = condition()
        if await found if isinstance(found, Awaitable) else found:
            return
        assert time.monotonic() < give_up, what
        await asyncio.sleep(0.02)


@contextmanager
def hanging(server: PostgresServer) -> Iterator[None]:
    """The server does nothing, and its connections stay."""
    assert server._process is not None
    pids = [server._process.pid, *children_of(server._process.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def the_other_works(pair: Pair, here: int, there: list[str]) -> None:
    """What concerns the shard that is left works, at once; what concerns the other says that it cannot."""
    store = pair.store
    before = time.monotonic()
    (made,) = await pair.create(here)
    assert (found := await store.find(made)) is not None and found.run_id == made
    claimed = await store.claim(TASK, 10, NOW)
    assert made in [each.run.run_id for each in claimed.held]
    assert await store.mail(TASK, 10) == []
    assert set(await store.read([made, *there])) == {made}
    assert await store.placement(made) is not None
    assert len(await store.history(made)) == 1
    await store.release((each.run.run_id, each.epoch) for each in claimed.held)
    assert [each.run.run_id for each in await store.take([made, *there])] == [made]
    assert await store.query(RunFilter(parent_id=made)) == []
    for _ in range(20):
        family = store.family()
        assert family is not None and store.shard_of(family) == here
    port = str(pair.server(1 - here).port)
    for refused in (store.find(there[0]), store.query(RunFilter()), store.next_due(0.0), store.find_key(None, "no")):
        with pytest.raises(RepositoryUnavailableError, match=port):
            await refused
    assert time.monotonic() - before < AT_ONCE
    health = store.health()
    assert health.state == "degraded" and port in health.detail


async def test_a_shard_that_is_stopped_leaves_the_other_working(pair: Pair) -> None:
    """And when it is back, so are its runs, in all lists."""
    store = pair.store
    there = await pair.create(0, 3)
    server = pair.server(0)
    server.stop(immediate=True)
    with pytest.raises(RepositoryUnavailableError):
        await store.query(RunFilter())
    await until(lambda: store.family() is not None, "that the shard is known to be away")
    await the_other_works(pair, 1, there)
    server.start()
    await until(lambda: store.health().state == "ok", "that it is back")
    assert {*there} < {run.run_id for run in await store.query(RunFilter())}
    assert store.family() is None
    assert {each.run.run_id for each in (await store.claim(TASK, 10, NOW)).held} == {*there}


async def test_a_shard_that_hangs_stops_nothing_for_long(pair: Pair) -> None:
    """The first who ask wait a few seconds; then it is known."""
    store = pair.store
    there = await pair.create(1, 3)
    with hanging(pair.server(1)):
        before = time.monotonic()
        assert (await store.claim(TASK, 10, NOW)).held == []
        assert time.monotonic() - before < 6.0
        await the_other_works(pair, 0, there)
    await until(lambda: store.health().state == "ok", "that it goes on")
    assert {*there} < {run.run_id for run in await store.query(RunFilter())}


async def test_it_opens_while_one_is_away(pair: Pair, servers: list[PostgresServer]) -> None:
    """As an executor on the other; on the one that was away, as soon as it is back. Where each is new, all have to be there."""
    there = await pair.create(0)
    server = pair.server(0)
    assert isinstance(pair.store.shards[0], PostgresStore)
    away = pair.store.shards[0].store_id
    server.stop()
    other = new_store(servers)
    await other.open()
    assert (other.shards[0].place == pair.store.shards[0].place) and pair.store.shard_of(there[0]) == 0
    heard = asyncio.Event()
    other.listen(lambda notice: heard.set())
    with pytest.raises(RepositoryUnavailableError):
        await other.shards[0].enroll(TASK)
    await other.shards[1].enroll(TASK)
    await the_other_works(Pair(servers, other), 1, there)
    server.start()
    await until(lambda: other.health().state == "ok", "that it is back")
    async with asyncio.timeout(SECONDS_MAX):
        await heard.wait()
    assert other.shards[0].store_id == away
    await other.shards[0].enroll(TASK)
    assert there[0] in {each.run.run_id for each in (await other.claim(TASK, 10, NOW)).held}
    await other.close()


async def test_new_shards_have_to_be_there_together(servers: list[PostgresServer]) -> None:
    """Else nobody knows who they are."""
    for server in servers:
        if not server.running:
            server.start()
        server.sql("DROP SCHEMA IF EXISTS durable_store CASCADE")
    servers[0].stop()
    with pytest.raises(RepositoryUnavailableError, match=r"1 of 2 shards .* first opened"):
        await new_store(servers).open()
    servers[0].start()


async def test_a_message_waits_for_its_shard(pair: Pair) -> None:
    """It lies where it was written, and keeps no other, until the shard that it is for is back."""
    store = pair.store
    (target,) = await pair.create(0)
    (source,) = await pair.create(1)
    server = pair.server(0)
    server.stop(immediate=True)
    sent = Message(target, Send("s", b"1", 10))
    begun = Record(source, 2, Kind.STARTED, NOW, 1)
    assert await store.write([Parcel([begun], next(tokens), {source: 1}, [sent])]) == [None]
    assert await store.mail(TASK, 10) == []
    server.start()
    found: list[Message] = []

    async def arrived() -> bool:
        found[:] = await store.mail(TASK, 10)
        return bool(found)

    await until(arrived, "that the message has come")
    assert [(each.run_id, each.command) for each in found] == [(target, sent.command)]
    assert family_of(target) != family_of(source)
