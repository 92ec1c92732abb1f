"""`ctx.transaction()`, and `start(..., connection=...)`: what a user writes and what durable records are committed together."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from durable import Config, Context, Durable, Retry, RunCancelledError, RunFailedError, step, task
from durable.config import EngineSettings, PostgresSettings
from durable.errors import ConfigError, ConflictError, StepContextError, StorageError
from durable.store import LocalStore, MemoryStore, PostgresStore
from tests.acceptance.outage_work import app_at, deadly, executors, repeated
from tests.conftest import need_postgres
from tests.support.pgserver import PostgresServer
from tests.support.proxy import Proxy

FULL = os.environ.get("DURABLE_FULL") == "1"
CONFIG = Config(engine=EngineSettings(shutdown_grace_seconds=0.2))
POLL = 0.3
#: For a run to end, seconds.
ENDS_WITHIN = 20.0

Opener = Callable[..., AbstractAsyncContextManager[Durable]]


@pytest.fixture
def opened(postgres_url: str, postgres_schema: str) -> Opener:
    """Open an application on the test's schema."""

    @asynccontextmanager
    async def opener(url: str = postgres_url, *, execute: bool = True, **settings: Any) -> AsyncIterator[Durable]:
        postgres = PostgresSettings(schema=postgres_schema, poll_seconds=POLL, **settings)
        async with Durable(PostgresStore(url, postgres), config=CONFIG, execute=execute, test_mode=True) as app:
            yield app

    return opener


@pytest.fixture
async def rows(opened: Opener, postgres_url: str, postgres_schema: str) -> AsyncIterator[Rows]:
    """The user's table, beside durable's."""
    async with opened():
        pass
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        rows = Rows(connection, f"{postgres_schema}.orders")
        await connection.execute(f"CREATE TABLE {rows.table} (what text)".encode())
        TABLE[0] = rows.table
        yield rows


