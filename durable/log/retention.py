"""Retention: removes segments that nobody needs any more.

Law: oldest first, and each removal is durable before the next one, so that no crash can leave a hole. A segment with a
durable record is always left.
"""

from __future__ import annotations

from collections.abc import Sequence

from durable.log.files import Files
from durable.log.segment import Segment


def retirable(segments: Sequence[Segment], through: int) -> list[Segment]:
    """The leading segments whose every record is at or below `through`; never the newest one that holds a durable record.

    The active one may hold none yet: then, after a crash, nothing but the one before it can say where the log begins.
    """
    newest = max((place for place, each in enumerate(segments) if each.next_lsn > each.first_lsn), default=0)
    found = []
    for segment in segments[:newest]:
        if segment.next_lsn - 1 > through:
            break
        found.append(segment)
    return found


def remove(files: Files, names: Sequence[str]) -> None:
    """Remove segments, oldest first."""
    for name in names:
        files.unlink(name)
        files.fsync_dir()
