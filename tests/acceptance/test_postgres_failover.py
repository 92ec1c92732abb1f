"""A primary dies and its synchronous standby takes its place: nothing acknowledged is lost, and nobody goes back to the old one."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from durable import Durable, Handle
from durable.errors import RepositoryUnavailableError, StorageError, StoreMismatchError
from tests.acceptance.outage_work import RESULT, app_at, at_work, executors, work
from tests.conftest import need_postgres
from tests.support.pgserver import PostgresServer, url_of_all, wait_until

FULL = os.environ.get("DURABLE_FULL") == "1"
SCHEMA, LEASE = "failover", 1.5
#: From the promotion until the first run that is started then has ended, seconds.
GOES_ON_WITHIN = 10.0


@contextmanager
def primary_and_standby() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    need_postgres()
    with PostgresServer(tcp=True, durable=True) as primary:
        primary.sql("CREATE TABLE effects (run_id text, number int)")
        standby = primary.standby()
        try:
            yield primary, standby
        finally:
            standby.remove()


def runs_at(server: PostgresServer) -> set[str]:
    return {run_id for (run_id,) in server.sql(f"SELECT run_id FROM {SCHEMA}.runs")}


@pytest.mark.parametrize("end", ["killed", "stopped"] if FULL else ["killed"])
async def test_the_standby_takes_over(tmp_path: Path, end: str) -> None:
    """Work goes on there; the old primary comes back, alone and beside, and gets nothing more."""
    for number in range(5 if FULL else 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        with primary_and_standby() as (primary, standby):
            url = url_of_all(primary, standby)
            async with at_work(url, SCHEMA, LEASE, folder / "notes", 0.2) as client:
                await asyncio.sleep(1.0)
                # What is acknowledged from here on, the old primary cannot have.
                await asyncio.to_thread(primary.kill if end == "killed" else lambda: primary.stop(immediate=True))
                acknowledged = set(client.started)
                results = dict(client.results)
                await asyncio.sleep(0.5)
                promoted = time.monotonic()
                await asyncio.to_thread(standby.promote)
                handle = await client.start(4)  # without a key: a new run
                client.results[handle.run_id] = await handle.wait(GOES_ON_WITHIN)
                went_on = time.monotonic() - promoted
                assert went_on < GOES_ON_WITHIN
                assert acknowledged <= await asyncio.to_thread(runs_at, standby)
                await asyncio.to_thread(primary.start)
                old = await asyncio.to_thread(runs_at, primary)
                since = len(client.started)
                # Sessions are ended, so that everybody has to find a primary anew, now that there are two.
                for _ in range(3):
                    await asyncio.to_thread(end_sessions, standby)
                    await asyncio.sleep(0.5)
                async with asyncio.timeout(GOES_ON_WITHIN):
                    while len(client.started) == since:
                        await asyncio.sleep(0.05)
                assert await asyncio.to_thread(runs_at, primary) == old
                await newcomers(url, url_of_all(standby, primary), folder)
                assert await asyncio.to_thread(runs_at, primary) == old
            assert {run_id: client.results[run_id] for run_id in results} == results
            assert client.started <= await asyncio.to_thread(runs_at, standby)
        print(f"{end}: {len(client.started)} runs, the first one went on {went_on:.1f} s after the promotion")


def end_sessions(server: PostgresServer) -> None:
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'durable'")


async def newcomers(url: str, other_way: str, folder: Path) -> None:
    """Who begins now, and can reach both, takes the newer one, in whatever order they are named: a process, and applications."""
    async with executors(1, url, SCHEMA, folder, LEASE):
        for each in (url, other_way):
            async with app_at(each, SCHEMA, LEASE) as app:
                assert await (await app.start(work, 0)).wait(GOES_ON_WITHIN) == RESULT


async def patiently_started(app: Durable, key: str) -> Handle[int]:
    """Start a run under a key, however often that takes."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await app.start(work.options(key=key), 0)
            except RepositoryUnavailableError:
                await asyncio.sleep(0.1)


async def test_the_old_primary_alone_is_refused() -> None:
    """A process that has seen the new primary waits for it, and does not make do with the old one."""
    with primary_and_standby() as (primary, standby):
        url = url_of_all(primary, standby)
        async with app_at(url, SCHEMA, LEASE) as app:
            await (await app.start(work, 0)).wait(GOES_ON_WITHIN)
            await asyncio.to_thread(primary.kill)
            await asyncio.to_thread(standby.promote)
            handle = await patiently_started(app, "after")
            assert await handle.wait(GOES_ON_WITHIN) == RESULT
            await asyncio.to_thread(primary.start)
            old = await asyncio.to_thread(runs_at, primary)
            await asyncio.to_thread(standby.stop)
            for key in ("one", None):
                with pytest.raises(StorageError) as caught:
                    await app.start(work.options(key=key) if key else work, 0)
                assert caught.value.retryable or isinstance(caught.value, StoreMismatchError)
            assert await asyncio.to_thread(runs_at, primary) == old
            await asyncio.to_thread(standby.start)
            again = await patiently_started(app, "after")
            assert again.run_id == handle.run_id
            assert await (await app.start(work, 0)).wait(GOES_ON_WITHIN) == RESULT
            assert await asyncio.to_thread(runs_at, primary) == old


async def test_a_start_that_only_the_primary_has_is_not_acknowledged() -> None:
    """The wait for the standby is cancelled: that is no answer. Asked for again, it is the same run, on both."""
    waits = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    with primary_and_standby() as (primary, standby):
        async with app_at(url_of_all(primary, standby), SCHEMA, LEASE, execute=False) as client:
            await asyncio.to_thread(standby.stop)
            starting = asyncio.ensure_future(client.start(work.options(key="key"), 0))
            for _ in range(3):
                await asyncio.to_thread(wait_until, lambda: primary.sql(waits) or starting.done(), "the wait")
                await asyncio.to_thread(primary.sql, f"SELECT pg_cancel_backend(pid) FROM ({waits}) AS waiting")
            with pytest.raises(RepositoryUnavailableError):
                await starting
            await asyncio.to_thread(standby.start)
            handle = await patiently_started(client, "key")
            await asyncio.to_thread(primary.kill)
            await asyncio.to_thread(standby.promote)
            assert await asyncio.to_thread(runs_at, standby) == {handle.run_id}