class Rows:
    """A table of texts."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], table: str) -> None:
        self.connection = connection
        self.table = table

    async def all(self) -> list[str]:
        cursor = await self.connection.execute(f"SELECT what FROM {self.table} ORDER BY what".encode())
        return [row[0] for row in await cursor.fetchall()]


#: Where the steps below write.
TABLE = [""]
#: How often each step's body began.
bodies: Counter[str] = Counter()


gates: dict[str, asyncio.Event] = {}


def gate(name: str) -> asyncio.Event:
    return gates.setdefault(name, asyncio.Event())


@pytest.fixture(autouse=True)
def clean() -> None:
    bodies.clear()
    gates.clear()


async def write(connection: Any, what: str) -> None:
    await connection.execute(f"INSERT INTO {TABLE[0]} VALUES (%s)".encode(), (what,))


# -- exactly once


@step(name="transactions.order")
async def order(ctx: Context, what: str) -> str:
    bodies[what] += 1
    async with ctx.transaction() as connection:
        await write(connection, what)
    return f"ordered {what}"


@task(name="transactions.ordering")
async def ordering(what: str) -> str:
    return await order(what)


async def test_rows_and_record_are_there_together(opened: Opener, rows: Rows, postgres_schema: str) -> None:
    """Whoever looks sees both, or neither."""
    both = (
        f"SELECT (SELECT count(*) FROM {rows.table}), (SELECT count(*) FROM {postgres_schema}.records "
        "WHERE position('\"ordered 0'::bytea IN body) > 0 AND position('[\"ordered'::bytea IN body) = 0)"
    )
    async with opened() as app:
        waiting = asyncio.ensure_future((await app.start(parallel, 30)).wait(ENDS_WITHIN))
        seen = set()
        while not waiting.done():
            seen.add(await (await rows.connection.execute(both.encode())).fetchone())
        await waiting
        seen.add(await (await rows.connection.execute(both.encode())).fetchone())
    assert (30, 30) in seen
    assert [counts for counts in seen if counts is not None and counts[0] != counts[1]] == []


@pytest.mark.parametrize("cut", [True, False] if FULL else [True])
async def test_a_commit_whose_answer_is_lost(opened: Opener, rows: Rows, postgres_url: str, cut: bool) -> None:
    """With the connection, or without: it then just hangs."""
    async with Proxy(postgres_url) as proxy, opened(proxy.url, statement_seconds=0.5) as app:
        for number in range((20 if FULL else 3) if cut else 1):
            proxy.swallow(b"COMMIT", cut=cut)
            handle = await app.start(ordering, f"{number:02}")
            assert await handle.wait(ENDS_WITHIN) == f"ordered {number:02}"
            assert proxy.swallowed.is_set()
            assert bodies[f"{number:02}"] == 1
        assert await rows.all() == [f"{each:02}" for each in range(number + 1)]


@pytest.mark.parametrize("moment", [b"BEGIN", b"SAVEPOINT", b"INSERT INTO", b"RELEASE", b"ordered one"])
async def test_a_connection_that_is_lost_in_the_transaction(
    opened: Opener, rows: Rows, postgres_url: str, moment: bytes
) -> None:
    """It is undone and done again, though the step has no retries: it is not at fault."""
    async with Proxy(postgres_url) as proxy, opened(proxy.url) as app:
        proxy.swallow(TABLE[0].encode() if moment == b"INSERT INTO" else moment)
        handle = await app.start(ordering, "one")
        assert await handle.wait(ENDS_WITHIN) == "ordered one"
        assert proxy.swallowed.is_set()
        assert await rows.all() == ["one"]


async def test_a_process_that_is_killed(tmp_path: Path) -> None:
    """Before it has written, before it could commit, and after: each time another goes on."""
    need_postgres()
    moments = ("in the block", "after the block", "once it is recorded") * (3 if FULL else 1)
    with PostgresServer(durable=True, tcp=True) as server:
        server.sql("CREATE TABLE effects (run_id text, number int)")
        app = app_at(server.url, "killed", 1.0, execute=False)
        async with executors(len(moments) + 1, server.url, "killed", tmp_path, 1.0) as started, app:
            for number, where in enumerate(moments):
                folder = tmp_path / str(number)
                folder.mkdir()
                handle = await app.start(deadly, str(folder), where)
                assert await handle.wait(ENDS_WITHIN) == where
            assert sum(executor.process.poll() is not None for executor in started) == len(moments)
        assert repeated(tmp_path / "notes") == []
        assert server.sql("SELECT count(*), count(DISTINCT run_id) FROM effects") == [(len(moments), len(moments))]


# -- what is undone


@step(name="transactions.failing", retry=Retry(2, delay=0.01))
async def failing(ctx: Context, tries: int) -> str:
    bodies["failing"] += 1
    async with ctx.transaction() as connection:
        await write(connection, f"try {bodies['failing']}")
    if bodies["failing"] < tries:
        raise ValueError("not yet")
    return "done"


@task(name="transactions.fails")
async def fails(tries: int) -> str:
    try:
        return await failing(tries)
    except ValueError:
        return "failed"


@pytest.mark.parametrize(("tries", "result", "left"), [(2, "done", ["try 2"]), (3, "failed", [])])
async def test_a_try_that_fails_is_undone(opened: Opener, rows: Rows, tries: int, result: str, left: list[str]) -> None:
    async with opened() as app:
        assert await (await app.start(fails, tries)).wait(ENDS_WITHIN) == result
        assert await rows.all() == left


@step(name="transactions.blocks")
async def blocks(ctx: Context) -> int:
    async with ctx.transaction() as connection:
        await write(connection, "first")
    for error in (ValueError("mine"), None):
        try:
            async with ctx.transaction() as connection:
                await write(connection, "undone")
                if error is not None:
                    raise error
                await connection.execute("SELECT 1 / 0")
        except (ValueError, psycopg.errors.DivisionByZero):
            pass
    async with ctx.transaction() as connection:
        await write(connection, "outer")
        async with ctx.transaction() as same:
            assert same is connection
            await write(same, "inner")
    return 3


@task(name="transactions.several_blocks")
async def several_blocks() -> int:
    return await blocks()


async def test_a_block_that_an_exception_leaves_is_undone_and_the_others_are_not(opened: Opener, rows: Rows) -> None:
    async with opened() as app:
        assert await (await app.start(several_blocks)).wait(ENDS_WITHIN) == 3
        assert await rows.all() == ["first", "inner", "outer"]


@step(name="transactions.slow", timeout=0.2)
async def slow(ctx: Context) -> None:
    async with ctx.transaction() as connection:
        await write(connection, "slow")
        await connection.execute("SELECT pg_sleep(5)")


@task(name="transactions.too_slow")
async def too_slow() -> str:
    try:
        await slow()
    except TimeoutError:
        return await order("after it")
    return "not too slow"


async def test_a_time_out_inside_undoes_it(opened: Opener, rows: Rows) -> None:
    async with opened() as app:
        assert await (await app.start(too_slow)).wait(ENDS_WITHIN) == "ordered after it"
        assert await rows.all() == ["after it"]


@step(name="transactions.held_up")
async def held_up(ctx: Context, what: str) -> str:
    bodies[what] += 1
    mine = f"{what} {bodies[what]}"
    async with ctx.transaction() as connection:
        await write(connection, mine)
        gate(f"{mine} inside").set()
        await gate(f"{mine} go").wait()
    return mine


@task(name="transactions.is_held_up")
async def is_held_up(what: str) -> str:
    return await held_up(what)


async def test_a_cancelled_run_undoes_it(opened: Opener, rows: Rows) -> None:
    async with opened() as app:
        handle = await app.start(is_held_up, "one")
        await gate("one 1 inside").wait()
        await handle.cancel()
        with pytest.raises(RunCancelledError):
            await handle.wait(ENDS_WITHIN)
        assert await (await app.start(ordering, "two")).wait(ENDS_WITHIN) == "ordered two"
        assert await rows.all() == ["two"]


async def test_a_lease_that_is_lost_inside_undoes_it(opened: Opener, rows: Rows, postgres_schema: str) -> None:
    """Whoever has the run by then does it again; what the first wrote is not there, though it thinks it was done."""
    async with opened() as first, opened() as second:
        handle = await first.start(is_held_up, "one")
        await gate("one 1 inside").wait()
        await rows.connection.execute(
            f"UPDATE {postgres_schema}.runs SET owner = NULL, epoch = epoch + 1 WHERE run_id = %s".encode(),
            (handle.run_id,),
        )
        await gate("one 2 inside").wait()  # another executor, or the same one, which does not know it yet
        gate("one 1 go").set()
        gate("one 2 go").set()
        assert await (await second.get(handle.run_id)).wait(ENDS_WITHIN) == "one 2"
        assert await rows.all() == ["one 2"]


@task(name="transactions.parallel")
async def parallel(count: int) -> list[str]:
    return list(await asyncio.gather(*(order(f"{each:03}") for each in range(count))))


@pytest.mark.parametrize("count", [2, 50])
async def test_steps_in_parallel(opened: Opener, rows: Rows, count: int) -> None:
    """Each has a connection of its own, and waits for one where there are too few."""
    async with opened(connections_max=4) as app:
        names = [f"{each:03}" for each in range(count)]
        assert await (await app.start(parallel, count)).wait(ENDS_WITHIN) == [f"ordered {name}" for name in names]
        assert await rows.all() == names


@task(name="transactions.long_ones")
async def long_ones(count: int) -> list[str]:
    return list(await asyncio.gather(*(held_up(f"{each}") for each in range(count))))


async def test_transactions_that_take_long_do_not_cost_the_lease(opened: Opener, rows: Rows, caplog: Any) -> None:
    """All connections that steps may have are in use, for longer than the lease; other work goes on."""
    async with opened(connections_max=4, lease_seconds=1.0) as app:
        handle = await app.start(long_ones, 8)
        async with asyncio.timeout(ENDS_WITHIN):
            await asyncio.gather(gate("0 1 inside").wait(), gate("1 1 inside").wait())
        await asyncio.sleep(2.5)
        assert await handle.status() == "running"
        for each in range(8):
            gate(f"{each} 1 go").set()
        assert await handle.wait(ENDS_WITHIN) == [f"{each} 1" for each in range(8)]
        assert await rows.all() == [f"{each} 1" for each in range(8)]
        assert "lost its lease" not in caplog.text


# -- where there is none, and what is not allowed


@task(name="transactions.outside")
async def outside(ctx: Context) -> None:
    async with ctx.transaction():
        pass


async def test_outside_of_a_step(opened: Opener, postgres_url: str) -> None:
    async with opened() as app:
        with pytest.raises(RunFailedError) as caught:
            await (await app.start(outside)).wait(ENDS_WITHIN)
        assert "StepContextError" in str(caught.value)
        assert "inside an `async def` step" in str(caught.value)
    with pytest.raises(StepContextError):
        await outside()


@pytest.mark.parametrize("kind", ["folder", "memory"])
async def test_on_a_store_that_is_not_in_postgresql(tmp_path: Path, kind: str) -> None:
    store = LocalStore(tmp_path / "store") if kind == "folder" else MemoryStore()
    async with Durable(store) as app:
        with pytest.raises(RunFailedError, match=r"ConfigError.*needs a PostgreSQL store"):
            await (await app.start(ordering, "one")).wait(ENDS_WITHIN)


@step(name="transactions.plain")
def plain(ctx: Context) -> None:
    ctx.transaction()


@task(name="transactions.calls_plain")
async def calls_plain() -> None:
    await plain()  # type: ignore[misc]


async def test_in_a_plain_step(opened: Opener) -> None:
    async with opened() as app:
        with pytest.raises(RunFailedError, match=r"StepContextError.*`async def` step"):
            await (await app.start(calls_plain)).wait(ENDS_WITHIN)


@step(name="transactions.isolated", isolate="process")
async def isolated(ctx: Context) -> None:
    async with ctx.transaction():
        pass


@task(name="transactions.calls_isolated")
async def calls_isolated() -> None:
    await isolated()


async def test_in_a_step_in_a_process_of_its_own(opened: Opener) -> None:
    """A context, and so a transaction, stays in its process."""
    async with opened() as app:
        with pytest.raises(RunFailedError, match="cannot be carried to a worker process"):
            await (await app.start(calls_isolated)).wait(ENDS_WITHIN)


HOW_TO_END = {
    "commit": lambda connection: connection.commit(),
    "rollback": lambda connection: connection.rollback(),
    "COMMIT": lambda connection: connection.execute("COMMIT"),
    "ROLLBACK": lambda connection: connection.execute("ROLLBACK"),
    "close": lambda connection: connection.close(),
}


@step(name="transactions.ending")
async def ending(ctx: Context, how: str, inside: bool) -> None:
    bodies["ending"] += 1
    async with ctx.transaction() as connection:
        await write(connection, "ended")
        if inside:
            await HOW_TO_END[how](connection)
    await HOW_TO_END[how](connection)


@task(name="transactions.ends")
async def ends(how: str, inside: bool) -> None:
    await ending(how, inside)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("how", list(HOW_TO_END))
async def test_a_step_that_ends_the_transaction_itself(opened: Opener, rows: Rows, how: str, inside: bool) -> None:
    """It fails, once, and says why; what it committed is committed."""
    async with opened() as app:
        handle = await app.start(ends, how, inside)
        with pytest.raises(RunFailedError) as caught:
            await handle.wait(ENDS_WITHIN)
        assert bodies["ending"] == 1
        if not inside:
            assert "ended the transaction of ctx.transaction() itself" in str(caught.value)
        committed = how == "COMMIT" or (how == "commit" and not inside)
        assert await rows.all() == (["ended"] if committed else [])
        assert await (await app.start(ordering, "after it")).wait(ENDS_WITHIN) == "ordered after it"


@step(name="transactions.swallowing")
async def swallowing(ctx: Context) -> str:
    bodies["swallowing"] += 1
    try:
        async with ctx.transaction() as connection:
            await write(connection, "lost")
            try:
                await connection.execute("SELECT 1 / 0")
            except psycopg.Error:
                pass
    except psycopg.Error:
        return "the block failed"
    return "nothing failed"


@task(name="transactions.swallows")
async def swallows() -> str:
    return await swallowing()


async def test_an_sql_error_that_is_swallowed_in_the_block(opened: Opener, rows: Rows) -> None:
    """PostgreSQL takes nothing more of that block: it is undone, and the step hears of it when it leaves the block."""
    async with opened() as app:
        handle = await app.start(swallows)
        try:
            assert await handle.wait(ENDS_WITHIN) == "the block failed"
        except RunFailedError as error:
            assert "ended the transaction" in str(error)  # noqa: PT017
        assert bodies["swallowing"] == 1
        assert await rows.all() == []


# -- starting a run in the caller's own transaction


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection of the user's own."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        try:
            yield connection
        finally:
            await connection.rollback()


@task(name="transactions.started")
async def started(what: str) -> str:
    return what


async def ids(app: Durable) -> list[str]:
    return [info.run_id async for info in app.runs()]


async def test_a_start_is_there_once_it_is_committed(opened: Opener, rows: Rows, postgres_url: str) -> None:
    """With the user's rows; and is begun by whoever looks next, without a notice."""
    async with opened() as app, opened(execute=False) as client, connected(postgres_url) as connection:
        await write(connection, "one")
        handle = await client.start(started, "one", connection=connection)
        assert await ids(app) == []
        await asyncio.sleep(2 * POLL)
        assert await ids(app) == []
        await connection.commit()
        committed = time.monotonic()
        assert await handle.wait(ENDS_WITHIN) == "one"
        assert (
            time.monotonic() - committed < 2.5 * POLL + 0.2
        )  # a look at work, and one at the end; each a quarter later at most
        assert await rows.all() == ["one"]


