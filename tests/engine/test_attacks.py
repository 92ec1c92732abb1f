"""Races and abuse that once lost signals, ran steps late, or left a run without an end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import durable
from durable import Context, Durable, RunFailedError, Status, TransitionError, step, task
from durable.core.records import Kind, Record
from durable.engine import services
from durable.store.base import Store
from tests.engine.conftest import MakeApp
from tests.engine.gate import Gate, turns


class Stage:
    """What the bodies of this module and their test share."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.effects: list[Any] = []
        self.go = asyncio.Event()
        self.there = asyncio.Event()


stage = Stage()


@pytest.fixture(autouse=True)
async def fresh_stage() -> None:
    """Each test finds the stage empty."""
    stage.reset()


def gated(make_app: MakeApp) -> tuple[Durable, Gate]:
    """An application behind a gate."""
    gates: list[Gate] = []

    def wrap(store: Store) -> Store:
        gates.append(Gate(store))
        return gates[0]

    return make_app(wrap=wrap), gates[0]


@step(name="attack_effect")
async def effect(value: object) -> object:
    stage.effects.append(value)
    return value


@task(name="attack_pair")
async def pair(ctx: Context) -> list[Any]:
    stage.there.set()
    await stage.go.wait()
    return list(await asyncio.gather(ctx.wait_for("s"), ctx.wait_for("s")))


async def test_two_calls_wait_while_one_signal_is_there(make_app: MakeApp) -> None:
    """The first call takes it, and the second gets the next one."""
    async with make_app() as app:
        handle = await app.start(pair)
        await handle.send("s", 1)
        stage.go.set()
        await turns()
        await handle.send("s", 2)
        assert await handle.wait(timeout=5) == [1, 2]


@task(name="attack_receiver")
async def receiver(ctx: Context) -> Any:
    stage.there.set()
    await stage.go.wait()
    return await ctx.wait_for("s")


async def test_a_wait_begins_while_its_signal_is_being_committed(make_app: MakeApp) -> None:
    """The signal is handed over once it is durable."""
    app, gate = gated(make_app)
    async with app:
        handle = await app.start(receiver)
        await stage.there.wait()
        gate.hold()
        sending = asyncio.ensure_future(handle.send("s", 3))
        await gate.arrived.wait()
        stage.go.set()
        await turns()
        gate.let_go()
        await sending
        assert await handle.wait(timeout=5) == 3


