"""The store of several PostgreSQLs against the one suite: here they are schemas of one server."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from durable.config import PostgresSettings
from durable.core.commands import Send
from durable.core.messages import Answer, Message
from durable.core.query import RunFilter
from durable.errors import ConfigError, StoreMismatchError
from durable.store import PostgresStore, Store
from durable.store.postgres.shards.membership import Stray
from durable.store.postgres.shards.store import ShardedStore
from durable.store.shared import Notice
from durable.testing.conformance import StoreConformance
from durable.testing.samples import NOW, created, ids, number_of, run_id

from .parcels import TASK, begun, parcel, step


class TestShardedStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def place(self, postgres_url: str, postgres_schemas: Sequence[str]) -> None:
        self.url, self.schemas = postgres_url, postgres_schemas

    async def make_store(self, tmp_path: Path) -> Store:
        return sharded(self.url, self.schemas)

    async def reopen(self, store: Store) -> Store:
        await store.close()
        again = sharded(self.url, self.schemas[::-1])
        await again.open()
        return again


def sharded(url: str, schemas: Sequence[str]) -> ShardedStore:
    return ShardedStore([PostgresStore(url, PostgresSettings(schema=schema)) for schema in schemas])


# -- where runs are


@pytest.fixture
async def store(postgres_url: str, postgres_schemas: Sequence[str]) -> AsyncIterator[ShardedStore]:
    """Three shards, of each of which this process is an executor."""
    store = sharded(postgres_url, postgres_schemas)
    await store.open()
    await store.enroll(TASK)
    yield store
    await store.close()


def spread(store: ShardedStore) -> list[int]:
    """The number of a run on each shard."""
    return [next(n for n in itertools.count(1) if store.shard_of(run_id(n)) == place) for place in range(3)]


async def test_a_run_lies_where_its_id_says(store: ShardedStore) -> None:
    """Families keep together, all shards have some, and the lists of all shards are one list in order."""
    await store.commit([[created(number)] for number in range(200)])
    for place, shard in enumerate(store.shards):
        found = await shard.query(RunFilter(limit=1000))
        assert found and all(store.shard_of(run.run_id) == place for run in found)
    assert ids(await store.query(RunFilter(limit=150))) == list(range(150))
    assert len({store.shard_of(run_id(number)) for number in range(8, 16)}) == 1


async def test_a_unit_of_two_shards_is_refused(store: ShardedStore) -> None:
    """It could not become durable as one."""
    one, two, _ = spread(store)
    with pytest.raises(ValueError, match="several shards"):
        await store.commit([[created(one), created(two)]])
    assert await store.query(RunFilter()) == []


async def test_a_key_is_found_wherever_its_run_is(store: ShardedStore) -> None:
    """A child with a key lies with its family, not where the key would place it."""
    for number in spread(store):
        await store.commit([[created(number, key=f"k{number}", user="u")]])
        found = await store.find_key("u", f"k{number}")
        assert found is not None and found.run_id == run_id(number)


# -- who belongs together


async def test_another_set_of_shards_is_refused(postgres_url: str, postgres_schemas: Sequence[str]) -> None:
    """Less shards, more shards, one of them alone, one twice, and one that was a store by itself: each is said to be what it is."""
    first, second, third = postgres_schemas
    store = sharded(postgres_url, [first, second])
    await store.open()
    store_ids = [shard.store_id for shard in store.shards]
    await store.close()
    with pytest.raises(StoreMismatchError, match="one of 2 shards: open them together"):
        await PostgresStore(postgres_url, PostgresSettings(schema=first)).open()
    with pytest.raises(StoreMismatchError, match="lead to the same store"):
        await sharded(postgres_url, [first, first]).open()
    with pytest.raises(StoreMismatchError, match="new: "):
        await sharded(postgres_url, postgres_schemas).open()
    alone = PostgresStore(postgres_url, PostgresSettings(schema=third))
    await alone.open()
    await alone.commit([[created(1)]])
    await alone.close()
    with pytest.raises(StoreMismatchError, match=rf"missing: ({'|'.join(store_ids)}); new: |has runs already"):
        await sharded(postgres_url, [first, third]).open()
    with pytest.raises(StoreMismatchError, match="has runs already"):
        await sharded(postgres_url, [third, f"{third}_new"]).open()
    again = sharded(postgres_url, [second, first])
    await again.open()
    assert [shard.store_id for shard in again.shards] == sorted(store_ids)
    await again.close()


def test_urls_make_a_store_of_several_shards() -> None:
    """One url, in whichever way, is one store; several hosts in one url are, too."""
    urls = ["postgresql://one/db", "postgresql://two/db"]
    assert isinstance(PostgresStore(urls=urls), ShardedStore)
    assert type(PostgresStore("postgresql://one,two/db")) is PostgresStore
    assert type(PostgresStore(urls=urls[:1])) is PostgresStore
    for wrong in ({}, {"url": urls[0], "urls": urls}):
        with pytest.raises(ConfigError, match="urls"):
            PostgresStore(**wrong)  # type: ignore[arg-type]


# -- holding


async def test_claims_share_the_limit_among_the_shards(store: ShardedStore) -> None:
    """Never more than the limit; and however small it is, every shard has its turn, and none is asked in vain for ever."""
    numbers = range(0, 240, 4)
    await store.commit([[created(number)] for number in numbers])
    claimed = await store.claim(TASK, 12, NOW)
    assert len(claimed.held) == 12 and claimed.more
    assert Counter(store.shard_of(each.run.run_id) for each in claimed.held) == {0: 4, 1: 4, 2: 4}
    met = list(claimed.held)
    while (claimed := await store.claim(TASK, 1, NOW)).held:
        assert len(claimed.held) == 1
        met += claimed.held
    assert not claimed.more
    assert sorted(number_of(each.run.run_id) for each in met) == list(numbers)
    await store.release((each.run.run_id, each.epoch) for each in met)
    assert len(await store.take([each.run.run_id for each in met])) == len(numbers)


# -- messages that cross


async def crossing(store: ShardedStore) -> tuple[str, str]:
    """Two runs on two shards, at work and not."""
    one, two, _ = spread(store)
    await store.write([parcel(*begun(one)), parcel(created(two))])
    return run_id(one), run_id(two)


async def arrived(store: ShardedStore) -> list[Message]:
    """Wait until there is mail."""
    async with asyncio.timeout(30):
        while not (found := await store.mail(TASK, 10)):
            await asyncio.sleep(0.01)
    return found


async def test_a_message_for_a_run_of_another_shard_arrives(store: ShardedStore) -> None:
    """In order, with a notice to this process too, and is gone where it was written."""
    news = asyncio.Event()

    def hear(notice: Notice) -> None:
        if notice.mail:
            news.set()

    store.listen(hear)
    source, target = await crossing(store)
    sent = [Message(target, Send(f"s{number}", b"%d" % number, 100)) for number in range(3)]
    refused = await store.write([parcel(step(number_of(source), 3), epochs={number_of(source): 1}, messages=sent)])
    assert refused == [None]
    async with asyncio.timeout(30):
        await news.wait()
    found = await arrived(store)
    assert [(each.run_id, each.command) for each in found] == [(target, each.command) for each in sent]
    await store.write([parcel(answers=[Answer(each) for each in found])])
    assert await store.mail(TASK, 10) == []


@pytest.mark.parametrize("obeyed", [False, True])
async def test_a_message_arrives_once_whoever_crashes_while_it_is_handed_on(
    postgres_url: str, postgres_schemas: Sequence[str], obeyed: bool
) -> None:
    """Between its arrival and its end where it came from: also where it has been obeyed by then."""
    shards = [PostgresStore(postgres_url, PostgresSettings(schema=schema)) for schema in postgres_schemas[:2]]
    for shard in shards:
        await shard.connect()
        await shard.enroll(TASK)
    source, target = shards
    await source.write([parcel(*begun(1))])
    await target.write([parcel(created(8))])
    stray = Message(run_id(8), Send("s", b"1", 100))
    await source.write([parcel(step(1, 3), epochs={1: 1}, strays=[stray])])

    class Crash(Exception):
        pass

    async def deliver(strays: Sequence[Stray], oldest: int) -> Sequence[Stray]:
        await target.membership.receive(source.store_id, strays, oldest)
        return strays

    async def crash(strays: Sequence[Stray], oldest: int) -> Sequence[Stray]:
        await deliver(strays, oldest)
        raise Crash

    with pytest.raises(Crash):
        await source.membership.hand_on(crash)
    (found,) = await target.mail(TASK, 10)
    if obeyed:
        await target.write([parcel(answers=[Answer(found)])])
    await source.membership.hand_on(deliver)
    assert len(await target.mail(TASK, 10)) == (0 if obeyed else 1)

    async def nothing(strays: Sequence[Stray], oldest: int) -> Sequence[Stray]:
        raise AssertionError(strays)

    await source.membership.hand_on(nothing)
    for shard in shards:
        await shard.close()


async def test_those_who_hand_on_at_once_keep_the_order(
    store: ShardedStore, postgres_url: str, postgres_schemas: Sequence[str]
) -> None:
    """Nor does any of them bring anything twice."""
    source, target = await crossing(store)
    number = number_of(source)
    parcels = [
        parcel(step(number, 3 + n), epochs={number: 1}, messages=[Message(target, Send(f"s{n}", None, 9_000))])
        for n in range(200)
    ]
    others = [sharded(postgres_url, postgres_schemas) for _ in range(2)]
    for other in others:
        await other.open()
        await other.mail(TASK, 1)  # they deliver, too
    for some in range(0, 200, 20):
        await store.write(parcels[some : some + 20])
    async with asyncio.timeout(30):
        while len(found := await store.mail(TASK, 1_000)) < 200:
            await asyncio.sleep(0.01)
    assert [each.command.name for each in found if isinstance(each.command, Send)] == [f"s{n}" for n in range(200)]
    for other in others:
        await other.close()