async def test_a_start_is_not_there_if_it_is_undone(opened: Opener, rows: Rows, postgres_url: str) -> None:
    async with opened() as app, connected(postgres_url) as connection:
        await write(connection, "one")
        await app.start(started.options(key="key"), "one", connection=connection)
        await connection.rollback()
        async with connection.transaction(), connection.transaction(force_rollback=True):
            await app.start(started, "one", connection=connection)
        assert await ids(app) == []
        assert await rows.all() == []
        assert await app.find("key") is None
        handle = await app.start(started.options(key="key"), "two")
        assert await handle.wait(ENDS_WITHIN) == "two"


async def test_a_start_under_a_key_that_has_a_run(opened: Opener, rows: Rows, postgres_url: str) -> None:
    """It is that run; with another input a refusal, which leaves the caller's transaction as it is."""
    async with opened() as app, connected(postgres_url) as connection:
        first = await app.start(started.options(key="key"), "one")
        again = await app.start(started.options(key="key"), "one", connection=connection)
        assert again.run_id == first.run_id
        await write(connection, "before")
        with pytest.raises(ConflictError, match="another input"):
            await app.start(started.options(key="key"), "two", connection=connection)
        await write(connection, "after")
        await connection.commit()
        assert await rows.all() == ["after", "before"]
        assert await ids(app) == [first.run_id]


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_two_starts_under_one_key_at_once(opened: Opener, postgres_url: str, end: str) -> None:
    """The second waits until the first transaction has ended, and is the same run, or one of its own."""
    async with opened(execute=False) as app, opened(execute=False) as other:
        async with connected(postgres_url) as first, connected(postgres_url) as second:
            one = await app.start(started.options(key="key"), "one", connection=first)
            waiting = asyncio.ensure_future(other.start(started.options(key="key"), "one", connection=second))
            await until_one_waits(postgres_url)
            assert not waiting.done()
            await (first.commit() if end == "commit" else first.rollback())
            two = await asyncio.wait_for(waiting, ENDS_WITHIN)
            await second.commit()
        assert (two.run_id == one.run_id) == (end == "commit")
        assert await ids(app) == [two.run_id]


