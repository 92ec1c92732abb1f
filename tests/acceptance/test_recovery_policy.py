"""What becomes of runs whose process is gone, and who decides that: handlers, reasons, bounds, versions.

The weaknesses W18 to W29 of taskflow (section 15.2 of what was found in it), and what shows that ours has them not:

| # | weakness | shown by |
|---|---|---|
| W18 | one task at a time | `test_w18_runs_go_on_side_by_side` |
| W19 | no timeouts | `test_w19_a_default_timeout_bounds_an_attempt_that_sets_none`, `tests/engine/test_runs.py` |
| W20 | recovery never finishes; ten stale ones starve the rest | `test_w20_a_thousand_interrupted_runs_go_on_a_few_at_a_time` |
| W21 | a live run executed twice | `tests/acceptance/test_executors.py::test_who_was_stopped_past_its_lease_writes_nothing_stale` |
| W22 | no claim across processes | `tests/store/postgres/test_claims.py::test_many_claim_at_once_and_each_run_is_held_once` |
| W23 | recovery outside slots, retries, abort and shutdown | `test_w23_a_recovered_run_has_slots_retries_timeouts_and_cancel` |
| W24 | aborting a generator is an unhandled rejection | `test_w24_a_generator_that_is_cancelled_ends_once` |
| W25 | what a generator returns is lost | `tests/acceptance/test_api_contract_families.py::test_a_generator_task` |
| W26 | a start with a key waits for a recovery | `test_w26_a_start_with_a_key_does_not_wait_for_the_recovery` |
| W27 | retries by the text of messages | `tests/acceptance/test_api_contract_tasks.py::test_what_ends_the_attempts_at_once` |
| W28 | a crash resets attempts; no jitter | `test_w28_a_crash_between_attempts_resets_nothing`, `tests/core/test_retry.py` |
| W29 | what a key promises ends with the process | `test_w29_a_key_is_good_after_the_end_and_over_processes` |

What else is promised of recovery and shown elsewhere: `auto_recover=False` in
`tests/acceptance/test_api_contract_crash.py::test_a_task_that_does_not_recover_by_itself` and
`tests/engine/test_recovery.py::test_a_run_that_needs_its_user_waits_for_a_fresh_start`; versions over executors in
`tests/acceptance/test_executors.py::test_a_run_of_a_version_goes_to_who_has_it_or_says_none`.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import warnings
from ast import literal_eval
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import Config, Context, Durable, Handle, Limits, Retry, RunTimedOutError, Status, step, task
from durable.config import EngineSettings, PostgresSettings
from durable.errors import DurableError, RunCancelledError
from durable.store import LocalStore
from durable.tasks.registry import find_task
from durable.testing.crash import CrashingStore, crash_everywhere
from tests.acceptance.contract_support import lives, until_event, until_status
from tests.cli.workers import cli

QUICK = EngineSettings(shutdown_grace_seconds=0.2, cancel_grace_seconds=0.2)


# --- the handler ------------------------------------------------------------------------------------------------------------------


def test_a_handler_is_given_the_run_and_what_it_emitted(tmp_path: Path) -> None:
    """As `async (task, ctx) => {recovered, result}`: the context with the events of before, the arguments; plain or async."""
    output, notes = lives(
        tmp_path,
        """
        @dataclass
        class Submitted:
            job: str

        def asked(ctx: Context, name: str) -> str:
            (known,) = ctx.past(Submitted)
            return f"{ctx.recovered} {ctx.recovery_reason} {ctx.attempt} {known.job} {[e.name for e in ctx.previous_events]} {name}"

        async def generating(ctx: Context, name: str):
            yield "looked", [event.name for event in ctx.previous_events]
            yield Result("generated")

        async def run(ctx: Context, name: str) -> str:
            note(f"body {name}")
            await ctx.emit(Submitted(f"job of {name}"))
            await asyncio.sleep(60)
            return "body"

        plain = task(name="plain", recovery=asked)(run)
        by_generator = task(name="by_generator", recovery=generating)(run)

        async def main():
            async with Durable(FOLDER) as app:
                one, two = await plain.options(key="1").start("one"), await by_generator.options(key="2").start("two")
                if LIFE == 1:
                    async for event in one.events():
                        if event.name == "Submitted":
                            break
                    async for event in two.events():
                        if event.name == "Submitted":
                            break
                    die()
                print([await one, await two, [(e.name, e.data) for e in [e async for e in two.events()] if e.name == "looked"]])
        """,
    )
    assert literal_eval(output) == [
        "True crash 1 job of one ['Submitted'] one",
        "generated",
        [("looked", ["Submitted"])],
    ]
    assert sorted(notes) == ["body one", "body two"]


def test_a_handler_s_steps_are_recorded_and_survive_a_crash_in_it(tmp_path: Path) -> None:
    """Died in the body, then in the handler: no step that was recorded runs again, neither the body's nor the handler's."""
    output, notes = lives(
        tmp_path,
        """
        @step
        async def act(word: str) -> str:
            note(word)
            return word

        @task
        async def child(word: str) -> str:
            return await act(word)

        async def handler(ctx: Context) -> list:
            found = [await act("of the body"), await act("of the handler"), await child("of a child"), durable.uuid4().hex]
            await durable.sleep(0.01)
            await ctx.emit("handled", LIFE)
            if LIFE == 2:
                note(found[-1])
                die()
            return found

        @task(recovery=handler)
        async def body(ctx: Context) -> list:
            await act("of the body")
            note("dies in the body")
            die()

        async def main():
            async with Durable(FOLDER) as app:
                print(await (await body.options(key="k").start()))
        """,
        count=3,
    )
    assert notes[:4] == ["of the body", "dies in the body", "of the handler", "of a child"]
    assert literal_eval(output) == ["of the body", "of the handler", "of a child", notes[4]]
    assert len(notes) == 5


def test_a_handler_may_have_the_body_run_again_after_steps_of_its_own(tmp_path: Path) -> None:
    """RERUN: the body is replayed strictly, as its record says, whatever the handler did, as often as the process dies."""
    output, notes = lives(
        tmp_path,
        """
        @step
        async def act(word: str) -> str:
            note(word)
            return word

        async def handler(ctx: Context) -> object:
            await act(f"handler {LIFE}")
            await act("looked up")
            await durable.sleep(0.01)
            try:
                async with asyncio.timeout(0.01):
                    await slow()
            except TimeoutError:
                pass
            return RERUN

        @step
        async def slow() -> str:
            await asyncio.sleep(0.05 if LIFE == 4 else 60)
            return "slept"

        @task(recovery=handler)
        async def body(ctx: Context) -> list:
            found = await asyncio.gather(act("left"), act("right"))
            await durable.sleep(0.01)
            if LIFE == 1:
                die()
            found.append(await act("looked up"))
            if LIFE < 4:
                die()
            return [*found, await slow(), ctx.attempt]

        async def main():
            async with Durable(FOLDER) as app:
                print(await (await body.options(key="k").start()))
        """,
        count=4,
    )
    assert literal_eval(output) == ["left", "right", "looked up", "slept", 1]
    assert notes == ["left", "right", "handler 2", "looked up", "handler 3", "handler 4"]


def test_a_handler_that_raises_is_a_failed_attempt(tmp_path: Path) -> None:
    """With an attempt left the body runs again, from its recorded steps; without one the run has failed, with the handler's error."""
    output, notes = lives(
        tmp_path,
        """
        @step
        async def act(word: str) -> str:
            note(word)
            return word

        def handler(ctx: Context, word: str) -> str:
            raise LookupError(f"no job {word}")

        async def work(ctx: Context, word: str) -> list:
            await act(word)
            await ctx.emit("acted")
            if LIFE == 1:
                await asyncio.sleep(60)
            return [ctx.attempt, ctx.recovered, ctx.recovery_reason, ctx.previous_error]

        twice = task(name="twice", retry=Retry(2, delay=0.01), recovery=handler)(work)
        once = task(name="once", recovery=handler)(work)

        async def main():
            async with Durable(FOLDER) as app:
                both = [await twice.options(key="2").start("a"), await once.options(key="1").start("b")]
                if LIFE == 1:
                    for handle in both:
                        async for event in handle.events():
                            if event.name == "acted":
                                break
                    die()
                try:
                    await both[1]
                except RunFailedError as error:
                    print([await both[0], error.error_type, error.message])
        """,
    )
    assert literal_eval(output) == [[2, False, None, "no job a"], "builtins.LookupError", "no job b"]
    assert sorted(notes) == ["a", "b"]


