"""Opening a log: judge it against the repository's witness, then mend its tail.

Law: every refusal comes before the first change, and every change is safe to be cut short and done again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from durable.errors import LogCorruptError, StoreMismatchError
from durable.log.files import Files, write_all
from durable.log.manifest import Manifest, replace_manifest
from durable.log.reader import Survey
from durable.log.segment import SEGMENT_TEMPORARY

logger = logging.getLogger("durable.log")


@dataclass(frozen=True, slots=True)
class Cut:
    """A torn tail that was cut at open: records from `lsn` on were never acknowledged. The bytes are kept in
    `kept_in`."""

    lsn: int
    segment: str
    offset: int
    length: int
    kept_in: str


def judge(found: Survey, *, applied: int | None, store_id: str | None) -> None:
    """Refuse a log that does not go with the repository; `applied` and `store_id` are None where there is no
    repository."""
    if found.manifest is None:
        if applied or store_id is not None:
            raise StoreMismatchError(
                f"the repository has applied records up to {applied or 0} of store {store_id or 'unknown'}, "
                "but there is no log here. Open it with the directory that it was made with, or restore that"
            )
        return
    if store_id is not None and store_id != found.manifest.store_id:
        raise StoreMismatchError(
            f"the repository belongs to store {store_id}, the log to store {found.manifest.store_id}. "
            "Open each with its own other half"
        )
    witness = applied or 0
    if witness >= found.next_lsn:
        if found.torn is not None:
            raise LogCorruptError(
                f"record {found.next_lsn} cannot be read (segment {found.torn.segment}, offset {found.torn.offset}), "
                f"but the repository has applied records up to {witness}. Nothing was changed",
                segment=found.torn.segment,
                offset=found.torn.offset,
                lsn=found.next_lsn,
            )
        raise StoreMismatchError(
            f"the repository has applied records up to {witness}, but the log ends before {found.next_lsn}: "
            "the log is older than the repository, or records were lost. "
            "Restore the newer log, or go back to a repository of the same age"
        )
    given_up = found.manifest.lost_from <= witness + 1 and found.first_lsn <= found.manifest.lost_through + 1
    if found.first_lsn > witness + 1 and not given_up:
        state = (
            "there is no repository" if applied is None else f"the repository has applied records up to {witness} only"
        )
        raise StoreMismatchError(
            f"{state}, but the log begins with record {found.first_lsn}; the ones between are retired. "
            "Restore a repository that is as new as the log"
        )


def mend(files: Files, found: Survey) -> Cut | None:
    """Cut a torn tail, and make durable all that is left. Afterwards the active segment is ready for appending."""
    cut = _keep_torn(files, found)
    if found.segments:
        active = found.segments[-1]
        file = active.file = files.open(active.name)
        # The last batch is written once more before it is synced: if an earlier process got an error from its sync,
        # the pages may count as clean although they never reached the disk (fsyncgate), and a sync alone would then
        # promise nothing.
        if found.manifest is None or found.manifest.durable < found.next_lsn:
            write_all(
                file, files.read(active.name, found.batch_start, active.end - found.batch_start), found.batch_start
            )
        if cut is not None and cut.segment == active.name:
            write_all(file, bytes(cut.length), cut.offset)
        file.fdatasync()
    return cut


def _keep_torn(files: Files, found: Survey) -> Cut | None:
    torn = found.torn
    if torn is None:
        return None
    name, attempt = f"torn-{found.next_lsn}.bin", 1
    while name in found.names and files.read(name) != torn.remains:
        attempt += 1
        name = f"torn-{found.next_lsn}-{attempt}.bin"
    file = files.open(name, create=True)
    write_all(file, torn.remains, 0)
    file.fdatasync()
    file.close()
    files.fsync_dir()
    cut = Cut(found.next_lsn, torn.segment, torn.offset, len(torn.remains), name)
    where = f"{cut.length} bytes at offset {cut.offset} of segment {cut.segment}, behind record {cut.lsn - 1}"
    logger.warning("cut a torn tail: %s; it was never acknowledged, and is kept in %s", where, cut.kept_in)
    return cut


def take_over(files: Files, found: Survey, fresh_id: str) -> Manifest:
    """Raise the boot epoch durably, and drop what holds no record: temporary files and prepared segments."""
    old = found.manifest or Manifest(store_id=fresh_id, epoch=0, newest=0, durable=1)
    newest = found.segments[-1].number if found.segments else 0
    manifest = replace(old, epoch=old.epoch + 1, newest=newest, durable=found.next_lsn)
    replace_manifest(files, manifest)
    # Prepared segments are not used again: a failed sync of an earlier process may have left them in an unknown state
    # on disk.
    drop = [segment.name for segment in reversed(found.spares)]
    drop += [SEGMENT_TEMPORARY] if SEGMENT_TEMPORARY in found.names else []
    for name in drop:
        files.unlink(name)
    if drop:
        files.fsync_dir()
    return manifest