async def until_one_waits(url: str) -> None:
    query = b"SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection, asyncio.timeout(10):
        while (await (await connection.execute(query)).fetchone()) == (0,):
            await asyncio.sleep(0.01)


async def test_two_starts_under_one_key_with_different_inputs_at_once(opened: Opener, postgres_url: str) -> None:
    async with (
        opened(execute=False) as app,
        opened(execute=False) as other,
        connected(postgres_url) as first,
        connected(postgres_url) as second,
    ):
        await app.start(started.options(key="key"), "one", connection=first)
        waiting = asyncio.ensure_future(other.start(started.options(key="key"), "two", connection=second))
        await until_one_waits(postgres_url)
        await first.commit()
        with pytest.raises(ConflictError, match="another input"):
            await asyncio.wait_for(waiting, ENDS_WITHIN)


async def test_two_starts_under_one_key_in_one_transaction(opened: Opener, postgres_url: str) -> None:
    """Refused: what the first one is cannot be looked at before it is committed. The transaction goes on."""
    async with opened(execute=False) as app, connected(postgres_url) as connection:
        one = await app.start(started.options(key="key"), "one", connection=connection)
        with pytest.raises(ConflictError, match="in this very transaction"):
            await asyncio.wait_for(app.start(started.options(key="key"), "one", connection=connection), ENDS_WITHIN)
        await connection.commit()
        assert await ids(app) == [one.run_id]