def test_a_handler_that_waits_for_a_signal_goes_on_over_a_crash(tmp_path: Path) -> None:
    """What it waits for is on record; what it took it does not take twice, and the body's signals are the body's."""
    output, _ = lives(
        tmp_path,
        """
        async def handler(ctx: Context) -> list:
            first = await ctx.wait_for("go")
            await ctx.emit("took", first)
            if LIFE == 2:
                await asyncio.sleep(60)
            return [first, await ctx.wait_for("go")]

        @task(recovery=handler)
        async def body(ctx: Context) -> list:
            await ctx.emit("has", await ctx.wait_for("go"))
            await asyncio.sleep(60)
            return []

        async def until(handle, name):
            async for event in handle.events():
                if event.name == name:
                    return

        async def main():
            async with Durable(FOLDER) as app:
                handle = await body.options(key="k").start()
                await handle.send("go", LIFE)
                if LIFE < 3:
                    await until(handle, "has" if LIFE == 1 else "took")
                    die()
                print(await handle)
        """,
        count=3,
    )
    assert literal_eval(output) == [2, 3]


# --- reasons ----------------------------------------------------------------------------------------------------------------------


def answering(ctx: Context) -> list[Any]:
    return ["handler", ctx.attempt, ctx.recovered, ctx.recovery_reason]


