"""Notices: heard by the others, gathered, and taken up again after the connection was lost."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from durable.store.postgres import notices
from durable.store.shared import Notice
from durable.testing.samples import run_id

from .conftest import Opener


class Ear:
    """What a store has heard."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self._news = asyncio.Event()

    def __call__(self, notice: Notice) -> None:
        self.notices.append(notice)
        self._news.set()

    @property
    def runs(self) -> set[str]:
        return {run_id for notice in self.notices for run_id in notice.runs or ()}

    async def listens(self) -> None:
        """Wait for the notice by which it is told to look at everything; it hears whatever is sent from then on."""
        await self.until(lambda: Notice(True, None, True) in self.notices)
        self.notices.clear()

    async def until(self, enough: object) -> None:
        """Wait until `enough()` is true."""
        assert callable(enough)
        async with asyncio.timeout(10):
            while not enough():
                self._news.clear()
                await self._news.wait()


async def listeners(url: str, schema: str, count: int) -> list[int]:
    """Wait until so many sessions listen; their process ids."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection, asyncio.timeout(10):
        while True:
            found = await connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE query = %s AND state = 'idle'", (f'LISTEN "{schema}_notices"',)
            )
            if len(pids := [pid for (pid,) in await found.fetchall()]) == count:
                return pids
            await asyncio.sleep(0.01)


async def test_others_hear_and_oneself_does_not(open_postgres: Opener, postgres_url: str, postgres_schema: str) -> None:
    """Another store of the same process is another; what is told within a moment is told together."""
    one, two, ears = await open_postgres(), await open_postgres(), (Ear(), Ear())
    one.listen(ears[0])
    two.listen(ears[1])
    await ears[0].listens()
    await ears[1].listens()
    one.notify(work=True)
    one.notify(runs=[run_id(1)])
    one.notify(runs=[run_id(2), run_id(1)])
    await ears[1].until(lambda: ears[1].notices)
    assert ears[1].notices == [Notice(True, frozenset({run_id(1), run_id(2)}))]
    two.notify(runs=[run_id(3)])
    await ears[0].until(lambda: ears[0].notices)
    assert ears[0].notices == [Notice(False, frozenset({run_id(3)}))]


async def test_many_runs_need_several_notices_or_one_for_all(
    open_postgres: Opener, postgres_url: str, postgres_schema: str
) -> None:
    """A notice has less than 8,000 bytes."""
    one, two, ear = await open_postgres(), await open_postgres(), Ear()
    two.listen(ear)
    await ear.listens()
    many = {run_id(number) for number in range(1000)}
    one.notify(runs=many)
    await ear.until(lambda: ear.runs == many)
    ear.notices.clear()
    one.notify(work=True, runs=[run_id(number) for number in range(5000)])
    await ear.until(lambda: ear.notices)
    assert ear.notices == [Notice(True, None)]


async def test_who_was_cut_off_looks_at_everything(
    open_postgres: Opener, postgres_url: str, postgres_schema: str
) -> None:
    """Notices may have been missed meanwhile."""
    one, two, ear = await open_postgres(), await open_postgres(), Ear()
    two.listen(ear)
    await ear.listens()
    for _ in range(2):
        (pid,) = await listeners(postgres_url, postgres_schema, 1)
        with psycopg.connect(postgres_url, autocommit=True) as killer:
            killer.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        await ear.listens()
    one.notify(runs=[run_id(1)])
    await ear.until(lambda: ear.notices == [Notice(False, frozenset({run_id(1)}))])


async def test_polling_sends_and_hears_nothing(open_postgres: Opener, postgres_url: str, postgres_schema: str) -> None:
    """For servers without notices."""
    polling, ear = await open_postgres(notify="poll"), Ear()
    polling.listen(ear)
    other, other_ear = await open_postgres(), Ear()
    other.listen(other_ear)
    await other_ear.listens()
    polling.notify(work=True)
    third = await open_postgres()
    third.notify(work=True, runs=[run_id(7)])
    await other_ear.until(lambda: other_ear.notices)
    assert other_ear.notices == [Notice(True, frozenset({run_id(7)}))]
    assert ear.notices == []


async def test_nothing_is_sent_to_nobody(
    open_postgres: Opener, postgres_url: str, postgres_schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is alone costs the server nothing; who comes is heard of at once, and told from then on."""
    monkeypatch.setattr(notices, "REPLY_SECONDS", 0.0)
    one, ear = await open_postgres(), Ear()
    one.listen(Ear())
    await listeners(postgres_url, postgres_schema, 1)

    await asyncio.sleep(0.05)  # its greeting is sent
    one.notify(work=True)
    assert one._notices is not None and one._notices._timer is None, "something is about to be sent"
    two = await open_postgres()
    two.listen(ear)
    await ear.listens()
    async with asyncio.timeout(10):
        while not ear.notices:
            one.notify(runs=[run_id(1)])
            await asyncio.sleep(0.01)
    assert ear.notices[0] == Notice(False, frozenset({run_id(1)}))
