"""Looking at a log from outside, and giving up what cannot be read.

Law: `verify` neither writes nor locks. `repair` gives up nothing unless it was told to, keeps every byte beside, and
says what is gone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from durable.clock import Clock
from durable.config import LogSettings
from durable.errors import LogCorruptError, StorageError
from durable.log.files import Files, write_all
from durable.log.format import (
    FRAME_BYTES,
    FRAME_MAGIC_BYTES,
    HEADER_BYTES,
    Header,
    Walk,
    decode_header,
    frame_seed,
    peek,
    segment_name,
    segment_number,
    walk,
)
from durable.log.manifest import Manifest, read_manifest
from durable.log.reader import read_segment, survey
from durable.log.segment import SegmentPlan, make_segment

#: Added to the epoch when the manifest itself was lost: higher than any that the lost one can have held.
_EPOCH_LEAP = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReport:
    """What `verify` found. `problem` is None for a sound log; a torn tail is no problem, the next open cuts it."""

    store_id: str | None
    epoch: int
    segments: tuple[str, ...]
    first_lsn: int
    next_lsn: int
    torn_bytes: int
    problem: LogCorruptError | None

    @property
    def ok(self) -> bool:
        return self.problem is None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairReport:
    """What `repair` did: records `lost_from` to `lost_through` are gone, as far as anything that is left can tell.

    `readable_after` of them could be read; all bytes that were given up are kept in the files `kept_in`.
    """

    lost_from: int
    lost_through: int
    readable_after: int
    kept_in: tuple[str, ...]

    @property
    def lost(self) -> int:
        return max(0, self.lost_through - self.lost_from + 1)


def verify(files: Files) -> LogReport:
    """Check every byte of the log without changing or locking anything."""
    try:
        found = survey(files)
    except LogCorruptError as problem:
        prefix = _prefix(files)
        return LogReport(
            store_id=prefix.store_id, epoch=prefix.epoch, segments=prefix.names, first_lsn=prefix.first_lsn,
            next_lsn=prefix.next_lsn, torn_bytes=0, problem=problem,
        )  # fmt: skip
    return LogReport(
        store_id=found.manifest.store_id if found.manifest else None,
        epoch=found.manifest.epoch if found.manifest else 0,
        segments=tuple(segment.name for segment in (*found.segments, *found.spares)),
        first_lsn=found.first_lsn,
        next_lsn=found.next_lsn,
        torn_bytes=len(found.torn.remains) if found.torn else 0,
        problem=None,
    )


def dump(files: Files) -> Iterator[tuple[int, bytes]]:
    """Yield (lsn, payload) of every record that can be read in order from the start; raises `LogCorruptError` on
    damage."""
    found = survey(files)
    seed = frame_seed(found.manifest.store_id) if found.manifest else 0
    for segment in found.segments:
        yield from read_segment(files, segment, after=0, before=found.next_lsn, seed=seed)


def repair(
    files: Files, *, accept_loss: bool, clock: Clock, settings: LogSettings | None = None, applied: int | None = None
) -> RepairReport | None:
    """Cut a damaged log at the damage; returns None when there was nothing to do.

    What comes behind the damage goes too, readable or not, because a run with a hole in its history cannot go on; all
    bytes are kept beside. Numbering goes on behind everything that may have been used, so the log then has a gap in
    its numbers.

    Arguments:
        accept_loss: must be True, or `StorageError` is raised and nothing changed.
        applied: what the repository has applied; records up to it are not lost, whatever happened to the log.
    """
    files.lock({"pid": os.getpid(), "host": socket.gethostname(), "started_at": round(clock.now(), 3)})
    try:
        try:
            survey(files)
            return None
        except LogCorruptError as problem:
            if not accept_loss:
                raise StorageError(f"{problem} Pass accept_loss to give up what is behind the damage") from problem
        return _cut_at_damage(files, settings or LogSettings(), clock, applied or 0)
    finally:
        files.unlock()


@dataclass(slots=True)
class _Prefix:
    """The good part of a damaged log, and what can be seen behind it."""

    store_id: str | None = None
    epoch: int = 0
    first_lsn: int = 1
    next_lsn: int = 1
    #: Segments that are kept, the last of them up to `end`.
    names: tuple[str, ...] = ()
    end: int = HEADER_BYTES
    #: What the last kept segment must have and has, in bytes.
    size_due: int = 0
    size: int = 0
    behind: tuple[str, ...] = ()
    #: First lsn that nobody can have used.
    unused: int = 1
    readable_after: int = 0


def _prefix(files: Files) -> _Prefix:
    names = files.names()
    prefix = _Prefix()
    try:
        manifest = read_manifest(files, names)
    except LogCorruptError:
        manifest = None
    if manifest is not None:
        prefix.store_id, prefix.epoch, prefix.unused = manifest.store_id, manifest.epoch, manifest.durable
    crc, sound, previous = 0, True, 0
    for number in sorted(each for each in map(segment_number, names) if each is not None):
        name = segment_name(number)
        blob = files.read(name)
        try:
            header: Header | None = decode_header(blob, name, allow_cut=True)
        except LogCorruptError:
            header = None
        if header is not None and prefix.store_id is None:
            prefix.store_id, prefix.epoch = header.store_id, header.epoch + _EPOCH_LEAP
        seed = frame_seed(prefix.store_id) if prefix.store_id else 0
        sound = sound and header is not None and header.store_id == prefix.store_id and previous in (0, number - 1)
        # A prepared segment holds nothing; the new one takes its place.
        sound = sound and header is not None and (header.first_lsn > 0 or peek(blob, HEADER_BYTES, seed) is not None)
        start = HEADER_BYTES
        if sound and header is not None:
            first = (
                (header.first_lsn, 0) if header.first_lsn else None if prefix.names else peek(blob, HEADER_BYTES, seed)
            )
            if first is not None:
                prefix.next_lsn, crc = first
                prefix.first_lsn = prefix.first_lsn if prefix.names else prefix.next_lsn
            at = Walk(prefix.next_lsn, crc, HEADER_BYTES, HEADER_BYTES)
            for _ in walk(blob, at, seed):
                pass
            prefix.names, prefix.next_lsn, prefix.end, crc, start = (
                (*prefix.names, name),
                at.lsn,
                at.end,
                at.crc,
                at.end,
            )
            prefix.size_due, prefix.size = header.size, len(blob)
            sound = len(blob.rstrip(b"\0")) <= at.end and len(blob) >= header.size
        else:
            prefix.behind = (*prefix.behind, name)
        for lsn in _good_frames(blob, start, seed):
            prefix.unused = max(prefix.unused, lsn + 1)
            prefix.readable_after += 1
        previous = number
    prefix.unused = max(prefix.unused, prefix.next_lsn)
    return prefix


def _good_frames(blob: bytes, start: int, seed: int) -> Iterator[int]:
    """The lsn of each good frame behind `start`, whatever lies between them."""
    at = start
    while (at := blob.find(FRAME_MAGIC_BYTES, at)) >= 0:
        found = peek(blob, at, seed)
        if found is None:
            at += 1
            continue
        yield found[0]
        at += FRAME_BYTES + int.from_bytes(blob[at + 2 : at + 6], "little")


def _cut_at_damage(files: Files, settings: LogSettings, clock: Clock, applied: int) -> RepairReport:
    prefix = _prefix(files)
    if prefix.store_id is None:
        raise StorageError("neither the manifest nor any segment's header can be read; this cannot be repaired")
    stamp = int(clock.now() * 1000)
    kept = []
    for name in reversed(prefix.behind):
        files.rename(name, f"lost-{stamp}-{name}")
        files.fsync_dir()
        kept.append(f"lost-{stamp}-{name}")
    if prefix.names:
        kept += _cut_tail(files, prefix, f"lost-{stamp}-tail-{prefix.names[-1]}")
    resume = max(prefix.unused, applied + 1)
    number = (segment_number(prefix.names[-1]) or 0) + 1 if prefix.names else 1
    lost_from = max(prefix.next_lsn, applied + 1)
    manifest = Manifest(
        store_id=prefix.store_id,
        epoch=prefix.epoch + 1,
        newest=number,
        durable=resume,
        lost_from=lost_from,
        lost_through=resume - 1,
    )
    header = Header(prefix.store_id, number, resume, manifest.epoch, stamp, settings.segment_bytes)
    made = make_segment(files, SegmentPlan(header=header, manifest=manifest))
    if made.file is not None:
        made.file.close()
    return RepairReport(
        lost_from=lost_from, lost_through=resume - 1, readable_after=prefix.readable_after, kept_in=tuple(sorted(kept))
    )


def _cut_tail(files: Files, prefix: _Prefix, beside: str) -> list[str]:
    name = prefix.names[-1]
    remains = files.read(name, prefix.end).rstrip(b"\0")
    kept = [beside] if remains else []
    if remains:
        _keep(files, beside, remains)
    file = files.open(name)
    write_all(file, bytes(len(remains)), prefix.end)
    if prefix.size < prefix.size_due:
        file.preallocate(prefix.size, prefix.size_due)
    file.fdatasync()
    file.close()
    return kept


def _keep(files: Files, beside: str, remains: bytes) -> None:
    copy = files.open(beside, create=True)
    write_all(copy, remains, 0)
    copy.fdatasync()
    copy.close()
    files.fsync_dir()
