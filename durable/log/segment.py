"""Segments: what is known of one, and how a new one comes to be.

Law: temporary file, header, zeros, sync, rename, sync of the directory, then the manifest that names it; only then a
record. A lack of room before the rename leaves nothing behind and is not a failure of the log.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from durable.log.files import NO_ROOM, Files, LogFile, write_all
from durable.log.format import HEADER_BYTES, Header, encode_header, segment_name
from durable.log.manifest import MANIFEST_TEMPORARY, Manifest, install_manifest, stage_manifest

SEGMENT_TEMPORARY = "segment.tmp"
#: Distance between two entries of a segment's sparse index.
MARK_BYTES = 64 * 1024


class NoRoomError(Exception):
    """A new segment does not fit on the disk; nothing of it is left and no record was touched."""


@dataclass(slots=True)
class Segment:
    """One segment; `next_lsn` and `end` cover what is durable (for a reader: what was good)."""

    number: int
    first_lsn: int
    next_lsn: int
    end: int
    size: int
    file: LogFile | None = None
    #: Sparse index: (lsn, offset, crc of the frame before).
    marks: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return segment_name(self.number)

    def mark(self, lsn: int, offset: int, crc: int) -> None:
        """Remember where `lsn` starts, if the last entry is far enough away."""
        if not self.marks or offset - self.marks[-1][1] >= MARK_BYTES:
            self.marks.append((lsn, offset, crc))


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentPlan:
    """A segment to be made: its header, and the manifest that makes it usable."""

    header: Header
    manifest: Manifest


def make_segment(files: Files, plan: SegmentPlan) -> Segment:
    """Create a segment durably and open it. Raises `NoRoomError` when there is no room, having cleaned up; else
    OSError."""
    header = plan.header
    if files.free_bytes() < header.size:
        raise NoRoomError(f"a segment needs {header.size} bytes, and {files.free_bytes()} are free")
    file: LogFile | None = None
    try:
        file = files.open(SEGMENT_TEMPORARY, create=True)
        write_all(file, encode_header(header), 0)
        file.preallocate(HEADER_BYTES, header.size)
        file.fdatasync()
        stage_manifest(files, plan.manifest)
    except OSError as error:
        if file is not None:
            file.close()
        if error.errno not in NO_ROOM:
            raise
        for name in {SEGMENT_TEMPORARY, MANIFEST_TEMPORARY}.intersection(files.names()):
            files.unlink(name)
        raise NoRoomError(str(error)) from error
    files.rename(SEGMENT_TEMPORARY, segment_name(header.number))
    # The name must be durable before the manifest says that there is such a segment.
    files.fsync_dir()
    install_manifest(files)
    return Segment(header.number, header.first_lsn, header.first_lsn, HEADER_BYTES, header.size, file)


def grow_segment(segment: Segment, size: int) -> Segment:
    """Make an unused segment large enough for a huge batch. Raises `NoRoomError` when there is no room, else
    OSError."""
    assert segment.file is not None
    try:
        segment.file.preallocate(segment.size, size)
        segment.file.fdatasync()
    except OSError as error:
        if error.errno in NO_ROOM:
            raise NoRoomError(str(error)) from error
        raise
    segment.size = size
    return segment
