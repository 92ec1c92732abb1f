"""The manifest: store id, boot epoch, newest segment and what was durable, in one small file that is replaced whole.

Law: it is durable before what it allows may be done. The epoch before the process acts, the newest segment before its
first record; so a last segment that got lost, and a damaged tail after a clean close, are noticed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from zlib import crc32

from durable.errors import LogCorruptError, StoreFormatError
from durable.log.files import Files, write_all
from durable.log.format import FORMAT, LEAST_READER

MANIFEST_NAME = "manifest"
MANIFEST_TEMPORARY = "manifest.tmp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the log knows of itself.

    Arguments:
        store_id: 32 hexadecimal digits, made at creation.
        epoch: how often this log was opened for writing.
        newest: the newest segment that may hold records; 0 before there is one.
        durable: first lsn that was not yet durable when this was written.
        lost_from, lost_through: the records that the last repair gave up; 0 and 0 where there was none.
    """

    store_id: str
    epoch: int
    newest: int
    durable: int
    lost_from: int = 0
    lost_through: int = 0


_FIELDS = tuple(field.name for field in fields(Manifest))


def encode_manifest(manifest: Manifest) -> bytes:
    """Two lines: JSON, and the CRC of the first line in hexadecimal."""
    body = json.dumps({"format": FORMAT, "least_reader": LEAST_READER, **asdict(manifest)}).encode()
    return body + b"\n%08x\n" % crc32(body)


def decode_manifest(text: bytes) -> Manifest:
    """Check and read a manifest; raises `StoreFormatError` or `LogCorruptError`."""
    body, _, rest = text.partition(b"\n")
    try:
        content = json.loads(body)
        least = content["least_reader"]
        # A newer writer may check its manifest otherwise, so its wish is heard before the CRC.
        if isinstance(least, int) and least > FORMAT:
            raise StoreFormatError(
                f"the log has format {content['format']} and needs a reader of format {least}; this one reads {FORMAT}"
            )
        if rest != b"%08x\n" % crc32(body):
            raise ValueError("wrong CRC")
        return Manifest(**{key: content[key] for key in _FIELDS})
    except (ValueError, KeyError, TypeError) as error:
        raise LogCorruptError(f"the log's manifest is damaged ({error})", segment=MANIFEST_NAME) from error


def read_manifest(files: Files, names: list[str]) -> Manifest | None:
    """The manifest, or None when there is none."""
    return decode_manifest(files.read(MANIFEST_NAME)) if MANIFEST_NAME in names else None


def stage_manifest(files: Files, manifest: Manifest) -> None:
    """Write and sync the next manifest beside the current one."""
    file = files.open(MANIFEST_TEMPORARY, create=True)
    try:
        write_all(file, encode_manifest(manifest), 0)
        file.fdatasync()
    finally:
        file.close()


def install_manifest(files: Files) -> None:
    """Put the staged manifest into effect, durably."""
    files.rename(MANIFEST_TEMPORARY, MANIFEST_NAME)
    files.fsync_dir()


def replace_manifest(files: Files, manifest: Manifest) -> None:
    """Durably replace the manifest: on return, and after any crash, it is the old one or the new one."""
    stage_manifest(files, manifest)
    install_manifest(files)
