"""What was wrong with the streams of taskflow (W37 to W44 of section 15.4), and is not here."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

import pytest

from durable import Event, RunFailedError, ShuttingDownError
from durable.core.records import Kind, Record
from durable.events.ring import BATCH, Ring
from tests.events.conftest import MakeApp
from tests.events.tasks import Tail, bulk, failing, more, nobody_reads, on_demand, own, steady, streams, ticks


async def test_w37_what_comes_while_a_reader_handles_an_event_is_delivered_also_when_the_stream_closes(
    make_app: MakeApp,
) -> None:
    """The reader is busy with its first event until the run has ended; it sees all the rest, the end included."""
    async with make_app(buffer_size=4) as app:
        handle = await app.start(steady, 20)
        seen: list[Event] = []
        async for event in handle.events():
            if not seen:
                await handle.wait()
            seen.append(event)
        assert ticks(seen) == list(range(20))
        assert seen[-1].name == "completed"


async def test_w38_what_came_while_a_reader_was_busy_needs_no_further_event(make_app: MakeApp) -> None:
    """Nothing comes after it, and the run does not end: still it is delivered."""
    async with make_app() as app:
        handle = await app.start(on_demand)
        stream = handle.events()
        assert (await anext(stream)).name == "created"  # from here on it is busy
        await more(handle, 3)
        async with asyncio.timeout(5):
            seen = [await anext(stream)]
            while seen[-1].name != "done":
                seen.append(await anext(stream))
        assert own(seen) == [("tick", 0), ("tick", 1), ("tick", 2), ("done", 3)]
        await stream.aclose()  # type: ignore[attr-defined]
        await handle.cancel()


@pytest.mark.parametrize("buffer_size", [1, 2, 3, 7])
async def test_w39_a_reader_at_the_edge_of_the_buffer_sees_all_and_a_fresh_one_too(
    make_app: MakeApp, buffer_size: int
) -> None:
    """From each `after`, with buffers that hold less than the run, live and when it has ended: exactly what comes after it."""
    async with make_app(buffer_size=buffer_size) as app:
        handle = await app.start(on_demand)
        fresh = Tail(handle.events(steps=True))
        await more(handle, 8)
        last = (await handle.info()).last_seq
        tails = [Tail(handle.events(after, steps=True)) for after in range(last + 1)]
        await more(handle, 8)
        await more(handle, 0)
        await handle.wait()
        everything = await fresh.end()
        seqs = [event.seq for event in everything]
        assert seqs == list(range(1, len(seqs) + 1)) and ticks(everything) == list(range(16))
        for after, tail in enumerate(tails):
            assert await tail.end() == everything[after:]
        for after in range(len(everything) + 3):
            assert [event async for event in handle.events(after, steps=True)] == everything[after:]


async def test_w40_the_stream_of_a_run_that_is_tried_again_goes_on(make_app: MakeApp) -> None:
    """Asked for again while its old stream is kept: no old end is taken for the new one, and the old timer forgets nothing."""
    async with make_app(retention_seconds=0.2) as app:
        handle = await app.start(failing.options(key="order"), "word")
        first = [event async for event in handle.events()]
        assert first[-1].name == "failed" and streams(app).retained == 1
        with pytest.raises(RunFailedError):
            await handle
        assert [event async for event in app.subscribe("order", after=first[-1].seq)] == []
        await handle.retry()
        second = await Tail(app.subscribe("order", after=first[-1].seq)).end()
        assert second[0].name == "resumed" and second[-1].name == "completed"
        seqs = [event.seq for event in first + second]
        assert seqs == sorted(set(seqs))
        assert [event async for event in app.subscribe("order")] == first + second

        live = await app.start(on_demand)
        await _read_some(app.subscribe(live.run_id))
        await nobody_reads(app)
        tail = Tail(app.subscribe(live.run_id))  # comes back before it is forgotten, and stays
        other = await app.start(bulk, 1)
        assert len([event async for event in other.events()]) > 1
        async with asyncio.timeout(5):
            while streams(app).retained:  # until the timer of what was left has run
                await asyncio.sleep(0.01)
        await more(live, 2)
        await tail.until("done")
        assert ticks(tail.seen) == [0, 1]
        await live.cancel()
        assert (await tail.end())[-1].name == "cancelled"


async def _read_some(stream: object) -> None:
    async for _ in stream:  # type: ignore[attr-defined]
        break


async def test_w41_no_reader_waits_for_ever(make_app: MakeApp) -> None:
    """When the application closes, each is told so and where to go on; after a restart the stream goes on, and ends with the run."""
    app = make_app()
    async with app:
        handle = await app.start(on_demand.options(key="kept"))
        await more(handle, 2)
        tails = [Tail(handle.events(after)) for after in range(5)]
        behind = handle.events()
        await anext(behind)
        await asyncio.gather(*(tail.until("done") for tail in tails))
    for tail in tails:
        with pytest.raises(ShuttingDownError, match=f"seq {tail.seen[-1].seq} "):
            await tail.end()
    assert streams(app).subscribers == 1
    with pytest.raises(ShuttingDownError):
        [event async for event in behind]
    assert streams(app) == type(streams(app))(streams=0, subscribers=0, retained=0, overflows=streams(app).overflows)
    with pytest.raises(ShuttingDownError):
        [event async for event in handle.events()]
    assert streams(app).retained == 0
    async with make_app() as again:
        found = await again.find("kept")
        assert found is not None
        tail = Tail(found.events(tails[0].seen[-1].seq))
        await more(found, 0)
        assert (await tail.end())[-1].name == "completed"


async def test_w41_the_same_application_opened_again_keeps_no_old_stream(make_app: MakeApp) -> None:
    """A reader of its former life is told; who asks anew is answered from the store."""
    app = make_app()
    async with app:
        handle = await app.start(on_demand)
        await more(handle, 2)
        old = handle.events()
        await anext(old)
    async with app:
        await more(handle, 1)
        with pytest.raises(ShuttingDownError):
            async with asyncio.timeout(5):
                [event async for event in old]
        await more(handle, 0)
        await handle.wait()
        assert ticks([event async for event in handle.events()]) == [0, 1, 2]


async def test_w42_numbers_go_on_over_restarts(make_app: MakeApp) -> None:
    """Who has seen n asks for what comes after n in the next process, and gets n+1 first."""
    seen: list[Event] = []
    run_id = ""
    for life in range(3):
        async with make_app() as app:
            handle = await app.start(on_demand) if not run_id else await app.get(run_id)
            run_id = handle.run_id
            tail = Tail(handle.events(seen[-1].seq if seen else 0, steps=True))
            await more(handle, 5)
            await tail.until("done")
            seen += tail.seen
            tail.task.cancel()
            if life == 2:
                await handle.cancel()
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    assert ticks(seen) == list(range(15))


def record(seq: int, payload: bytes = b"", kind: Kind = Kind.EVENT) -> Record:
    return Record("run", seq, kind, 0.0, 1, "tick", payload=payload)


@pytest.mark.parametrize(("size", "bytes_max"), [(1, 1 << 20), (5, 1 << 20), (64, 3_000), (100, 10)])
def test_w43_a_ring_holds_the_last_records_and_counts_them_right(size: int, bytes_max: int) -> None:
    """After each of many records: as many as fit, the last ones, without a hole, and none that is not counted."""
    ring = Ring(size, bytes_max)
    for seq in range(1, 3 * size + 100):
        ring.push(record(seq, b"x" * (seq % 400)))
        ring.push(record(seq))  # the same again
        held: list[Record] = []
        while len(held) < len(ring):
            held += ring.items(ring.start + len(held), BATCH)
        assert [each.seq for each in held] == list(range(ring.floor + 1, seq + 1)) and ring.last == seq
        assert 1 <= len(ring) <= size
        assert len(ring) == 1 or sum(256 + len(each.payload or b"") for each in held) <= bytes_max
    ring.push(record(seq + 10))
    assert (ring.floor, ring.last, len(ring)) == (seq + 9, seq + 10, 1)


async def test_w44_what_is_counted_has_no_name_of_a_run_in_it(make_app: MakeApp) -> None:
    """The statistics are a few numbers, however many runs are followed."""
    async with make_app() as app:
        for number in range(20):
            handle = await app.start(bulk.options(key=f"key{number}"), 3)
            assert len([event async for event in handle.events()]) == 6
        told = asdict(streams(app))
        assert told == {"streams": 0, "subscribers": 0, "retained": 20, "overflows": 0}
