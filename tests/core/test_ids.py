"""Identifiers: their form, and that they sort by time."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable.core.ids import FAMILY_DIGITS, after_run_id, family_of, family_of_key, is_run_id, make_run_id

entropy = st.binary(min_size=10, max_size=10)
times = st.integers(0, 2**48 - 1)


@given(times, entropy)
def test_an_id_is_a_uuid_of_version_7(milliseconds: int, random: bytes) -> None:
    """Version, variant and time stand where RFC 9562 has them, and the form is that of a run id."""
    text = make_run_id(milliseconds / 1000, random)
    parsed = uuid.UUID(text)
    assert (parsed.version, parsed.variant, parsed.hex) == (7, uuid.RFC_4122, text)
    assert abs((parsed.int >> 80) - milliseconds) <= 1, "the division may lose one millisecond"
    assert is_run_id(text)


@given(times, times, entropy, entropy)
def test_ids_sort_by_time(one: int, other: int, first: bytes, second: bytes) -> None:
    """A later run has a greater id, whatever the random part."""
    early, late = sorted((one // 1000, other // 1000))
    if early < late:
        assert make_run_id(early, first) < make_run_id(late, second)


@given(entropy, entropy)
def test_all_the_randomness_that_fits_is_used(one: bytes, other: bytes) -> None:
    """74 of the 80 random bits make the id; two ids of one millisecond differ in any of them."""
    kept = (0xFFF << 68) | (2**62 - 1)
    same = (int.from_bytes(one) ^ int.from_bytes(other)) & kept == 0
    assert (make_run_id(1.0, one) == make_run_id(1.0, other)) == same


@pytest.mark.parametrize(
    ("random", "tail"), [(b"\0" * 10, "7000" + "8" + "0" * 15), (b"\xff" * 10, "7fff" + "b" + "f" * 15)]
)
def test_the_fixed_bits_do_not_depend_on_the_random_ones(random: bytes, tail: str) -> None:
    """Nothing random runs into version or variant."""
    assert make_run_id(1.0, random) == "0000000003e8" + tail


def test_more_entropy_than_needed_does_no_harm() -> None:
    """Only the first ten bytes count."""
    assert make_run_id(1.0, b"\x01" * 16) == make_run_id(1.0, b"\x01" * 10)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0" * 31,
        "0" * 33,
        "0" * 32 + "\n",
        "G" + "0" * 31,
        "A" * 32,
        str(uuid.UUID(int=0)),
        "\N{ARABIC-INDIC DIGIT ZERO}" * 32,
    ],
)
def test_other_texts_are_no_ids(text: str) -> None:
    """32 lower-case hexadecimal digits, nothing before and nothing after them."""
    assert not is_run_id(text)


@given(st.lists(st.tuples(st.integers(0, 3), entropy), max_size=20))
def test_ids_of_one_process_are_in_the_order_in_which_they_were_made(made: list[tuple[int, bytes]]) -> None:
    """Within a millisecond, and where the clock steps back."""
    last = ""
    for milliseconds, random in made:
        following = after_run_id(last, make_run_id(milliseconds / 1000, random))
        assert following > last and is_run_id(following)
        last = following


@given(times, entropy, st.integers(0, 16**FAMILY_DIGITS - 1))
def test_a_family_has_digits_in_common(milliseconds: int, random: bytes, number: int) -> None:
    """Whatever is random, and also where an id has to be made later than the last one."""
    family = f"{number:0{FAMILY_DIGITS}x}"
    made = make_run_id(milliseconds / 1000, random, family)
    later = after_run_id(make_run_id(milliseconds / 1000, b"\xff" * 10), made)
    assert is_run_id(made) and is_run_id(later)
    assert family_of(made) == family_of(later) == family


def test_a_key_names_a_family() -> None:
    """The same for the same user and key; nobody in particular is a user of his own."""
    assert family_of_key("u", "k") == family_of_key("u", "k")
    assert (
        len({family_of_key(*pair) for pair in ((None, "k"), ("", "k"), ("u", "k"), (None, "uk"), ("u", "\ud800"))}) == 5
    )