async def dawdling(ctx: Context) -> list[Any]:
    if ctx.attempt == 1:
        await asyncio.sleep(60)
    return ["body", ctx.attempt, ctx.recovered, ctx.recovery_reason]


timed = task(name="policy_timed", timeout=0.05, retry=Retry(2, delay=0.01))(dawdling)
timed_handled = task(name="policy_timed_handled", timeout=0.05, retry=Retry(2, delay=0.01), recovery=answering)(
    dawdling
)


@pytest.fixture(params=["folder", "postgres"])
def application(request: pytest.FixtureRequest, tmp_path: Path) -> Durable:
    """An application on a store of each kind."""
    if request.param == "folder":
        return Durable(tmp_path / "store", config=Config(engine=QUICK))
    url, schema = request.getfixturevalue("postgres_url"), request.getfixturevalue("postgres_schema")
    return Durable(url, config=Config(engine=QUICK, postgres=PostgresSettings(schema=schema)))


async def test_the_attempt_after_a_timeout_says_so(application: Durable) -> None:
    """`timeout`: in the body of the next attempt, and in the handler, which decides there as it does after a crash."""
    async with application as app:
        assert await (await app.start(timed)) == ["body", 2, True, "timeout"]
        assert await (await app.start(timed_handled)) == ["handler", 2, True, "timeout"]


@task(name="policy_leased")
async def leased(ctx: Context) -> list[Any]:
    await ctx.emit("begun")
    if not ctx.recovered:
        await asyncio.sleep(60)
    return [ctx.attempt, ctx.recovered, ctx.recovery_reason]


