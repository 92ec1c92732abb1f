"""Many executors, each a real process, on one PostgreSQL: killed, stopped, let go again, and asked from elsewhere.

`DURABLE_FULL=1` makes the tests as large as the issue says. What is counted is counted outside the engine: see `executors_worker.py`.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from durable import Durable, Handle, RunCancelledError, RunFailedError, Status, TransitionError
from durable.core.records import Kind
from tests.acceptance import executors_worker as shapes
from tests.acceptance.executors import (
    SECONDS_MAX,
    Executor,
    Place,
    Refused,
    all_runs,
    closed,
    judge,
    until,
)
from tests.conftest import need_postgres
from tests.support import pgserver

FULL = os.environ.get("DURABLE_FULL", "") == "1"
LEASE = 1.5
#: Where nothing is to go on because a lease has passed.
LONG_LEASE = 600.0


@pytest.fixture
async def place(postgres_url: str, postgres_schema: str, tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(postgres_url, postgres_schema, tmp_path)
    try:
        yield made
    finally:
        await made.close()


# -- 1: killed


async def started(app: Durable, numbers: range) -> list[Handle[Any]]:
    """Runs of all shapes; those that wait for a signal get it."""

    async def one(number: int) -> Handle[Any]:
        task = shapes.SHAPES[number % len(shapes.SHAPES)]
        handle = await app.start(task.options(key=f"run{number}"), f"run{number}")
        if task is shapes.signalled:
            await handle.send("go", number)
        return handle

    return list(await asyncio.gather(*map(one, numbers)))


@pytest.mark.timeout(300)
async def test_a_sigkill_each_second_loses_and_repeats_nothing(place: Place) -> None:
    """Four executors, thousands of runs; what a killed one held goes on elsewhere within a lease and a sweep."""
    seconds, count = (20, 5_000) if FULL else (6, 1_000)
    rng = random.Random(int(os.environ.get("DURABLE_SEED", "1")))
    async with place.client(lease=LEASE) as app:
        crew = set(await place.crew(4, lease=LEASE))
        starting: list[asyncio.Task[list[Handle[Any]]]] = []
        coming: list[asyncio.Task[None]] = []
        killed: list[str] = []
        since = time.monotonic()

        async def replace() -> None:
            crew.add(await place.executor(lease=LEASE))

        share = count // (seconds + 1)
        for second in range(seconds + 1):
            over = time.monotonic() + 1
            last = count if second == seconds else (second + 1) * share
            starting.append(asyncio.create_task(started(app, range(second * share, last))))
            await asyncio.sleep(rng.random())  # the kill comes at any moment of what goes on
            if second < seconds:
                if not crew:
                    await asyncio.wait(
                        [each for each in coming if not each.done()], return_when=asyncio.FIRST_COMPLETED
                    )
                victim = rng.choice(sorted(crew, key=lambda each: each.pid))
                crew.discard(victim)
                await victim.kill()
                since = time.monotonic()
                killed.append(victim.executor_id)
                coming.append(asyncio.create_task(replace()))
            await asyncio.sleep(max(0.0, over - time.monotonic()))

        async def freed() -> bool:
            return not await place.sql("SELECT 1 FROM {s}.runs WHERE owner = ANY(%s) LIMIT 1", killed)

        await until(freed, "that nothing is held by who was killed")
        freed_seconds = time.monotonic() - since
        handles = [handle for batch in starting for handle in await batch]
        assert len(handles) == count
        await closed(place, app, 180)
        ended_seconds = time.monotonic() - since
        verdict = await judge(place, app)
        await asyncio.gather(*coming)
    assert len({handle.run_id for handle in handles}) == count
    runs = (
        f"{verdict.runs} runs, {verdict.bodies} bodies of steps, {verdict.repeated} of them again before their record"
    )
    print(f"\n{len(killed)} kills, {runs}; freed {freed_seconds:.1f} s, all ended {ended_seconds:.1f} s after the last")
    assert verdict.repeated, (
        "no kill met a step between its execution and its record: the test does not do what it says"
    )


# -- 2: stopped, and let go again


async def stopped(place: Place, executor: Executor, rng: random.Random) -> int:
    """Stop an executor until others have its runs, and let it go on; how many runs it held."""

    async def count(table: str, column: str) -> int:
        rows = await place.sql(f"SELECT count(*) FROM {{s}}.{table} WHERE {column} = %s", executor.executor_id)
        return int(rows[0][0])

    async def busy() -> int:
        return await count("runs", "owner")

    async def gone() -> bool:
        return not await count("executors", "executor_id") and not await busy()

    await until(busy, "that the executor holds runs")
    await asyncio.sleep(rng.random() * 0.2)
    told = executor.log.read_text().count("lost its lease")
    executor.send(signal.SIGSTOP)
    held = await busy()
    await until(gone, "that others have its runs")
    await asyncio.sleep(rng.random() * 0.3)
    executor.send(signal.SIGCONT)

    async def back() -> str:
        rows = await place.sql(
            "SELECT executor_id FROM {s}.executors WHERE pid = %s AND executor_id <> %s",
            executor.pid,
            executor.executor_id,
        )
        return str(rows[0][0]) if rows else ""

    executor.executor_id = await until(back, "that it is another executor")
    assert executor.log.read_text().count("lost its lease") == told + 1
    return held


@pytest.mark.timeout(300)
async def test_who_was_stopped_past_its_lease_writes_nothing_stale(place: Place) -> None:
    """It finds that its lease has passed, says so, and goes on as another executor; what others made of its runs holds."""
    rounds, lease = (10 if FULL else 2), 1.0
    rng = random.Random(int(os.environ.get("DURABLE_SEED", "2")))
    async with place.client(lease=lease) as app:
        crew = await place.crew(5, lease=lease, concurrency=20)
        over = asyncio.Event()

        async def load() -> list[Handle[Any]]:
            handles: list[Handle[Any]] = []
            while not over.is_set():
                handles += await started(app, range(len(handles), len(handles) + 40))
                await asyncio.sleep(0.4)
            return handles

        loading = asyncio.create_task(load())
        held = 0
        for _ in range(rounds):
            held += sum(await asyncio.gather(*(stopped(place, each, rng) for each in rng.sample(crew, 3))))
        over.set()
        handles = await loading
        await closed(place, app, 60)
        verdict = await judge(place, app)
    print(f"\n{3 * rounds} stops of executors that held {held} runs; of {len(handles)} started: {verdict}")
    assert held


# -- 3: one key


@pytest.mark.timeout(120)
async def test_starts_of_one_key_from_four_processes_give_one_run(place: Place) -> None:
    """64 at once, for one key after the other; and the key tells the same run to all of them."""
    keys = 50 if FULL else 12
    async with place.client(lease=LONG_LEASE) as app:
        crew = await place.crew(4, lease=LONG_LEASE)
        for number in range(keys):
            name, word = shapes.leaf.name, f"key{number}"
            asked = [each.ask("start", task=name, args=[word], times=16, key=word) for each in crew]
            answers = await asyncio.gather(*asked)
            ids = {run_id for answer in answers for run_id in answer}
            assert len(ids) == 1 and sum(map(len, answers)) == 64
            assert await (await app.get(ids.pop())).wait() == word
        assert len([info async for info in app.runs()]) == keys
        assert Counter(place.words()) == {f"key{number}": 1 for number in range(keys)}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("task", [shapes.shares, shapes.awaits_shared], ids=["returned", "awaited"])
async def test_parents_on_two_executors_share_the_child_that_a_key_names(place: Place, task: Any) -> None:
    """Whoever is first brings it into being; all are told of its end."""
    async with place.client(lease=LONG_LEASE) as app:
        await place.crew(2, lease=LONG_LEASE, concurrency=4)
        keys = [f"shared{number}" for number in range(8)]
        parents = [(key, await app.start(task, f"{key}p{n}", key)) for key in keys for n in range(4)]
        for key, handle in parents:
            result = await handle
            assert key in [getattr(each, "result", each) for each in result]
        await closed(place, app)
        await judge(place, app)
        assert [place.words().count(key) for key in keys] == [1] * len(keys)
        for key in keys:
            assert await app.find(key) is not None


# -- 4: handles from anywhere


async def refused(kind: str, asked: Any) -> None:
    """It is refused with an error of this class, in another process or here."""
    with pytest.raises((Refused, TransitionError)) as caught:
        await asked
    assert getattr(caught.value, "kind", type(caught.value).__name__) == kind


@pytest.mark.timeout(120)
@pytest.mark.parametrize("asking", ["a client", "an executor"])
async def test_every_verb_reaches_a_run_that_another_executor_has(place: Place, asking: str) -> None:
    """What is legal is done when it returns; what is not is refused with the error that its executor would raise."""
    async with place.client(lease=LONG_LEASE) as app:
        owner = await place.executor(lease=LONG_LEASE)

        async def run(task: Any, *args: Any) -> Handle[Any]:
            handle = await app.start(task, *args)
            await place.acted(*([f"{args[0]}.begun"] if task is shapes.listening else [args[0]]))
            await place.held_by(handle.run_id, owner)
            return handle

        signalled, cancelled = await run(shapes.listening, "signalled"), await run(shapes.holding, "cancelled", "never")
        suspended = await run(shapes.holding, "suspended", str(place.gate))
        failed = await app.start(shapes.failing, "failed", str(place.gate))
        with pytest.raises(RunFailedError):
            await failed
        other = await place.executor(lease=LONG_LEASE)

        async def tell(handle: Handle[Any], verb: str, *args: Any) -> Any:
            if asking == "a client":
                return await getattr(handle, verb)(*args)
            return await other.ask("tell", run=handle.run_id, verb=verb, args=list(args))

        waiting = asyncio.create_task(tell(signalled, "wait"))
        events = asyncio.create_task(
            _names(signalled) if asking == "a client" else other.ask("events", run=signalled.run_id)
        )
        await tell(signalled, "send", "go", "news")
        assert await waiting == "news"
        assert "begun" in await events and (await events)[-1] == "completed"
        for verb, args in (("send", ["go", 1]), ("stop", []), ("resume", []), ("retry", [])):
            await refused("TransitionError", tell(signalled, verb, *args))

        await refused("TransitionError", tell(cancelled, "resume"))
        await refused("TransitionError", tell(cancelled, "retry"))
        await tell(cancelled, "cancel", "enough")
        assert (await cancelled.info()).reason == "enough"
        await tell(cancelled, "cancel", "again")
        with pytest.raises(RunCancelledError):
            await cancelled

        await tell(suspended, "stop", "later")
        assert await suspended.status() is Status.SUSPENDED
        place.open_gate()
        await tell(suspended, "resume")
        assert await suspended == "suspended"

        await tell(failed, "retry")
        assert await failed == "failed.again"
        assert place.words().count("failed.once") == 1
        await closed(place, app)
        await judge(place, app, {failed.run_id})


async def _names(handle: Handle[Any]) -> list[str]:
    return [event.name async for event in handle.events()]


@pytest.mark.timeout(120)
async def test_what_is_asked_of_a_run_whose_executor_is_killed_is_done_by_the_next(place: Place) -> None:
    """The sender waits until then; nothing is done twice."""
    async with place.client(lease=LEASE) as app:
        owner = await place.executor(lease=LEASE)
        names = ["sent", "cancelled", "stopped", "refused"]
        runs = {name: await app.start(shapes.listening, name) for name in names}
        await place.acted(*(f"{name}.begun" for name in names))
        for handle in runs.values():
            await place.held_by(handle.run_id, owner)
        owner.send(signal.SIGSTOP)  # it has the runs, and answers nothing
        waiting = asyncio.create_task(runs["sent"].wait())
        asked = [
            asyncio.create_task(runs["sent"].send("go", 7)), asyncio.create_task(runs["cancelled"].cancel("so")),
            asyncio.create_task(runs["stopped"].stop("so")), asyncio.create_task(runs["refused"].resume()),
        ]  # fmt: skip

        async def sent() -> bool:
            return bool((await place.sql("SELECT count(*) = 4 FROM {s}.messages"))[0][0])

        await until(sent, "that four messages wait")
        assert not any(task.done() for task in asked)
        await owner.kill()
        await place.executor(lease=LEASE)
        *_, refusal = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(refusal, TransitionError)
        assert await waiting == 7
        with pytest.raises(RunCancelledError):
            await runs["cancelled"]
        assert await runs["stopped"].status() is Status.SUSPENDED
        await runs["stopped"].cancel()
        await runs["refused"].cancel()
        await closed(place, app)
        await judge(place, app)


# -- 5: families over several executors


async def _owners(place: Place, task: Any) -> set[str]:
    rows = await place.sql("SELECT DISTINCT owner FROM {s}.runs WHERE task = %s AND owner IS NOT NULL", task.name)
    return {row[0] for row in rows}


@pytest.mark.timeout(120)
async def test_families_are_whole_wherever_their_runs_are(place: Place) -> None:
    """With two slots in each of four executors, the runs of each family go where there is room."""
    async with place.client(lease=LONG_LEASE) as app:
        crew = await place.crew(4, lease=LONG_LEASE, concurrency=2)
        starts: list[tuple[Any, tuple[Any, ...]]] = [
            (shapes.family, ("returned", 12)), (shapes.merging, ("merging",)), (shapes.nested, ("nested", 3)),
            (shapes.awaiting, ("awaiting",)), (shapes.deep, ("deep", 8)), (shapes.mapping, ("mapping",)),
            (shapes.chained, ("chained",)),
        ]  # fmt: skip
        handles = [await app.start(task, *args) for task, args in starts for _ in range(1)]
        results = [await handle for handle in handles]
        assert results[0][0] == "returned.0.coordinator" and sorted(results[0][1:]) == sorted(
            f"returned.{number}" for number in range(12)
        )
        assert results[1] == ["merging.0", "merging.1", "merging.2"]
        assert len(_leaves(results[2])) == 16
        assert results[3] == ["awaiting.own", "awaiting.left", "awaiting.right"]
        assert results[4] == "deep"
        assert results[5] == [f"mapping.{number}" for number in range(6)]
        assert results[6] == "chained!!"
        await closed(place, app)
        verdict = await judge(place, app)
        assert not verdict.repeated
        pids = {pid for *_, pid in place.effects()}
        assert len(pids) > 1 and pids <= {each.pid for each in crew}


def _leaves(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [leaf for child in value for leaf in _leaves(child.result)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "task", [shapes.holders, shapes.holder_of_holders, shapes.awaits_holders], ids=["returned", "nested", "awaited"]
)
async def test_cancelling_a_parent_cancels_its_children_on_other_executors(place: Place, task: Any) -> None:
    async with place.client(lease=LONG_LEASE) as app:
        crew = await place.crew(3, lease=LONG_LEASE, concurrency=2)
        handle = await app.start(task, "held", str(place.gate))

        async def elsewhere() -> bool:
            return len(await _owners(place, shapes.holding)) > 1

        if task is not shapes.awaits_holders:  # children that a body awaits run beside it
            await until(elsewhere, "that children are held by several executors")
        else:
            await place.acted(*(f"held.{number}" for number in range(4)))
        await handle.cancel("all of you")
        await closed(place, app)
        for run, history in await all_runs(app):
            assert run.status is Status.CANCELLED, (run.task, run.status)
            assert sum(record.kind is Kind.CANCELLED for record in history) == 1
        for each in crew:
            assert await each.stop() == 0


# -- 6: what it costs


@pytest.mark.timeout(120)
async def test_an_idle_executor_hardly_asks_anything(tmp_path: Path) -> None:
    """Less than two statements a second; the server itself says what was asked."""
    need_postgres()
    with pgserver.PostgresServer(settings={"log_statement": "all"}) as server:
        place = Place(server.url, "idle", tmp_path)
        try:
            executor = await place.executor(lease=15.0)
            assert await executor.ask("start", task=shapes.quick.name, args=[1])

            def said() -> int:
                return server.log.count("LOG:  ")

            async def quiet() -> bool:
                before = said()
                await asyncio.sleep(0.5)
                return said() == before

            await until(quiet, "that nothing is asked for half a second")
            begun, seconds = said(), 10.0
            await asyncio.sleep(seconds)  # idleness is what is measured
            asked = said() - begun
        finally:
            await place.close()
    print(f"\nan idle executor asks {asked / seconds:.1f} times a second")
    assert asked < 2 * seconds


@pytest.mark.timeout(120)
async def test_a_result_comes_soon_from_another_process(place: Place) -> None:
    """By notices and not by polling: seconds lie between two looks here."""
    async with place.client(lease=LONG_LEASE, poll=5.0) as app:
        await place.executor(lease=LONG_LEASE, poll=5.0)
        took = []
        for number in range(200 if FULL else 50):
            begun = time.perf_counter()
            handle = await app.start(shapes.quick, number)
            assert await handle.wait(timeout=SECONDS_MAX) == number + 1
            took.append(time.perf_counter() - begun)
    median, last = statistics.median(took), sorted(took)[-len(took) // 20]
    print(f"\nstart to result from another process: p50 {1e3 * median:.1f} ms, p95 {1e3 * last:.1f} ms")
    assert median < 0.1


# -- 7: shutting down


@pytest.mark.timeout(120)
async def test_sigterm_hands_runs_over_at_once(place: Place) -> None:
    """Nobody waits for the lease, which would last for minutes."""
    async with place.client(lease=LONG_LEASE) as app:
        first = await place.executor(lease=LONG_LEASE)
        words = [f"over{number}" for number in range(10)]
        handles = [await app.start(shapes.holding, word, str(place.gate)) for word in words]
        await place.acted(*words)
        second = await place.executor(lease=LONG_LEASE)
        assert await first.stop() == 0
        for handle in handles:
            await place.held_by(handle.run_id, second)
        place.open_gate()
        assert [await handle for handle in handles] == words
        await closed(place, app)
        await judge(place, app)
        assert {pid for *_, pid in place.effects()} == {first.pid, second.pid}


# -- 8: who begins when, and where


@pytest.mark.timeout(120)
async def test_priority_holds_over_executors(place: Place) -> None:
    """What waits in the store is begun in the order of its priority, whoever begins it."""
    async with place.client(lease=LONG_LEASE) as app:
        crew = await place.crew(2, lease=LONG_LEASE, concurrency=1)
        held = [await app.start(shapes.holding, f"held{number}", str(place.gate)) for number in range(2)]
        await place.acted("held0", "held1")
        low = [await app.start(shapes.leaf.options(priority=-1), f"low{number}") for number in range(6)]
        high = [await app.start(shapes.leaf.options(priority=5), f"high{number}") for number in range(6)]
        place.open_gate()
        for handle in (*held, *low, *high):
            await handle
        begun = [word[:-1] for word in place.words() if not word.startswith("held")]
        # Two begin at once, and one may be quicker than the other.
        assert begun[:5] == ["high"] * 5 and begun[7:] == ["low"] * 5
        assert len({pid for *_, pid in place.effects()}) == len(crew)


@pytest.mark.timeout(120)
async def test_a_large_family_does_not_keep_out_others(place: Place) -> None:
    async with place.client(lease=LONG_LEASE) as app:
        await place.crew(2, lease=LONG_LEASE, concurrency=1)
        big = await app.start(shapes.family, "big", 150)
        await place.acted("big.body")
        small = [await app.start(shapes.leaf, f"small{number}") for number in range(3)]
        for handle in small:
            await handle
        await big
        words = place.words()
        before = words[: max(words.index(f"small{number}") for number in range(3))]
        assert sum(word.startswith("big.") for word in before) < 100


@pytest.mark.timeout(120)
async def test_a_run_of_a_version_goes_to_who_has_it_or_says_none(place: Place) -> None:
    async with place.client(lease=LONG_LEASE) as app:
        starter = await place.executor(lease=LONG_LEASE, execute=False, version="2")
        one = await place.executor(lease=LONG_LEASE, version="1")

        async def start(word: str) -> Handle[Any]:
            (run_id,) = await starter.ask("start", task="executors_versioned", args=[word])
            return await app.get(run_id)

        first = await start("first")
        assert await (await app.start(shapes.leaf, "meanwhile")).wait() == "meanwhile"
        assert await first.status() is Status.READY and await place.owner(first.run_id) is None
        two = await place.executor(lease=LONG_LEASE, version="2")
        assert await first == "first"
        assert await two.stop() == 0
        second = await start("second")
        none = await place.executor(lease=LONG_LEASE, version="")
        assert await second == "second"
        by = {word: pid for word, _, pid in place.effects()}
        assert (by["first"], by["second"], by["meanwhile"]) == (two.pid, none.pid, one.pid)
