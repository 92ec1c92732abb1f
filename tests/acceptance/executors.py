"""Executors as the tests see them: processes that are started, asked, stopped and killed, and what is judged of what they left."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psycopg

from durable import Durable
from durable.core.query import RunFilter
from durable.core.records import ENDS, Kind, Record
from durable.core.run import Run, fold
from durable.store.shared import SharedStore, is_shared
from tests.acceptance.executors_worker import settings

ROOT = Path(__file__).resolve().parents[2]
#: How long anything may take that has to happen: much more than it takes on a slow machine.
SECONDS_MAX = 60.0
#: Clocks are read to the microsecond in the side file.
TICK = 0.000_01


async def until(condition: Callable[[], Awaitable[Any]], what: str, seconds: float = SECONDS_MAX) -> Any:
    """Ask until it is so: for what can only be asked."""
    try:
        async with asyncio.timeout(seconds):
            while not (found := await condition()):
                await asyncio.sleep(0.02)
            return found
    except TimeoutError:
        raise AssertionError(f"{what} did not happen within {seconds:g} s") from None


class Refused(Exception):
    """A worker was refused what it was asked to do.

    Arguments:
        kind: the class of the error there.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Executor:
    """A process of `executors_worker`."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log
        self.executor_id = ""
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._reading: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    async def ready(self) -> None:
        """Wait until it is open."""
        assert self.process.stdout is not None
        async with asyncio.timeout(SECONDS_MAX):
            line = await self.process.stdout.readline()
        assert line, self.log.read_text()
        self.executor_id = json.loads(line)["executor"]
        self._reading = asyncio.create_task(self._read(self.process.stdout))

    async def _read(self, lines: asyncio.StreamReader) -> None:
        while line := await lines.readline():
            told = json.loads(line)
            if not (asked := self._asked.pop(told["to"])).done():
                if "error" in told:
                    asked.set_exception(Refused(told["error"], told["text"]))
                else:
                    asked.set_result(told["is"])

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Have it do something; what came of it. Raises `Refused`."""
        number = next(self._numbers)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"number": number, "do": do, **arguments}).encode() + b"\n")
        async with asyncio.timeout(SECONDS_MAX):
            return await future

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        if self._reading is not None:
            self._reading.cancel()

    async def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.send(signal.SIGTERM)
        async with asyncio.timeout(SECONDS_MAX):
            return await self.process.wait()