DIES = """
import asyncio, os, signal, sys
from durable import Config, Durable
from durable.config import PostgresSettings
from tests.acceptance.test_recovery_policy import leased

async def main():
    async with Durable(sys.argv[1], config=Config(postgres=PostgresSettings(schema=sys.argv[2], lease_seconds=0.5))) as app:
        handle = await leased.options(key="k").start()
        async for event in handle.events():
            if event.name == "begun":
                os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_a_run_whose_lease_has_passed_is_stale(postgres_url: str, postgres_schema: str) -> None:
    """In a database: whoever takes it cannot know whether the process that had it is dead, or only cut off."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", DIES, postgres_url, postgres_schema],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -9, done.stderr
    settings = PostgresSettings(schema=postgres_schema, lease_seconds=0.5)
    async with Durable(postgres_url, config=Config(engine=QUICK, postgres=settings)) as app:
        handle = await app.find("k")
        assert handle is not None
        assert await handle.wait(20) == [1, True, "stale"]


def test_a_process_that_closed_in_order_is_no_reason(tmp_path: Path) -> None:
    """What it handed back goes on, and knows that it does; nothing went wrong."""

    async def body(ctx: Context) -> list[Any]:
        await ctx.emit("begun")
        if not ctx.recovered:
            await asyncio.sleep(60)
        return [ctx.recovered, ctx.recovery_reason]

    handed = task(name="policy_handed")(body)

    async def main() -> Any:
        async with Durable(tmp_path / "store", config=Config(engine=QUICK)) as app:
            await until_event(await app.start(handed.options(key="k")), "begun")
        async with Durable(tmp_path / "store", config=Config(engine=QUICK)) as app:
            handle = await app.find("k")
            assert handle is not None
            return await handle

    assert asyncio.run(main()) == [True, None]


# --- how many at once -----------------------------------------------------------------------------------------------------------------

SEEN = {"inside": 0, "most": 0, "effects": 0}


@step(name="policy_effect")
async def effect(number: int) -> int:
    SEEN["effects"] += 1
    return number


