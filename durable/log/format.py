"""The bytes of the log: segment header and frame. Pure; the grammar is in docs/log-format.md.

Law: a frame can be checked alone. Its CRC is seeded with the store id, so a frame of another store, or a copy of one
inside a payload of another store, never passes; the CRC of the frame before it is a field, not an input.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from zlib import crc32

from durable.errors import LogCorruptError, StoreFormatError

FORMAT = 1
#: The oldest reader that understands what this code writes.
LEAST_READER = 1
SEGMENT_MAGIC = b"DURLOG\r\n"
FRAME_MAGIC = 0xD7A1
FRAME_MAGIC_BYTES = FRAME_MAGIC.to_bytes(2, "little")
DATA = 1
#: magic, format, least reader, store id, number, first lsn (0: the first frame says), epoch, created (ms), size, crc
#: of all before.
HEADER = struct.Struct("<8sHH16sQQQQQI")
HEADER_BYTES = HEADER.size
#: magic, length, type, lsn, synced, crc of the frame before, crc of all this (seeded) and the payload.
FRAME = struct.Struct("<HIBQQII")
FRAME_BYTES = FRAME.size
_HEAD = struct.Struct("<HIBQQI")
_HEAD_BYTES = _HEAD.size
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Header:
    """A segment's header. `first_lsn` is 0 when the segment was prepared before its first lsn was known."""

    store_id: str
    number: int
    first_lsn: int
    epoch: int
    created_ms: int
    #: Bytes to which the file was preallocated; it may grow but never shrinks.
    size: int


def segment_name(number: int) -> str:
    """The file name of a segment."""
    return f"{number:012d}.log"


def segment_number(name: str) -> int | None:
    """The number in a segment's file name, or None for any other name."""
    stem, dot, suffix = name.partition(".")
    return int(stem) if dot and suffix == "log" and len(stem) == 12 and stem.isascii() and stem.isdigit() else None


def encode_header(header: Header) -> bytes:
    """The bytes at the start of a segment."""
    fields = (header.number, header.first_lsn, header.epoch, header.created_ms, header.size)
    body = HEADER.pack(SEGMENT_MAGIC, FORMAT, LEAST_READER, bytes.fromhex(header.store_id), *fields, 0)[:-4]
    return body + _CRC.pack(crc32(body))


def decode_header(blob: bytes, name: str, *, allow_cut: bool = False) -> Header:
    """Check and read a header; raises `StoreFormatError` for a newer writer's, `LogCorruptError` for a damaged or cut
    segment."""
    if len(blob) < HEADER_BYTES or blob[:8] != SEGMENT_MAGIC:
        raise LogCorruptError(f"segment {name} does not start with a header", segment=name)
    _, version, least, store, number, first_lsn, epoch, created_ms, size, crc = HEADER.unpack_from(blob)
    # A newer format may have another layout behind these fields, so they are looked at before the CRC.
    if least > FORMAT:
        raise StoreFormatError(
            f"segment {name} has format {version} and needs a reader of format {least}; this one reads {FORMAT}"
        )
    if crc != crc32(blob[: HEADER_BYTES - 4]):
        raise LogCorruptError(f"the header of segment {name} is damaged", segment=name)
    if segment_name(number) != name:
        raise LogCorruptError(f"segment {name} says that it is number {number}", segment=name)
    if len(blob) < size and not allow_cut:
        raise LogCorruptError(
            f"segment {name} has {len(blob)} bytes, but was made with {size}", segment=name, offset=len(blob)
        )
    return Header(store.hex(), number, first_lsn, epoch, created_ms, size)


def frame_seed(store_id: str) -> int:
    """Where the CRC of every frame of a store starts."""
    return crc32(bytes.fromhex(store_id))


def add_frame(parts: list[bytes], payload: bytes, *, lsn: int, synced: int, previous: int, seed: int) -> int:
    """Append one data frame's pieces to `parts`; returns its CRC, the `previous` of the next one."""
    head = _HEAD.pack(FRAME_MAGIC, len(payload), DATA, lsn, synced, previous)
    crc = crc32(payload, crc32(head, seed))
    parts += (head, _CRC.pack(crc), payload)
    return crc


@dataclass(slots=True)
class Walk:
    """Where a walk over good frames stands: `lsn` is expected at `end`, and `crc` is that of the frame before."""

    lsn: int
    crc: int
    end: int
    #: Offset of the first frame of the last batch: the one whose `synced` is its own lsn.
    batch_start: int


def walk(blob: bytes, at: Walk, seed: int) -> Iterator[tuple[int, int, int]]:
    """Yield (lsn, start, end) of each payload from `at` on while frames are good and in order; `at` moves along."""
    unpack, size, view = FRAME.unpack_from, len(blob), memoryview(blob)
    while at.end + FRAME_BYTES <= size:
        start = at.end
        magic, length, kind, lsn, synced, previous, crc = unpack(blob, start)
        if magic != FRAME_MAGIC or lsn != at.lsn or previous != at.crc:
            return
        payload = start + FRAME_BYTES
        end = payload + length
        if end > size or crc32(view[payload:end], crc32(view[start : start + _HEAD_BYTES], seed)) != crc:
            return
        if kind != DATA:
            raise StoreFormatError(f"record {lsn} has type {kind}, which this version does not know")
        if synced == lsn:
            at.batch_start = start
        at.lsn, at.crc, at.end = lsn + 1, crc, end
        yield lsn, payload, end


def peek(blob: bytes, offset: int, seed: int) -> tuple[int, int] | None:
    """(lsn, previous crc) of the frame at `offset` if it is good on its own."""
    if offset + FRAME_BYTES > len(blob):
        return None
    magic, length, _, lsn, _, previous, crc = FRAME.unpack_from(blob, offset)
    payload = offset + FRAME_BYTES
    if magic != FRAME_MAGIC or payload + length > len(blob):
        return None
    view = memoryview(blob)
    good = crc32(view[payload : payload + length], crc32(view[offset : offset + _HEAD_BYTES], seed)) == crc
    return (lsn, previous) if good else None


def durability_witness(blob: bytes, start: int, *, lsn: int, seed: int) -> int | None:
    """The lsn of a good frame at or behind `start` that says record `lsn` had been durable when it was written; or
    None."""
    at = start - 1
    while (at := blob.find(FRAME_MAGIC_BYTES, at + 1)) >= 0 and at + FRAME_BYTES <= len(blob):
        _, _, _, other, synced, _, _ = FRAME.unpack_from(blob, at)
        # Looked at before the CRC, so that a false magic costs nothing: payloads may hold many.
        if lsn < synced <= other and peek(blob, at, seed) is not None:
            return int(other)
    return None
