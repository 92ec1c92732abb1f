"""Retention: removes segments that nobody needs any more.

Law: oldest first, and each removal is durable before the next one, so that no crash can leave a hole.
"""

from __future__ import annotations

from collections.abc import Sequence

from durable.log.files import Files
from durable.log.segment import Segment


def retirable(segments: Sequence[Segment], through: int) -> list[Segment]:
    """The leading segments whose every record is at or below `through`; never the active (last) one."""
    found = []
    for segment in segments[:-1]:
        if segment.next_lsn - 1 > through:
            break
        found.append(segment)
    return found


def remove(files: Files, names: Sequence[str]) -> None:
    """Remove segments, oldest first."""
    for name in names:
        files.unlink(name)
        files.fsync_dir()