class Replaying:
    """How many bodies are between their beginning and the last step that is on record of them."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.is_crashed = False


NOW: list[Replaying] = []


@task(name="policy_interrupted")
async def interrupted(number: int) -> int:
    now = NOW[-1]
    if not now.is_crashed:
        await effect(number)
        await asyncio.sleep(3600)
    SEEN["inside"] += 1
    SEEN["most"] = max(SEEN["most"], SEEN["inside"])
    await now.open.wait()
    value = await effect(number)
    SEEN["inside"] -= 1
    return value


@task(name="policy_fresh")
async def fresh() -> str:
    return "fresh"


async def crashed_store(folder: Path, count: int) -> None:
    """A folder in which so many runs were executing when the process died."""
    store = CrashingStore(LocalStore(folder))
    NOW.append(Replaying())
    app = Durable(store, config=Config(engine=QUICK))
    await app.open()
    SEEN["effects"] = 0
    for start in range(0, count, 200):
        await asyncio.gather(*(app.start(interrupted, number) for number in range(start, min(start + 200, count))))
    async with asyncio.timeout(60):
        while SEEN["effects"] < count or len(store.recorded) < count:
            await asyncio.sleep(0.01)
    store.crashed.set()
    with pytest.raises(DurableError):
        await app.start(fresh)
    await app.close()


@pytest.mark.timeout(180)
async def test_w20_a_thousand_interrupted_runs_go_on_a_few_at_a_time(tmp_path: Path) -> None:
    """`max_concurrent_recoveries`: never more repeat their record at once; new runs begin meanwhile; all end, no step runs again."""
    count, most = 1000, 7
    await crashed_store(tmp_path / "store", count)
    SEEN.update(inside=0, most=0, effects=0)
    now = Replaying()
    now.is_crashed = True
    NOW.append(now)
    config = Config(engine=EngineSettings(max_concurrent_recoveries=most, shutdown_grace_seconds=0.2))
    async with Durable(tmp_path / "store", config=config, limits=Limits(max_running=100)) as app:
        async with asyncio.timeout(30):
            while SEEN["inside"] < most:
                await asyncio.sleep(0.005)
        assert await (await app.start(fresh)) == "fresh"
        assert (await app.stats()).recovering == count
        assert SEEN["inside"] == most
        now.open.set()
        results = [await (await app.get(info.run_id)) async for info in app.runs(task="policy_interrupted")]
        assert sorted(results) == list(range(count))
        assert (await app.stats()).recovering == 0
    assert (SEEN["most"], SEEN["effects"]) == (most, 0)


async def test_who_waits_for_a_place_can_be_cancelled_and_is_there_after_a_restart(tmp_path: Path) -> None:
    """Closing while runs wait to go on after a crash changes nothing of them, and counts as no recovery."""
    await crashed_store(tmp_path / "store", 4)
    SEEN.update(inside=0, most=0, effects=0)
    now = Replaying()
    now.is_crashed = True
    NOW.append(now)
    config = Config(engine=EngineSettings(max_concurrent_recoveries=1, shutdown_grace_seconds=0.05))
    async with Durable(tmp_path / "store", config=config) as app:
        async with asyncio.timeout(10):
            while not SEEN["inside"]:
                await asyncio.sleep(0.005)
        infos = [info async for info in app.runs(task="policy_interrupted")]
        assert sorted(info.recoveries for info in infos) == [0, 0, 0, 1]
        waiting = [info.run_id for info in infos if not info.recoveries]
        cancelled = await app.get(waiting[0])
        await cancelled.cancel("no need")
        with pytest.raises(RunCancelledError):
            await cancelled
    now.open.set()
    async with Durable(tmp_path / "store", config=config) as app:
        for run_id in waiting[1:]:
            handle = await app.get(run_id)
            await handle
            assert (await handle.info()).recoveries == 1


# --- bounds ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "bound"), [("max_recoveries=1", 1), ("", 2), ("max_recoveries=0", 0)])
def test_max_recoveries_of_the_engine_and_of_a_task(tmp_path: Path, options: str, bound: int) -> None:
    """A body that kills its process: the task's own bound counts before the engine's, and the end says what it may be."""
    output, notes = lives(
        tmp_path,
        """
        from durable.config import EngineSettings

        @task(OPTIONS)
        async def deadly() -> None:
            note("body")
            die()

        async def main():
            async with Durable(FOLDER, config=Config(engine=EngineSettings(max_recoveries=2))) as app:
                try:
                    await (await deadly.options(key="k").start())
                except RunFailedError as error:
                    print(error.message)
        """.replace("OPTIONS", options),
        count=bound + 2,
    )
    assert "the body may be what ends the process" in output
    assert len(notes) == bound + 1


@task(name="policy_unbounded")
async def unbounded(seconds: float) -> str:
    await durable.sleep(seconds)
    return "done"


@task(name="policy_bounded", timeout=30)
async def bounded(seconds: float) -> str:
    await durable.sleep(seconds)
    return "done"


@task(name="policy_starting")
async def starting(seconds: float) -> str:
    try:
        return await unbounded(seconds)
    except RunTimedOutError:
        return "its child timed out"


async def test_w19_a_default_timeout_bounds_an_attempt_that_sets_none(tmp_path: Path) -> None:
    """`engine.default_timeout_seconds`; a task's own, or a start's, counts before it; children have it too."""
    config = Config(engine=EngineSettings(default_timeout_seconds=0.2, shutdown_grace_seconds=0.1))
    async with Durable(tmp_path / "store", config=config) as app:
        with pytest.raises(RunTimedOutError):
            await (await app.start(unbounded, 60))
        assert await (await app.start(bounded, 0.3)) == "done"
        assert await (await app.start(unbounded.options(timeout=30), 0.3)) == "done"
        assert await (await app.start(starting.options(timeout=30), 60)) == "its child timed out"


# --- versions ---------------------------------------------------------------------------------------------------------------------


def define(version: str | None) -> Any:
    """The task as one version of the code has it."""

    async def versioned(ctx: Context) -> str:
        await ctx.emit("begun")
        return f"by {version}"

    versioned.__qualname__ = "versioned"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return task(name="policy_versioned", version=version)(versioned)


async def test_a_run_of_a_version_that_nobody_has_waits_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In a folder: it waits, says so wherever it is asked, and goes on by itself once the code of its version is there."""
    folder = tmp_path / "store"
    config = Config(engine=QUICK)
    first = define("1")
    async with Durable(folder, config=config) as app:
        run_id = (await app.start(first.options(delay=0.3, key="k"))).run_id
    del first
    second = define("2")
    with caplog.at_level(logging.WARNING, "durable"):
        async with Durable(folder, config=config) as app:
            handle = await app.get(run_id)
            async with asyncio.timeout(10):
                while not (await app.stats()).orphaned:
                    await asyncio.sleep(0.01)
            assert (await app.stats()).orphans == {"policy_versioned 1": 1}
            waits_for = (await handle.info()).waits_for
            assert waits_for is not None
            for said in ("version '1'", "version '2'", "on by itself", "cancel it"):
                assert said in waits_for
            assert "no imported module defines its task 'policy_versioned' in version '1'" in caplog.text
            shown = (await asyncio.to_thread(cli, "why", "k", "--store", str(folder))).out
            assert "it needs code of version '1' of its task 'policy_versioned'" in shown
            assert await (await app.start(second)) == "by 2"  # others go on
            assert await handle.status() is Status.READY
            third = define("1")
            assert await handle.wait(10) == "by 1"
            assert (await handle.info()).waits_for is None
            assert (await app.stats()).orphans == {}
            assert find_task("policy_versioned") is third.definition