async def test_a_start_without_a_transaction(opened: Opener, postgres_url: str) -> None:
    """On a connection that begins one by itself, that is begun, and waits for the caller's commit; in autocommit it is refused."""
    async with opened(execute=False) as app, connected(postgres_url) as connection:
        handle = await app.start(started, "one", connection=connection)
        assert await ids(app) == []
        await connection.commit()
        assert await ids(app) == [handle.run_id]
        await connection.set_autocommit(True)
        with pytest.raises(ConfigError, match=r"autocommit.*begin one with"):
            await app.start(started, "two", connection=connection)
        async with connection.transaction():
            other = await app.start(started, "two", connection=connection)
        assert await ids(app) == [handle.run_id, other.run_id]


async def test_a_start_on_what_is_no_connection_to_the_store(
    opened: Opener, postgres_url: str, postgres_schema: str, tmp_path: Path
) -> None:
    async with opened() as app:
        with (
            psycopg.connect(postgres_url) as plain_connection,
            pytest.raises(ConfigError, match=r"Connection, but must be a psycopg.AsyncConnection"),
        ):
            await app.start(started, "one", connection=plain_connection)
        with pytest.raises(ConfigError, match=r"is a str, but must be"):
            await app.start(started, "one", connection=postgres_url)
        async with await psycopg.AsyncConnection.connect(postgres_url) as closed:
            pass
        with pytest.raises((ConfigError, StorageError), match=r"closed|lost"):
            await app.start(started, "one", connection=closed)
        elsewhere = psycopg.conninfo.make_conninfo(postgres_url, dbname="template1")
        async with connected(elsewhere) as connection:
            with pytest.raises(ConfigError, match="does not lead to this store"):
                await app.start(started, "one", connection=connection)
        assert await ids(app) == []
        async with connected(postgres_url) as connection:
            for store in (MemoryStore(), LocalStore(tmp_path / "store")):
                async with Durable(store) as embedded:
                    with pytest.raises(ConfigError, match="needs a PostgreSQL store"):
                        await embedded.start(started, "one", connection=connection)


async def test_a_start_in_a_transaction_that_has_failed(opened: Opener, postgres_url: str) -> None:
    async with opened() as app, connected(postgres_url) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.execute("SELECT 1 / 0")
        with pytest.raises((StorageError, ConfigError), match="abort"):
            await app.start(started, "one", connection=connection)
