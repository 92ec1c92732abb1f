"""The log: opens, recovers, and hands out the writer and the reader as one thing.

Law: a log that cannot keep its promises is not opened, and a refusal changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from durable.clock import Clock, Entropy
from durable.config import LogSettings
from durable.errors import DurableError, LogCorruptError, StorageError, StorageFullError, StoreReadOnlyError
from durable.log.files import NO_ROOM, Files
from durable.log.format import Header, frame_seed
from durable.log.manifest import Manifest, read_manifest, replace_manifest
from durable.log.reader import Survey, read_segment, survey
from durable.log.recovery import Cut, judge, mend, take_over
from durable.log.retention import remove, retirable
from durable.log.segment import NoRoomError, Segment, SegmentPlan, make_segment
from durable.log.worker import ThreadWorker, WorkerFactory
from durable.log.writer import Health, Waiter, Writer

#: A reader beside a living writer may see half a write; it looks again this often before it believes in damage.
_READ_ONLY_TRIES = 3
_FREE_SPACE_SECONDS = 1.0


class Log:
    """A write-ahead log of byte strings, numbered 1, 2, 3 ... (lsn). Made by `Log.open`."""

    def __init__(
        self, files: Files, settings: LogSettings, clock: Clock, *, found: Survey, manifest: Manifest, cut: Cut | None
    ) -> None:
        self._files, self._settings, self._clock = files, settings, clock
        self._manifest = manifest
        self._segments = found.segments
        self._found_next = found.next_lsn
        self._found_first = found.first_lsn
        self._writer: Writer | None = None
        self._closed = False
        self._low = False
        self._low_known_at: float | None = None
        #: The torn tail that this open cut off, if there was one.
        self.cut = cut

    @classmethod
    async def open(
        cls, files: Files, settings: LogSettings, *, clock: Clock, entropy: Entropy, applied: int | None = None,
        store_id: str | None = None, worker: WorkerFactory = ThreadWorker, read_only: bool = False,
    ) -> Log:  # fmt: skip
        """Open or create the log in `files`.

        Arguments:
            applied: highest lsn that the repository has durably applied; 0 for an empty one, None where there is none.
            store_id: the store id that the repository carries, if any.
            worker: makes the threads that do the I/O.
            read_only: look only; takes no lock, and changes nothing.

        Raises:
            LogCorruptError, StoreMismatchError, StoreFormatError, StoreLockedError: nothing was changed.
            StorageFullError, StorageError: the directory cannot be read or written.
        """
        witness = (applied, store_id)
        if read_only:
            found = _survey_beside_writer(files)
            judge(found, applied=applied, store_id=store_id)
            empty = Manifest(store_id=store_id or "", epoch=0, newest=0, durable=1)
            return cls(files, settings, clock, found=found, manifest=found.manifest or empty, cut=None)
        found, manifest, cut = _open_for_writing(files, settings, clock, entropy, witness)
        log = cls(files, settings, clock, found=found, manifest=manifest, cut=cut)
        log._writer = Writer(
            files, settings, clock, segments=found.segments, manifest=manifest, crc=found.crc, next_lsn=found.next_lsn,
            workers=(worker("durable-log"), worker("durable-log-helper")),
        )  # fmt: skip
        return log

    # -- what it is

    @property
    def store_id(self) -> str:
        """32 hexadecimal digits, made when the log was created."""
        return self._manifest.store_id

    @property
    def epoch(self) -> int:
        """The boot epoch: higher than that of every earlier open for writing."""
        return self._manifest.epoch

    @property
    def first_lsn(self) -> int:
        """The oldest record that is still here (or would be the first)."""
        return self._segments[0].first_lsn if self._segments else self._found_first

    @property
    def next_lsn(self) -> int:
        """The lsn after the newest durable record."""
        return self._writer.next_lsn if self._writer is not None else self._found_next

    @property
    def health(self) -> Health:
        """ok, full (appends are refused until there is room), fenced (for the life of the process) or closed."""
        if self._writer is not None:
            return self._writer.health
        return "closed" if self._closed else "ok"

    def free_space_low(self) -> bool:
        """Whether the disk has less room than `low_water_bytes`; looked up at most once a second."""
        now = self._clock.monotonic()
        if self._low_known_at is None or now - self._low_known_at >= _FREE_SPACE_SECONDS:
            try:
                self._low = self._files.free_bytes() < self._settings.low_water_bytes
            except OSError:
                self._low = True  # a disk that cannot even be asked takes no new work
            self._low_known_at = now
        return self._low

    # -- what it does

    def append(self, payloads: Sequence[bytes]) -> asyncio.Future[int]:
        """Write `payloads` one behind the other; resolves with the lsn of the first once all of them are durable.

        With no payloads it resolves, once all earlier appends are durable, with the lsn that comes next.

        Raises at once (nothing is written):
            PayloadTooLargeError, LogFencedError, ForkedProcessError, StoreReadOnlyError, ShuttingDownError (closed).
        Through the future:
            LogFencedError: an I/O error; the outcome is unknown until the log is opened again.
            StorageFullError: definitely not written.
        """
        if self._writer is None:
            raise StoreReadOnlyError("the log is open for reading only")
        future: asyncio.Future[int] = self._writer.loop.create_future()
        self._writer.append(payloads, future, at_once=False)
        return future

    def append_for(self, waiter: Waiter, payloads: Sequence[bytes]) -> None:
        """As `append`, for a caller that has gathered already and wants to be told in the very call that learns of the sync.

        The batch goes to the disk at once, when no other is on its way. Raises at once what `append` does; all else is for `waiter`.
        """
        if self._writer is None:
            raise StoreReadOnlyError("the log is open for reading only")
        self._writer.append(payloads, waiter, at_once=True)

    def read(self, after: int) -> Iterator[tuple[int, bytes]]:
        """Yield (lsn, payload) of the durable records with lsn > `after`, in order, as of this call."""
        before = self.next_lsn
        # A copy: the live segment moves on, and its end must fit to `before`.
        pinned = [
            replace(segment, file=None, marks=list(segment.marks))
            for segment in self._segments
            if segment.next_lsn > after + 1
        ]
        seed = frame_seed(self.store_id) if self.store_id else 0
        return (
            record
            for segment in pinned
            for record in read_segment(self._files, segment, after=after, before=before, seed=seed)
        )

    def retire(self, through: int) -> asyncio.Future[None]:
        """Start to remove segments that hold only records up to `through`; the future is done when they are gone for
        good.

        The caller must have those records durably elsewhere. The active segment always stays.
        """
        if self._writer is None or self._writer.forked:
            raise StoreReadOnlyError("the log is open for reading only, or in another process")
        names = [segment.name for segment in retirable(self._segments, min(through, self.next_lsn - 1))]
        if not names or self._closed:
            nothing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            nothing.set_result(None)
            return nothing
        # Forgotten first: a reader that starts now must not meet a file that goes away under it.
        del self._segments[: len(names)]
        return self._writer.run_aside(partial(remove, self._files, names))

    async def close(self) -> None:
        """Make durable what was appended, say so in the manifest, and give the directory back. Does nothing in a
        forked child."""
        if self._closed:
            return
        self._closed = True
        writer = self._writer
        if writer is None:
            return
        try:
            if not writer.forked:
                await writer.drain()
                if writer.fenced_by is None:
                    # A clean end is written down: from now on even damage to the very last record is noticed.
                    await writer.run_aside(
                        partial(replace_manifest, self._files, replace(writer.manifest, durable=writer.next_lsn))
                    )
        except DurableError:
            pass  # fenced while closing; the appends were answered, and the next open reads what is there
        finally:
            writer.stop()
            if not writer.forked:
                self._files.unlock()


def _survey_beside_writer(files: Files) -> Survey:
    for attempt in range(_READ_ONLY_TRIES):
        try:
            return survey(files)
        except (LogCorruptError, FileNotFoundError):
            if attempt == _READ_ONLY_TRIES - 1:
                raise
    raise AssertionError("unreachable")


def _open_for_writing(
    files: Files, settings: LogSettings, clock: Clock, entropy: Entropy, witness: tuple[int | None, str | None]
) -> tuple[Survey, Manifest, Cut | None]:
    try:
        files.makedirs()
        read_manifest(files, files.names())  # a newer format is refused before so much as the lock is written
        files.lock({"pid": os.getpid(), "host": socket.gethostname(), "started_at": round(clock.now(), 3)})
    except OSError as error:
        raise _cannot_open(files, error) from error
    found: Survey | None = None
    try:
        found = survey(files)
        judge(found, applied=witness[0], store_id=witness[1])
        cut = mend(files, found)
        manifest = take_over(files, found, entropy.token_bytes(16).hex())
        if not found.segments:
            manifest = replace(manifest, newest=1)
            segment, found.next_lsn = _first_segment(files, settings, clock, manifest), 1
            found.segments.append(segment)
        return found, manifest, cut
    except BaseException as error:
        for segment in found.segments if found is not None else ():
            if segment.file is not None:
                segment.file.close()
        files.unlock()
        if isinstance(error, OSError | NoRoomError):
            raise _cannot_open(files, error) from error
        raise


def _first_segment(files: Files, settings: LogSettings, clock: Clock, manifest: Manifest) -> Segment:
    header = Header(manifest.store_id, 1, 1, manifest.epoch, int(clock.now() * 1000), settings.segment_bytes)
    return make_segment(files, SegmentPlan(header=header, manifest=manifest))


def _cannot_open(files: Files, error: OSError | NoRoomError) -> StorageError:
    message = f"cannot open the log in {files!r}: {error}"
    if isinstance(error, NoRoomError) or error.errno in NO_ROOM:
        return StorageFullError(message)
    return StorageError(message)