@pytest.mark.parametrize(("of_run", "of_code"), [(None, "2"), ("1", None), ("2", "2")])
async def test_no_version_on_either_side_fits_all(tmp_path: Path, of_run: str | None, of_code: str | None) -> None:
    first = define(of_run)
    async with Durable(tmp_path / "store", config=Config(engine=QUICK)) as app:
        run_id = (await app.start(first.options(delay=0.1))).run_id
    code = define(of_code)
    async with Durable(tmp_path / "store", config=Config(engine=QUICK)) as app:
        assert await (await app.get(run_id)).wait(10) == f"by {of_code}"
    assert code is not first


async def test_a_start_of_code_that_was_replaced_waits_for_it(tmp_path: Path) -> None:
    """A `Task` that another version has replaced can still be started; what runs is never the other version."""
    old = define("1")
    new = define("2")
    async with Durable(tmp_path / "store", config=Config(engine=QUICK)) as app:
        handle = await app.start(old)
        assert await (await app.start(new)) == "by 2"
        assert await handle.status() is Status.READY
        again = define("1")
        assert await handle.wait(10) == "by 1"
    assert again is not old


async def test_in_a_database_the_versions_that_are_there_are_named(postgres_url: str, postgres_schema: str) -> None:
    """`durable why` and `info()`: which version the run is of, and which ones executors that are alive have."""
    config = Config(engine=QUICK, postgres=PostgresSettings(schema=postgres_schema))
    old = define("1")
    async with Durable(postgres_url, config=config, execute=False) as client:
        handle = await client.start(old.options(key="k"))
        new = define("2")
        async with Durable(postgres_url, config=config) as worker:
            assert await (await worker.start(new)) == "by 2"
            waits_for = (await handle.info()).waits_for
            assert waits_for is not None
            assert "version '1'" in waits_for and "version '2'" in waits_for
            words = ("why", "k", "--store", postgres_url, "--schema", postgres_schema)
            shown = (await asyncio.to_thread(cli, *words)).out
            assert "none that is alive knows its task 'policy_versioned' in version '1'" in shown
            assert "executors that are alive know that task in version '2'" in shown
            again = define("1")
            assert await handle.wait(20) == "by 1"
            assert (await handle.info()).waits_for is None
    assert again is not old


