"""Retry arithmetic: what is accepted, and how long the waits are."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable.core.retry import ONCE, Retry, seconds
from durable.errors import ConfigError, NonRetryableError

HUGE = pytest.param(10**400, id="10**400")
UNREADABLE = pytest.param(10**5000, id="10**5000")  # has no decimal text (sys.set_int_max_str_digits)
finite = st.floats(0, 1e300)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0.0), (3, 3.0), (0.25, 0.25), (timedelta(minutes=2), 120.0), (timedelta.max, timedelta.max.total_seconds())],
)
def test_durations_are_seconds(value: float | timedelta, expected: float) -> None:
    """Numbers and timedeltas mean the same."""
    assert seconds(value, "timeout") == expected
    assert type(seconds(value, "timeout")) is float


@pytest.mark.parametrize("value", [-1, -0.001, math.nan, math.inf, -math.inf, timedelta(seconds=-1), HUGE, UNREADABLE])
def test_durations_that_no_clock_has_are_refused(value: float | timedelta) -> None:
    """Negative, endless and undefined waits are refused with the key at fault, an int beyond every float too."""
    with pytest.raises(ConfigError, match="must be finite and not negative") as caught:
        seconds(value, "timeout")
    assert caught.value.key == "timeout"


@pytest.mark.parametrize("value", ["1", None, True, [1], 1j])
def test_durations_of_other_types_are_refused(value: object) -> None:
    """A bool is no number of seconds, and text is not guessed at."""
    with pytest.raises(ConfigError, match="must be seconds"):
        seconds(value, "timeout")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "3", None, pytest.param(-(10**5000), id="-(10**5000)")])
def test_attempts_are_an_int_of_at_least_one(value: object) -> None:
    """The first attempt counts, so that fewer than one makes no sense."""
    with pytest.raises(ConfigError, match=r"max_attempts=.*at least 1") as caught:
        Retry(value)  # type: ignore[arg-type]
    assert caught.value.key == "max_attempts"


@pytest.mark.parametrize("value", [0, 0.99, -2, math.nan, math.inf, HUGE, UNREADABLE, True, "2", None])
def test_a_factor_is_at_least_one(value: object) -> None:
    """Waits do not shrink, and do not become endless at once."""
    with pytest.raises(ConfigError, match="factor=") as caught:
        Retry(3, factor=value)  # type: ignore[arg-type]
    assert caught.value.key == "factor"


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, HUGE, True, "0", None])
def test_jitter_is_a_share(value: object) -> None:
    """Jitter is a share of the wait, from nothing to all of it."""
    with pytest.raises(ConfigError, match="jitter=") as caught:
        Retry(3, jitter=value)  # type: ignore[arg-type]
    assert caught.value.key == "jitter"


@pytest.mark.parametrize("value", [(int,), ("ValueError",), 3, [ValueError], (ValueError, None)])
def test_unless_holds_exception_classes(value: object) -> None:
    """What could never be raised is a mistake in the policy."""
    with pytest.raises(ConfigError, match="exception classes") as caught:
        Retry(3, unless=value)  # type: ignore[arg-type]
    assert caught.value.key == "unless"


@pytest.mark.parametrize("key", ["delay", "max_delay"])
def test_bad_waits_name_their_argument(key: str) -> None:
    """Which of the two waits is wrong is in the error."""
    with pytest.raises(ConfigError, match="not negative") as caught:
        Retry(3, **{key: -1})  # type: ignore[arg-type]
    assert caught.value.key == key


def test_waits_grow_by_the_factor_up_to_the_longest() -> None:
    """Each further wait is longer by the factor, and none longer than `max_delay`."""
    retry = Retry(9, delay=0.5, factor=3, max_delay=timedelta(seconds=10))
    assert [retry.wait_after(attempt, 0.0) for attempt in range(1, 6)] == [0.5, 1.5, 4.5, 10.0, 10.0]


def test_jitter_adds_its_share() -> None:
    """The fraction spreads the wait between itself and itself plus the share."""
    retry = Retry(2, delay=10, jitter=0.2)
    assert [retry.wait_after(1, fraction) for fraction in (0.0, 0.5)] == [10.0, 11.0]


@pytest.mark.parametrize("attempt", [1_025, 10**6, 10**9])
def test_waits_do_not_overflow(attempt: int) -> None:
    """After so many attempts that the growth has no float, the wait is the longest one."""
    assert Retry(10**9, delay=1.0, max_delay=7.0).wait_after(attempt, 0.0) == 7.0


@pytest.mark.parametrize("attempt", [1, 2, 1_025, 10**9])
def test_no_delay_stays_no_delay(attempt: int) -> None:
    """A policy without waits has none after a thousand attempts either."""
    assert Retry(10**9, delay=0).wait_after(attempt, 0.5) == 0.0


@given(finite, st.floats(1, 1e300), finite, st.floats(0, 1), st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_waits_stay_within_their_bounds(
    delay: float, factor: float, longest: float, jitter: float, attempt: int, fraction: float
) -> None:
    """Whatever the policy, a wait is a finite number, never negative, and at most the longest plus its jitter."""
    retry = Retry(3, delay, factor, longest, jitter)
    wait = retry.wait_after(attempt, fraction)
    assert math.isfinite(wait)
    assert 0 <= wait <= longest * (1 + jitter)
    assert wait <= retry.wait_after(attempt + 1, fraction)


@given(st.integers(1, 10**9), finite, st.floats(1, 1e300), finite, st.floats(0, 1))
def test_a_policy_comes_back_from_its_stored_form(
    attempts: int, delay: float, factor: float, longest: float, jitter: float
) -> None:
    """What is stored with a run is the policy, apart from the classes, which stay with the code."""
    retry = Retry(attempts, delay, factor, longest, jitter, (KeyError,))
    assert Retry.from_json(retry.to_json(), (KeyError,)) == retry
    assert Retry.from_json(retry.to_json()).unless == ()


@pytest.mark.parametrize("stored", [[], [1], [1, 1.0, 2.0, 60.0, 0.0, ()]])
def test_a_stored_policy_has_five_parts(stored: list[object]) -> None:
    """A list of another length was written by something else."""
    with pytest.raises(ValueError, match="values to unpack"):
        Retry.from_json(stored)


def test_unless_ends_the_attempts() -> None:
    """Errors that no attempt can mend are told by class, subclasses included."""
    retry = Retry(3, unless=LookupError)
    assert retry.unless == (LookupError,)
    assert not retry.allows(KeyError("k"))
    assert not retry.allows(NonRetryableError("no"))
    assert retry.allows(ValueError("v"))


def test_a_number_is_short_for_a_policy() -> None:
    """`retry=3` is three attempts, and a policy is taken as it is."""
    assert Retry.of(3) == Retry(3)
    assert Retry.of(ONCE) is ONCE
    assert ONCE.max_attempts == 1


def test_a_policy_does_not_change() -> None:
    """Policies are shared by all runs of a task, and so are frozen and hashable."""
    retry = Retry(3)
    with pytest.raises(FrozenInstanceError):
        retry.delay = 9.0  # type: ignore[misc]
    assert {retry: 1}[Retry(3)] == 1
