"""The reader: looks at every segment and says what is there. It changes nothing and judges no repository.

Law: a bad frame is a torn tail only if nothing says that it had been durable: no later good frame, no later segment
with content, not the manifest. Otherwise `LogCorruptError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from durable.errors import LogCorruptError, StoreMismatchError
from durable.log.files import Files
from durable.log.format import (
    FRAME_BYTES,
    HEADER_BYTES,
    Walk,
    decode_header,
    durability_witness,
    frame_seed,
    peek,
    segment_name,
    segment_number,
    walk,
)
from durable.log.manifest import MANIFEST_NAME, Manifest, read_manifest
from durable.log.segment import Segment


@dataclass(frozen=True, slots=True)
class Torn:
    """Bytes behind the last good frame that were never durable."""

    segment: str
    offset: int
    remains: bytes


@dataclass(slots=True)
class Survey:
    """What a log directory holds. `segments` ends with the active one; `spares` hold no record."""

    names: list[str]
    manifest: Manifest | None = None
    segments: list[Segment] = field(default_factory=list)
    spares: list[Segment] = field(default_factory=list)
    next_lsn: int = 1
    crc: int = 0
    #: Where the last batch starts in the active segment; it may be readable and yet not be durable.
    batch_start: int = HEADER_BYTES
    torn: Torn | None = None

    @property
    def first_lsn(self) -> int:
        return self.segments[0].first_lsn if self.segments else self.next_lsn


def survey(files: Files) -> Survey:
    """Read and check the whole log, one segment in memory at a time."""
    names = files.names()
    found = Survey(names, read_manifest(files, names))
    numbers = sorted(number for number in map(segment_number, names) if number is not None)
    if found.manifest is None:
        if numbers:
            raise LogCorruptError(f"{len(numbers)} segments, but the manifest is missing", segment=MANIFEST_NAME)
        return found
    _check_numbers(numbers, found.manifest.newest)
    scan = _Scan(files, found, found.manifest)
    for number in numbers:
        scan.segment(number)
    if found.manifest.durable > found.next_lsn:
        last = found.segments[-1] if found.segments else None
        raise _corrupt(
            found.torn.segment if found.torn else last.name if last else MANIFEST_NAME,
            found.torn.offset if found.torn else last.end if last else 0,
            found.next_lsn,
            f"the manifest says that all records below {found.manifest.durable} were durable",
        )
    return found


def _corrupt(segment: str, offset: int, lsn: int, why: str) -> LogCorruptError:
    return LogCorruptError(
        f"record {lsn} cannot be read (segment {segment}, offset {offset}), but was durable: {why}. "
        "Nothing was changed. Restore the directory from a copy, or give up what is unreadable: "
        "durable log repair --accept-loss",
        segment=segment,
        offset=offset,
        lsn=lsn,
    )


def _check_numbers(numbers: list[int], newest: int) -> None:
    for number, following in pairwise(numbers):
        if following != number + 1:
            raise LogCorruptError(f"segment {segment_name(number + 1)} is missing", segment=segment_name(number + 1))
    if newest and (not numbers or numbers[-1] < newest):
        raise LogCorruptError(f"segment {segment_name(newest)} is missing", segment=segment_name(newest))


class _Scan:
    """One pass over the segments, in order."""

    def __init__(self, files: Files, found: Survey, manifest: Manifest) -> None:
        self._files = files
        self._found = found
        self._store_id = manifest.store_id
        self._seed = frame_seed(manifest.store_id)

    def segment(self, number: int) -> None:
        found, name = self._found, segment_name(number)
        blob = self._files.read(name)
        header = decode_header(blob, name)
        if header.store_id != self._store_id:
            raise StoreMismatchError(
                f"segment {name} belongs to store {header.store_id}, the manifest to {self._store_id}"
            )
        used = max(HEADER_BYTES, len(blob.rstrip(b"\0")))
        self._start(header.first_lsn, blob, name)
        at = Walk(found.next_lsn, found.crc, HEADER_BYTES, HEADER_BYTES)
        segment = Segment(number, at.lsn, at.lsn, HEADER_BYTES, len(blob))
        crc = at.crc
        for lsn, start, _ in walk(blob, at, self._seed):
            segment.mark(lsn, start - FRAME_BYTES, crc)
            crc = at.crc
        segment.next_lsn, segment.end = at.lsn, at.end
        if found.torn is not None and used > HEADER_BYTES:
            # Records go to the next segment only when all that is in this one is durable.
            torn = found.torn
            raise _corrupt(torn.segment, torn.offset, found.next_lsn, f"the later segment {name} is in use")
        if used > at.end:
            witness = durability_witness(blob, at.end, lsn=at.lsn, seed=self._seed)
            if witness is not None:
                raise _corrupt(name, at.end, at.lsn, f"record {witness} was written after it was synced")
            found.torn = Torn(name, at.end, blob[at.end : used])
        if segment.next_lsn > segment.first_lsn or header.first_lsn:
            if found.spares:
                raise _corrupt(
                    found.spares[0].name, HEADER_BYTES, found.next_lsn, f"the later segment {name} is in use"
                )
            found.segments.append(segment)
            found.next_lsn, found.crc, found.batch_start = at.lsn, at.crc, at.batch_start
        else:
            found.spares.append(segment)

    def _start(self, header_lsn: int, blob: bytes, name: str) -> None:
        """Settle which lsn must come next."""
        found = self._found
        if header_lsn:
            if found.segments and header_lsn < found.next_lsn:
                raise LogCorruptError(
                    f"segment {name} starts at {header_lsn}, before the end of the one before it", segment=name
                )
            found.next_lsn, found.crc = header_lsn, 0
        elif not found.segments:
            # The oldest segment left by retirement always holds records; the first of them says where the log begins.
            first = peek(blob, HEADER_BYTES, self._seed)
            if first is None:
                raise LogCorruptError(
                    f"the first record of segment {name} is damaged", segment=name, offset=HEADER_BYTES
                )
            found.next_lsn, found.crc = first


def read_segment(files: Files, segment: Segment, *, after: int, before: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """Yield (lsn, payload) of one segment's records with `after` < lsn < `before`, verifying each."""
    lsn, offset, crc = segment.first_lsn, HEADER_BYTES, None
    for mark in segment.marks:
        if mark[0] > after + 1:
            break
        lsn, offset, crc = mark
    blob = files.read(segment.name, offset, segment.end - offset)
    if crc is None:
        first = peek(blob, 0, seed)
        crc = first[1] if first else 0
    at = Walk(lsn, crc, 0, 0)
    for found, start, end in walk(blob, at, seed):
        if found >= before:
            return
        if found > after:
            yield found, blob[start:end]
    if at.lsn < min(before, segment.next_lsn):
        raise _corrupt(segment.name, offset + at.end, at.lsn, "it was read or written by this process")