# --- what taskflow gets wrong ---------------------------------------------------------------------------------------------------------


async def test_w18_runs_go_on_side_by_side(tmp_path: Path) -> None:
    """A hundred bodies at once, none of which ends before all have begun; a retry that waits blocks nobody."""
    begun = asyncio.Barrier(100)

    async def body() -> int:
        async with asyncio.timeout(20):
            return int(await begun.wait() >= 0)

    together = task(name="policy_together")(body)
    async with Durable(tmp_path / "store", config=Config(engine=QUICK)) as app:
        handles = await asyncio.gather(*(app.start(together) for _ in range(100)))
        assert sum([await handle for handle in handles]) == 100


def test_w23_a_recovered_run_has_slots_retries_timeouts_and_cancel(tmp_path: Path) -> None:
    """What goes on after a crash is an attempt like any other: bounded by slots and its timeout, tried again, cancelled, handed back."""
    output, _ = lives(
        tmp_path,
        """
        inside = most = 0

        @task
        async def slotted(ctx: Context) -> int:
            global inside, most
            await ctx.emit("begun")
            if LIFE == 1:
                await asyncio.sleep(60)
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.02)
            inside -= 1
            return most

        @task(retry=Retry(2, delay=0.01))
        async def failing(ctx: Context) -> int:
            await ctx.emit("begun")
            if LIFE == 1:
                await asyncio.sleep(60)
            if ctx.attempt == 1:
                raise OSError("once more")
            return ctx.attempt

        @task(timeout=0.3)
        async def hanging(ctx: Context) -> None:
            await ctx.emit("begun")
            if LIFE == 1:
                die_soon()
            await asyncio.sleep(60)

        @task
        async def cancelled(ctx: Context) -> None:
            await ctx.emit("begun")
            await asyncio.sleep(60)

        def die_soon():
            asyncio.get_running_loop().call_later(0.2, die)

        async def main():
            async with Durable(FOLDER, limits=Limits(max_running=100 if LIFE == 1 else 3)) as app:
                many = [await slotted.options(key=f"{n}").start() for n in range(12)]
                tried, stopped = await failing.options(key="f").start(), await cancelled.options(key="c").start()
                late = await hanging.options(key="h").start()
                if LIFE == 2:
                    await stopped.cancel()
                seen = max([await handle for handle in many])
                ends = []
                for handle in (late, stopped):
                    try:
                        await handle
                    except DurableError as error:
                        ends.append(type(error).__name__)
                print([seen, await tried, ends])
        """,
    )
    seen, attempts, ends = literal_eval(output)
    assert 1 <= seen <= 3
    assert (attempts, ends) == (2, ["RunTimedOutError", "RunCancelledError"])


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_w24_a_generator_that_is_cancelled_ends_once(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Cancelled, or caught by a close in the middle: its `finally` runs, the end is on record once, and nothing is unhandled."""
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unhandled.append(context))
    closed: list[str] = []

    async def body() -> Any:
        try:
            yield "tick", 1
            await asyncio.sleep(60)
        finally:
            closed.append("finally")

    ticking = task(name="policy_ticking")(body)
    async with Durable(tmp_path / "store", config=Config(engine=QUICK)) as app:
        handle: Handle[Any] = await app.start(ticking)
        await until_event(handle, "tick")
        if how == "cancel":
            await handle.cancel()
            with pytest.raises(RunCancelledError):
                await handle
            assert [event.name async for event in handle.events()] == ["created", "started", "tick", "cancelled"]
            await until_status(handle, "cancelled")
    assert (closed, unhandled) == (["finally"], [])
    assert "Traceback" not in caplog.text


def test_w26_a_start_with_a_key_does_not_wait_for_the_recovery(tmp_path: Path) -> None:
    """The handle comes at once, of the same run, while that is being recovered; ready and cancelled runs make no second one."""
    shown, notes = lives(
        tmp_path,
        """
        @task
        async def slow(ctx: Context) -> str:
            await ctx.emit("begun")
            await ctx.wait_for("go")
            return "done"

        @task
        async def later() -> str:
            return "later"

        async def main():
            async with Durable(FOLDER) as app:
                handle, ready, cancelled = [
                    await each.start() for each in
                    (slow.options(key="k"), later.options(key="r", delay=0.6), later.options(key="c", delay=60))
                ]
                await cancelled.cancel()
                if LIFE == 1:
                    note(f"{handle.run_id} {ready.run_id} {cancelled.run_id}")
                    async for event in handle.events():
                        if event.name == "begun":
                            die()
                assert await handle.status() == "running"
                await handle.send("go")
                print([handle.run_id, ready.run_id, cancelled.run_id, await handle, await ready, str(await cancelled.status())])
        """,
    )
    *ids, done, late, status = literal_eval(shown)
    assert notes == [" ".join(ids)]
    assert (done, late, status) == ("done", "later", "cancelled")


def test_w28_a_crash_between_attempts_resets_nothing(tmp_path: Path) -> None:
    """The count of attempts, the time to wait and what failed are on record."""
    output, notes = lives(
        tmp_path,
        """
        @task(retry=Retry(3, delay=0.2))
        async def failing(ctx: Context) -> int:
            note(f"attempt {ctx.attempt}")
            if ctx.attempt < 3:
                raise OSError(f"attempt {ctx.attempt} failed")
            return [ctx.attempt, ctx.previous_error]

        async def main():
            async with Durable(FOLDER) as app:
                handle = await failing.options(key="k").start()
                if LIFE == 1:
                    async for event in handle.events():
                        if event.name == "retrying":
                            die()
                print(await handle)
        """,
    )
    assert literal_eval(output) == [3, "attempt 2 failed"]
    assert notes == ["attempt 1", "attempt 2", "attempt 3"]


def test_w29_a_key_is_good_after_the_end_and_over_processes(tmp_path: Path) -> None:
    """The same key gives the same run after it has ended, in another process too; its body does not run again."""
    output, notes = lives(
        tmp_path,
        """
        @task
        async def once() -> int:
            note("ran")
            return 1

        async def main():
            async with Durable(FOLDER) as app:
                handle = await once.options(key="k").start()
                print([handle.run_id, await handle])
                if LIFE == 1:
                    note(handle.run_id)
                    die()
        """,
    )
    run_id, result = literal_eval(output)
    assert (notes, result) == (["ran", run_id], 1)


# --- a crash at every commit ----------------------------------------------------------------------------------------------------------


@step(name="policy_act")
async def act(word: str) -> str:
    return word


async def look_first(ctx: Context, rerun: bool) -> Any:
    found = [await act("handler"), await act("shared")]
    await durable.sleep(0.001)
    await ctx.emit("looked", len(found))
    return durable.RERUN if rerun else ["left", "right", "shared"]


@task(name="policy_everywhere", recovery=look_first)
async def everywhere(ctx: Context, rerun: bool) -> list[str]:
    both = await asyncio.gather(act("left"), act("right"))
    await ctx.emit("half")
    await durable.sleep(0.001)
    return [*both, await act("shared")]


@pytest.mark.parametrize("rerun", [True, False])
async def test_a_crash_at_every_commit_changes_no_result(rerun: bool) -> None:
    """Of the body and of the handler: no recorded step runs again, and the outcome is the same."""
    report = await crash_everywhere(everywhere, rerun)
    assert report.result == ["left", "right", "shared"]
    assert report.crashes >= 2 * report.commits
