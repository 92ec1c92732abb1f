"""The writer: one batch in flight, one sync per batch, one wake-up of the loop per batch.

Law: a future resolves only after the sync that covers all its payloads returned. The first failed write, sync or
rename fences the writer for the life of the process, on the workers at once and on the loop when it is told; a sync is
never tried again. All state but that failure belongs to the loop; the workers only do I/O.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, Protocol, TypeVar

from durable.clock import Clock
from durable.config import LogSettings
from durable.errors import (
    DurableError,
    ForkedProcessError,
    LogFencedError,
    PayloadTooLargeError,
    ShuttingDownError,
    StorageFullError,
)
from durable.log.files import Files, LogFile, write_all
from durable.log.format import FRAME_BYTES, HEADER_BYTES, Header, add_frame, frame_seed
from durable.log.manifest import Manifest
from durable.log.segment import NoRoomError, Segment, SegmentPlan, grow_segment, make_segment
from durable.log.worker import Worker

Health = Literal["ok", "full", "fenced", "closed"]
#: Most bytes of one write; what waits beyond it goes into the next batch.
BATCH_BYTES_MAX = 8 * 1024 * 1024
#: How long to wait after a background preparation found no room.
_PREPARE_AGAIN_SECONDS = 1.0


class Waiter(Protocol):
    """Who is told what became of an append: a future, or something that acts at once instead of in a later turn of the loop."""

    def done(self) -> bool:
        """Whether nobody needs to be told any more."""
        ...

    def set_result(self, result: int, /) -> None:
        """The payloads are durable; the first of them has this lsn."""
        ...

    def set_exception(self, exception: Exception, /) -> None:
        """They are not, or it is not known."""
        ...


_Waiting = tuple[Sequence[bytes], int, Waiter]
_Result = TypeVar("_Result")


def write_batch(file: LogFile, chunk: bytes, offset: int) -> None:
    """The only write of records: every byte, then one sync."""
    write_all(file, chunk, offset)
    # fdatasync is enough: the segment is preallocated, so the write changes neither size nor extents.
    file.fdatasync()


class Writer:
    """Appends to the active segment and moves on to the next one."""

    def __init__(
        self,
        files: Files,
        settings: LogSettings,
        clock: Clock,
        *,
        segments: list[Segment],
        manifest: Manifest,
        crc: int,
        next_lsn: int,
        workers: tuple[Worker, Worker],
    ) -> None:
        self._files, self._settings, self._clock = files, settings, clock
        self.segments = segments
        self.manifest = manifest
        #: First lsn that is not durable yet.
        self.next_lsn = next_lsn
        self._crc = crc
        self._seed = frame_seed(manifest.store_id)
        self._worker, self._helper = workers
        self.loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._spare: Segment | None = None
        self._active_since = clock.monotonic()
        self._waiting: deque[_Waiting] = deque()
        self._scheduled = self._in_flight = self._helping = self._full = False
        self._closing = self._closed = False
        self._prepare_after = 0.0
        self._idle: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self.fenced_by: str | None = None

    # -- what callers see

    @property
    def health(self) -> Health:
        if self.fenced_by is not None:
            return "fenced"
        return "closed" if self._closing else "full" if self._full else "ok"

    @property
    def forked(self) -> bool:
        return os.getpid() != self._pid

    def append(self, payloads: Sequence[bytes], waiter: Waiter, *, at_once: bool) -> None:
        if os.getpid() != self._pid:
            raise ForkedProcessError(
                f"process {os.getpid()} was forked from {self._pid}, which has the log open; only that one may write"
            )
        if self._closing or self.fenced_by is not None:
            raise self._refusal()
        size, limit = 0, self._settings.frame_bytes_max
        for payload in payloads:
            length = len(payload)
            if length > limit:
                message = f"a record has {length} bytes, the limit (log.frame_bytes_max) is {limit}"
                raise PayloadTooLargeError(message, size_bytes=length, limit_bytes=limit)
            size += length + FRAME_BYTES
        self._waiting.append((payloads, size, waiter))
        if at_once:
            self._dispatch()
        elif not self._scheduled:
            # At the end of this turn of the loop, so that everything appended in one turn shares a sync.
            self._scheduled = True
            self.loop.call_soon(self._dispatch)

    def _refusal(self) -> DurableError:
        if self.fenced_by is not None:
            return LogFencedError(
                f"the log met an error ({self.fenced_by}) and takes nothing more in this process; what was in flight "
                "may or may not be durable. Restart the process: it reads what is really on the disk"
            )
        return ShuttingDownError("the log is closed")

    # -- one batch

    def _dispatch(self) -> None:
        self._scheduled = False
        if self._in_flight:
            return
        if not self._waiting or self.fenced_by is not None:
            self._settle()
            return
        count, size = self._measure()
        if not self._make_room(size):
            return
        self._full = False
        parts: list[bytes] = []
        resolved: list[tuple[Waiter, int]] = []
        synced, crc, seed = self.next_lsn, self._crc, self._seed
        lsn = synced
        for _ in range(count):
            payloads, _size, future = self._waiting.popleft()
            resolved.append((future, lsn))
            for payload in payloads:
                crc = add_frame(parts, payload, lsn=lsn, synced=synced, previous=crc, seed=seed)
                lsn += 1
        active = self.segments[-1]
        assert active.file is not None
        self._in_flight = True
        job = partial(write_batch, active.file, b"".join(parts), active.end)
        self._worker.submit(partial(self._do, job), partial(self._batch_done, resolved, lsn, crc, active.end + size))

    def _measure(self) -> tuple[int, int]:
        """How many of the waiting appends go into the next batch, and their bytes; at least one, the rest as room
        allows."""
        active = self.segments[-1]
        room = active.size - active.end
        if self._waiting[0][1] > room:  # it opens the next segment
            room = (self._spare.size if self._spare is not None else self._settings.segment_bytes) - HEADER_BYTES
        limit = min(room, BATCH_BYTES_MAX)
        count = total = 0
        for _, size, _ in self._waiting:
            if count and total + size > limit:
                break
            count += 1
            total += size
        return count, total

    def _batch_done(
        self,
        resolved: list[tuple[Waiter, int]],
        lsn: int,
        crc: int,
        end: int,
        _result: object,
        error: Exception | None,
    ) -> None:
        self._in_flight = False
        if error is not None or self.fenced_by is not None:
            self._fence(error, [future for future, _ in resolved])
            return
        active = self.segments[-1]
        active.mark(self.next_lsn, active.end, self._crc)
        self.next_lsn, self._crc, active.end, active.next_lsn = lsn, crc, end, lsn
        for future, first in resolved:
            if not future.done():  # its waiter may have been cancelled; the record is durable all the same
                future.set_result(first)
        self._prepare_ahead(active)
        if not self._scheduled and (self._waiting or self._idle is not None):
            # Behind the waiters just woken, so that what they append next is in the next batch already.
            self._scheduled = True
            self.loop.call_soon(self._dispatch)

    def _fence(self, error: Exception | None, lost: Sequence[Waiter] = ()) -> None:
        if self.fenced_by is None:
            self.fenced_by = f"{type(error).__name__}: {error}"
        waiting = [future for _, _, future in self._waiting]
        self._waiting.clear()
        for future in (*lost, *waiting):
            if not future.done():
                future.set_exception(self._refusal())
        self._settle()

    def _do(self, job: Callable[[], _Result]) -> _Result:
        """On a worker: run a job, or fail as the first one that failed did.

        The loop hears of a failure later, and other jobs may wait behind it by then: a removal behind a failed one would leave a hole.
        """
        if self._failure is not None:
            raise self._failure
        try:
            return job()
        except NoRoomError:
            raise
        except Exception as error:
            self._failure = self._failure or error
            raise

    # -- the next segment

    def _make_room(self, size: int) -> bool:
        """Whether `size` bytes fit into the active segment, after going on to the next one if need be; else it is
        being made."""
        active = self.segments[-1]
        fits = active.end + size <= active.size
        old = (
            active.end > HEADER_BYTES
            and self._clock.monotonic() - self._active_since >= self._settings.segment_age_seconds
        )
        if fits and not old:
            return True
        spare = self._spare
        if spare is None or HEADER_BYTES + size > spare.size:
            if fits:  # only old: no reason to wait
                self._prepare(0)
                return True
            self._prepare(size)
            return False
        if active.file is not None:
            active.file.close()
            active.file = None
        spare.first_lsn = spare.next_lsn = self.next_lsn
        self.segments.append(spare)
        self._spare = None
        self._active_since = self._clock.monotonic()
        return True

    def _prepare_ahead(self, active: Segment) -> None:
        if self._spare is None and not self._helping and active.end * 2 > active.size and not self._closing:
            self._prepare(0)

    def _prepare(self, size: int) -> None:
        """Have the helper make the next segment; `size` is the batch that waits for it, or 0."""
        if self._helping or (not size and (self._spare is not None or self._clock.monotonic() < self._prepare_after)):
            return
        self._helping = True
        target = max(self._settings.segment_bytes, HEADER_BYTES + size)
        job: Callable[[], Segment]
        if self._spare is not None:
            spare, self._spare, manifest = self._spare, None, self.manifest
            job = partial(grow_segment, spare, target)
        else:
            spare = None
            number = self.segments[-1].number + 1
            manifest = replace(self.manifest, newest=number, durable=self.next_lsn)
            header = Header(manifest.store_id, number, 0, manifest.epoch, int(self._clock.now() * 1000), target)
            job = partial(make_segment, self._files, SegmentPlan(header=header, manifest=manifest))
        self._helper.submit(partial(self._do, job), partial(self._prepared, manifest, spare, size))

    def _prepared(
        self, manifest: Manifest, spare: Segment | None, size: int, made: Segment | None, error: Exception | None
    ) -> None:
        self._helping = False
        if isinstance(error, NoRoomError):
            self._spare = spare
            self._prepare_after = self._clock.monotonic() + _PREPARE_AGAIN_SECONDS
            self._refuse_waiting(error)
        elif error is not None:
            # A batch in flight is told when it comes back: it may be durable, but nobody may build on it.
            self._fence(error)
            return
        else:
            self.manifest, self._spare = manifest, made
        if self._in_flight or self._scheduled:
            return
        self._dispatch()

    def _refuse_waiting(self, error: NoRoomError) -> None:
        """No room for a new segment: what would need it is refused, definitely not written."""
        if self._in_flight or not self._waiting:
            return
        room = self.segments[-1].size - self.segments[-1].end
        refused = [future for _, size, future in self._waiting if size > room]
        self._waiting = deque(waiting for waiting in self._waiting if waiting[1] <= room)
        for future in refused:
            self._full = True
            if not future.done():
                future.set_exception(
                    StorageFullError(f"no room for the log's next segment ({error}); nothing was written")
                )

    # -- side jobs and the end

    def run_aside(self, job: Callable[[], object]) -> asyncio.Future[None]:
        """Run `job` on the helper, behind what was given to it before; its failure fences the log."""
        if self.fenced_by is not None:
            raise self._refusal()
        ended: asyncio.Future[None] = self.loop.create_future()

        def done(_result: object, error: Exception | None) -> None:
            if error is not None:
                self._fence(error)
            if ended.done():
                return
            if error is None:
                ended.set_result(None)
            else:
                ended.set_exception(self._refusal())

        self._helper.submit(partial(self._do, job), done)
        return ended

    def _settle(self) -> None:
        if (
            self._idle is not None
            and not self._idle.done()
            and not self._in_flight
            and not self._helping
            and not self._waiting
        ):
            self._idle.set_result(None)

    async def drain(self) -> None:
        """Take nothing more, and return once nothing is in flight."""
        self._closing = True
        if self._idle is None:
            self._idle = self.loop.create_future()
            self._settle()
        await asyncio.shield(self._idle)

    def stop(self) -> None:
        """Stop the workers and let go of the files. After `drain` (or in a fork, where the threads do not exist)."""
        self._closing = True
        if self._closed or self.forked:
            return
        self._closed = True
        for worker in (self._worker, self._helper):
            worker.close()
        for segment in (*self.segments, self._spare):
            if segment is not None and segment.file is not None:
                segment.file.close()
                segment.file = None
