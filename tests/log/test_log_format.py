"""The bytes: what is written is what docs/log-format.md says."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from durable.errors import LogCorruptError
from durable.log.format import (
    HEADER_BYTES,
    Header,
    Walk,
    add_frame,
    decode_header,
    durability_witness,
    encode_header,
    frame_seed,
    segment_name,
    segment_number,
    walk,
)
from durable.log.manifest import Manifest, decode_manifest, encode_manifest

STORE = "00112233445566778899aabbccddeeff"
SEED = frame_seed(STORE)
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "log-format.md"


def segment(*batches: list[bytes]) -> bytes:
    """A segment with some batches, and zeros behind."""
    parts = [encode_header(Header(STORE, 1, 1, 1, 1_700_000_000_000, 256))]
    lsn, crc = 1, 0
    for batch in batches:
        synced = lsn
        for payload in batch:
            crc = add_frame(parts, payload, lsn=lsn, synced=synced, previous=crc, seed=SEED)
            lsn += 1
    return b"".join(parts).ljust(256, b"\0")


def hex_lines(blob: bytes) -> list[str]:
    """16 bytes a line, with the offset before."""
    return [f"{at:04x}  {blob[at : at + 16].hex(' ')}" for at in range(0, len(blob), 16)]


def test_the_example_of_the_document_is_what_the_code_writes() -> None:
    """The annotated dump in docs/log-format.md is made of real bytes."""
    text = DOCUMENT.read_text()
    for line in hex_lines(segment([b"hello", b""], [b"world"])):
        assert line in text
    manifest = Manifest(store_id=STORE, epoch=1, newest=1, durable=1)
    assert encode_manifest(manifest).decode() in text
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_frames_come_back_in_order() -> None:
    """What was packed is walked again, up to the zeros."""
    blob = segment([b"hello", b""], [b"world"])
    at = Walk(1, 0, HEADER_BYTES, HEADER_BYTES)
    assert [(lsn, blob[start:end]) for lsn, start, end in walk(blob, at, SEED)] == [
        (1, b"hello"),
        (2, b""),
        (3, b"world"),
    ]
    assert (at.lsn, blob[at.end :].strip(b"\0")) == (4, b"")
    assert decode_header(blob, segment_name(1)) == Header(STORE, 1, 1, 1, 1_700_000_000_000, 256)


def test_every_flipped_bit_is_noticed() -> None:
    """No single bit of a header or a frame can change without the reader stopping there."""
    blob = segment([b"hello", b""], [b"world"])
    end = len(blob.rstrip(b"\0"))
    for bit in range(end * 8):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        if bit < HEADER_BYTES * 8:
            with pytest.raises(Exception, match="segment"):
                decode_header(bytes(damaged), segment_name(1))
            continue
        at = Walk(1, 0, HEADER_BYTES, HEADER_BYTES)
        for _ in walk(bytes(damaged), at, SEED):
            pass
        assert at.lsn < 4


def test_a_later_batch_says_that_an_earlier_record_was_durable() -> None:
    """The witness is the `synced` of a later good frame; frames of the same batch, or of another store, say nothing."""
    blob = segment([b"hello", b""], [b"world"])
    behind = HEADER_BYTES + 1
    assert durability_witness(blob, behind, lsn=1, seed=SEED) == 3
    assert durability_witness(blob, behind, lsn=3, seed=SEED) is None
    assert durability_witness(segment([b"hello", b"", b"world"]), behind, lsn=1, seed=SEED) is None
    assert durability_witness(blob, behind, lsn=1, seed=frame_seed("ff" * 16)) is None


def test_garbage_is_never_taken_for_a_log() -> None:
    """Random bytes in place of a manifest or a segment are corruption, not a crash."""
    rng = random.Random(1)
    for length in range(0, 200, 7):
        garbage = rng.randbytes(length)
        with pytest.raises(LogCorruptError):
            decode_manifest(garbage)
        with pytest.raises(LogCorruptError):
            decode_header(garbage, segment_name(1))


def test_only_segment_names_are_segments() -> None:
    """What lies beside (torn tails, lost segments, temporary files) is not read as a log."""
    assert segment_number(segment_name(17)) == 17
    for name in (
        "torn-4.bin",
        "lost-1-000000000001.log",
        "manifest",
        "lock",
        "segment.tmp",
        "1.log",
        "00000000000x.log",
    ):
        assert segment_number(name) is None