async def test_a_signal_comes_while_the_store_cannot_answer(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call waits for the store, and then gets the signal."""
    monkeypatch.setattr(services, "RETRY_SECONDS", 0.001)
    app, gate = gated(make_app)
    async with app:
        stage.go.set()
        handle = await app.start(receiver)
        await stage.there.wait()
        gate.failing.add("history")
        await handle.send("s", 4)
        await turns()
        gate.failing.clear()
        assert await handle.wait(timeout=5) == 4


@task(name="attack_late_signal")
async def late_signal(ctx: Context, seconds: float = 0.2) -> list[Any]:
    stage.there.set()
    got: list[Any] = []
    try:
        async with durable.timeout(seconds):
            got.append(await ctx.wait_for("s"))
    except TimeoutError:
        got.append("late")
    await ctx.wait_for("between")
    return [*got, await ctx.wait_for("s")]


async def test_a_signal_that_meets_the_timeout_is_not_lost(make_app: MakeApp) -> None:
    """A signal that was taken for a call which the timeout then cancels goes to the next call; also when the run is replayed."""
    app, gate = gated(make_app)
    async with app:
        handle = await app.start(late_signal)
        await gate.recorded(handle.run_id, "step:timer")
        gate.hold()
        await gate.arrived.wait()  # the end of the time limit
        sending = asyncio.ensure_future(handle.send("s", 7))
        await turns()
        gate.let_go()
        await sending
        await turns(200)
    async with make_app() as app:
        handle = await app.get(handle.run_id)
        await handle.send("between")
        assert await handle.wait(timeout=5) == ["late", 7]


async def test_a_process_ends_between_taking_a_signal_and_giving_the_call_up(make_app: MakeApp) -> None:
    """The next process gives the call up again, and the signal goes to the next call."""
    app, gate = gated(make_app)
    gate.fencing = lambda record: record.kind is Kind.STEP_CANCELLED

    async def meet(record: Record) -> None:
        if record.kind is Kind.STEP_COMPLETED and record.name == "timeout":
            gate.answering.set()  # the signal is taken while the end of the time limit becomes durable ...
            await turns()
            gate.hold()  # ... and the call is given up while that becomes durable

    gate.before = meet
    async with app:
        handle = await app.start(late_signal, 1.0)
        await gate.recorded(handle.run_id, "step:timer")
        gate.answering.clear()
        await handle.send("s", 7)
        await gate.asked.wait()
        await gate.arrived.wait()
        await turns()
        gate.let_go()
        await gate.fenced.wait()
        history = await gate.inner.history(handle.run_id)
        sent = next(record.seq for record in history if record.event_name == "step:signal")
        assert [record.head["signal"] for record in history if "signal" in record.head] == [sent]
    for _ in range(2):
        async with make_app() as app:
            handle = await app.get(handle.run_id)
            await turns(200)
    async with make_app() as app:
        handle = await app.get(handle.run_id)
        await handle.send("between")
        assert await handle.wait(timeout=5) == ["late", 7]


@task(name="attack_two_limits")
async def two_limits(ctx: Context) -> str:
    stage.there.set()
    try:
        async with durable.timeout(0.1):
            await ctx.wait_for("s", timeout=0.1)
    except TimeoutError:
        pass
    await effect("after")
    await ctx.wait_for("end")
    return "done"


async def test_two_time_limits_pass_at_the_same_moment(make_app: MakeApp) -> None:
    """The call has one outcome on record, and a replay takes the same path."""
    app, gate = gated(make_app)
    async with app:
        handle = await app.start(two_limits)
        await gate.recorded(handle.run_id, "step:timer")
        gate.hold()
        await gate.arrived.wait()
        await asyncio.sleep(0.1)  # until both have passed
        gate.let_go()
        while not stage.effects:
            await asyncio.sleep(0.001)
        history = await gate.inner.history(handle.run_id)
        outcomes = [record.call for record in history if record.event_name in ("step:failed", "step:cancelled")]
        assert len(outcomes) == len(set(outcomes))
    async with make_app() as app:
        handle = await app.get(handle.run_id)
        await handle.send("end")
        assert await handle.wait(timeout=5) == "done"
    assert stage.effects == ["after"]


@task(name="attack_untold")
async def leaves_a_step_behind() -> str:
    stage.go.set()
    asyncio.ensure_future(effect("late")).add_done_callback(lambda done: done.exception())
    return "done"


async def test_a_step_that_was_not_begun_when_the_body_ended_never_runs(make_app: MakeApp) -> None:
    """Nothing could record it."""
    async with make_app() as app:
        assert await (await app.start(leaves_a_step_behind)).wait(timeout=5) == "done"
        await turns()
    assert stage.effects == []


class Outlandish(BaseException):
    """No Exception, as those of some test runners."""


@task(name="attack_outlandish")
async def outlandish() -> None:
    raise Outlandish("not from here")


async def test_a_body_raises_what_is_no_exception(make_app: MakeApp) -> None:
    """The run fails; it does not stay running for ever."""
    async with make_app() as app:
        with pytest.raises(RunFailedError, match="not from here"):
            await (await app.start(outlandish)).wait(timeout=5)


@step(name="attack_large")
async def large(number: int) -> str:
    return "x" * (4 * 1024 * 1024 - 100)


@task(name="attack_large_results")
async def large_results() -> int:
    return len(await asyncio.gather(*(large(number) for number in range(17))))


async def test_many_large_results_at_once_fit_the_log(make_app: MakeApp) -> None:
    """Results that together are larger than a frame of the log do not take the application down."""
    async with make_app() as app:
        handle = await app.start(large_results)
        assert await handle.wait(timeout=60) == 17


@task(name="attack_stubborn")
async def stubborn(ctx: Context) -> str:
    if stage.there.is_set():
        return "second"
    stage.there.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await stage.go.wait()
    return "first"


async def test_a_run_is_resumed_while_its_old_body_is_ending(make_app: MakeApp) -> None:
    """It begins again when the old body is gone, also when a signal is on its way at that moment."""
    app, gate = gated(make_app)
    async with app:
        handle = await app.start(stubborn)
        await stage.there.wait()
        await handle.stop()
        await handle.resume()
        entry = app.engine.parts.table.get(handle.run_id)
        gate.hold()
        assert await handle.status() is Status.READY
        first = asyncio.ensure_future(handle.send("a"))
        await gate.arrived.wait()
        second = asyncio.ensure_future(handle.send("b"))  # staged, and not in flight, when the old body ends
        await turns()
        assert entry.unit is not None
        stage.go.set()
        await turns()
        gate.let_go()
        await asyncio.gather(first, second)
        assert await handle.wait(timeout=5) == "second"


@task(name="attack_failing")
async def failing() -> None:
    stage.effects.append("try")
    raise LookupError("nothing here")


async def test_a_run_is_retried_before_its_failure_is_durable(make_app: MakeApp) -> None:
    """Who waits is told the end of the second attempt, and the run stays in hand."""
    app, gate = gated(make_app)
    async with app:
        handle = await app.start(failing)
        gate.hold()
        waiting = asyncio.ensure_future(handle.wait())
        await gate.arrived.wait()
        await turns()
        retrying = asyncio.ensure_future(handle.retry())
        await turns()
        gate.let_go()
        try:
            await retrying
        except TransitionError:
            pytest.fail("the failure was not decided yet")
        with pytest.raises(RunFailedError, match="is failed after attempt 2"):
            await asyncio.wait_for(waiting, 5)
        await turns()
        assert app.engine.statistics()["loaded"] == 0


async def test_refused_commands_do_not_make_the_engine_forget_a_run(make_app: MakeApp) -> None:
    """A retry that follows a discard in flight is numbered behind it, whatever was refused in between."""
    app, gate = gated(make_app)
    async with app:
        handle = await app.start(failing)
        with pytest.raises(RunFailedError):
            await handle.wait(timeout=5)
        gate.hold()
        discarding = asyncio.ensure_future(app.dead_letters.discard(handle.run_id))
        await gate.arrived.wait()
        with pytest.raises(TransitionError):
            await handle.send("s")
        retrying = asyncio.ensure_future(handle.retry())
        await turns()
        gate.let_go()
        await asyncio.gather(discarding, retrying)
        with pytest.raises(RunFailedError):
            await handle.wait(timeout=5)
        kinds = [event.name async for event in handle.events(steps=True)]
        assert kinds == [
            "created", "started", "failed", "step:discarded", "resumed", "started", "failed",
        ]  # fmt: skip