@dataclass
class Place:
    """A store for one test, its executors, and where they note what they do."""

    url: str
    schema: str
    folder: Path
    executors: list[Executor] = field(default_factory=list)
    worker: ClassVar = "tests.acceptance.executors_worker"  # what an executor runs
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def side(self) -> Path:
        return self.folder / "side"

    @property
    def gate(self) -> Path:
        """The file that bodies wait for which hold."""
        return self.folder / "gate"

    def where(self) -> dict[str, Any]:
        """What tells an executor where the store is."""
        return {"url": self.url}

    async def executor(self, **options: Any) -> Executor:
        """Another executor, which is open."""
        given = {**self.where(), "schema": self.schema, "side": str(self.side), **options}
        log = self.folder / f"log{next(self._numbers)}"
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-W", "ignore", "-m", self.worker, json.dumps(given),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors, cwd=ROOT,
            )  # fmt: skip
        executor = Executor(process, log)
        self.executors.append(executor)
        await executor.ready()
        return executor

    async def crew(self, count: int, **options: Any) -> list[Executor]:
        return list(await asyncio.gather(*(self.executor(**options) for _ in range(count))))

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[Durable]:
        """An application here that executes nothing."""
        chosen = settings(self.schema, **options)
        async with Durable(self.url, execute=False, test_mode=True, **chosen) as app:
            yield app

    async def sql(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the store's tables; `{s}` stands for its schema."""
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            cursor = await connection.execute(query.replace("{s}", self.schema).encode(), values)
            return await cursor.fetchall()

    async def owner(self, run_id: str) -> str | None:
        """The executor that holds the run."""
        rows = await self.sql("SELECT owner FROM {s}.runs WHERE run_id = %s", run_id)
        return rows[0][0] if rows else None

    async def held_by(self, run_id: str, executor: Executor) -> None:
        """Wait until that executor holds the run."""

        async def held() -> bool:
            return await self.owner(run_id) == executor.executor_id

        await until(held, f"that executor {executor.executor_id} holds {run_id}")

    def effects(self) -> list[tuple[str, float, int]]:
        """What was done: word, time, process."""
        if not self.side.exists():
            return []
        lines = [line.split() for line in self.side.read_text().splitlines()]
        return [(word, float(at), int(pid)) for _, word, at, pid in lines]

    def words(self) -> list[str]:
        return [word for word, *_ in self.effects()]

    async def acted(self, *words: str) -> None:
        """Wait until these have been done."""

        async def done() -> bool:
            return set(words) <= set(self.words())

        await until(done, f"{words}")

    def open_gate(self) -> None:
        self.gate.touch()

    async def close(self) -> None:
        for executor in self.executors:
            await executor.kill()


# -- judging


def store_of(app: Durable) -> SharedStore:
    store = app.engine.store
    assert is_shared(store)
    return store


async def all_runs(app: Durable) -> list[tuple[Run, list[Record]]]:
    """All runs with their records."""
    store, found, after = store_of(app), list[tuple[Run, list[Record]]](), None
    while page := await store.query(RunFilter(limit=1_000, after=after)):
        histories = await store.histories([run.run_id for run in page])
        found += [(run, histories[run.run_id]) for run in page]
        after = page[-1].run_id
    return found


async def closed(place: Place, app: Durable, seconds: float = SECONDS_MAX) -> None:
    """Wait until every run is closed."""
    store = store_of(app)

    async def none_is_open() -> bool:
        return not await store.query(RunFilter(open=True, limit=1))

    try:
        await until(none_is_open, "the end of every run", seconds)
    except AssertionError as error:
        left = await place.sql("""
            SELECT r.run_id, r.task, r.status, r.due, r.owner, e.pid, r.parent_id,
                (SELECT count(*) FROM {s}.messages m WHERE m.run_id = r.run_id)
            FROM {s}.runs r LEFT JOIN {s}.executors e ON e.executor_id = r.owner WHERE r.open LIMIT 20
        """)
        raise AssertionError(f"{error}; there are {left}") from None


def recorded_words(runs: Iterable[tuple[Run, list[Record]]]) -> dict[str, float]:
    """What steps have on record that they did, and the time at which that was decided."""
    found: dict[str, float] = {}
    for _, history in runs:
        for record in history:
            if record.kind is Kind.STEP_COMPLETED and record.name in {"executors_act", "executors_hold"}:
                word = json.loads(record.payload or b"")
                assert word not in found, f"{word} is on record twice"
                found[word] = record.at
    return found


@dataclass
class Verdict:
    """What was found."""

    runs: int
    bodies: int
    repeated: int


async def judge(place: Place, app: Durable, retried: Collection[str] = ()) -> Verdict:
    """Every run ended once; its records are 1, 2, 3 ... under epochs that never go down; no step ran after it was recorded.

    Arguments:
        retried: ids of runs that were tried again by hand after they had ended.
    """
    runs = await all_runs(app)
    children: dict[str, int] = {}
    for run, history in runs:
        assert [record.seq for record in history] == list(range(1, len(history) + 1)), run.run_id
        assert fold(history) == run
        assert run.ended and run.closed
        assert sum(record.kind in ENDS for record in history) == 1 + (run.run_id in retried), run.run_id
        assert sum(record.kind is Kind.COORDINATING for record in history) <= 1, run.run_id
        if run.parent_id is not None:
            children[run.parent_id] = children.get(run.parent_id, 0) + 1
    for run, history in runs:
        own = sum(record.kind is Kind.CHILD_STARTED for record in history)
        own += sum(record.head["children"] for record in history if record.kind is Kind.CHILDREN_STARTED)
        own += sum(record.kind is Kind.COORDINATING and "coordinator" in record.head for record in history)
        if run.task not in {"executors_shares", "executors_awaits_shared"}:  # a key names one that is another's
            assert children.get(run.run_id, 0) == own, f"{run.run_id} of {run.task} notes {own} children"
    falling = await place.sql("""
        SELECT run_id, seq FROM (SELECT run_id, seq, epoch, lag(epoch) OVER (PARTITION BY run_id ORDER BY seq) AS before
        FROM {s}.records) AS r WHERE before > epoch
    """)  # fmt: skip
    assert not falling, f"records under an older epoch than what they follow: {falling}"
    recorded, effects = recorded_words(runs), place.effects()
    late = [(word, pid, at - recorded[word]) for word, at, pid in effects if at > recorded.get(word, at) + TICK]
    assert not late, f"ran again although recorded: {late}"
    done = {word for word, *_ in effects}
    assert recorded.keys() <= done
    return Verdict(len(runs), len(effects), len(effects) - len(done))
