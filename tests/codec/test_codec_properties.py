"""Properties over generated values: round trip, stability, independence of order."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from durable.codec import TaggedJson
from durable.errors import PayloadError
from tests.codec.test_codec_values import Access, Color, Point, same

CODEC = TaggedJson()

TEXTS = st.text(st.characters(), max_size=6) | st.sampled_from(["$", "v", "c", "\ud83d", "\ud83d\ude00", "tuple"])
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.binary(max_size=5), st.decimals(), st.fractions(),
    st.uuids(), st.dates(), st.datetimes(timezones=st.none() | st.timezones(), allow_imaginary=True),
    st.times(), st.timedeltas(), st.sampled_from([*Color, *Access]), st.complex_numbers(),
)  # fmt: skip
KEYS = st.recursive(
    # A NaN is equal to no key, itself included; a signalling one cannot be hashed.
    SCALARS.filter(lambda value: "nan" not in repr(value).lower()),
    lambda inner: st.tuples(inner) | st.frozensets(inner, max_size=2),
    max_leaves=3,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=10),
        st.dictionaries(TEXTS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.sets(KEYS, max_size=3),
        st.builds(Point, inner, inner),
    ),
    max_leaves=15,
)


@settings(max_examples=400, deadline=None)
@given(VALUES)
def test_round_trip_is_exact_and_stable(value: object) -> None:
    """Any composition of storable values comes back exactly, and encodes to the same bytes again."""
    encoded = CODEC.encode(value)
    decoded = CODEC.decode(encoded)
    assert same(value, decoded)
    assert CODEC.encode(decoded) == encoded
    assert CODEC.identity(value) == CODEC.canonical(value) == CODEC.canonical(decoded)


def shuffled(value: Any, seed: random.Random) -> Any:
    """The same value with each dict and set built in another order."""
    if type(value) is dict:
        pairs = [(shuffled(key, seed), shuffled(item, seed)) for key, item in value.items()]
        seed.shuffle(pairs)
        return dict(pairs)
    if type(value) in (list, tuple):
        return type(value)(shuffled(item, seed) for item in value)
    if type(value) in (set, frozenset):
        parts = list(value)
        seed.shuffle(parts)
        return type(value)(parts)
    return value


@settings(max_examples=200, deadline=None)
@given(VALUES, st.randoms(use_true_random=False))
def test_canonical_does_not_depend_on_order(value: object, seed: random.Random) -> None:
    """Neither the order of a dict nor that of a set shows in the canonical bytes."""
    assert CODEC.canonical(shuffled(value, seed)) == CODEC.canonical(value)


@settings(max_examples=300, deadline=None)
@given(VALUES, st.data())
def test_damaged_payload_never_raises_anything_else(value: object, data: st.DataObject) -> None:
    """One changed byte gives another value or a PayloadError."""
    encoded = bytearray(CODEC.encode(value))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    with suppress(PayloadError):
        CODEC.decode(bytes(encoded))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_random_bytes_never_raise_anything_else(payload: bytes) -> None:
    """Noise gives a value or a PayloadError."""
    with suppress(PayloadError):
        CODEC.decode(payload)
