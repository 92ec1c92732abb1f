"""Sliding windows against a list of all that ever came."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from durable.guard.window import FORGOTTEN_MAX, SlidingWindow, UserWindows

#: In quarters of a second, so that sums are exact.
gaps = st.integers(0, 12).map(lambda quarters: quarters / 4)


def wait_of(times: list[float], now: float, limit: int, window: float) -> float:
    """How long until fewer than `limit` lie in the last `window` seconds, by trying each moment at which one drops out."""
    for moment in sorted({now, *(each + window for each in times if each + window > now)}):
        if sum(moment - window < each for each in times) < limit:
            return moment - now
    raise AssertionError


@given(st.lists(st.tuples(gaps, st.integers(1, 5), st.sampled_from([1.0, 2.0, 5.0]))))
def test_a_window_tells_how_long_to_wait(moves: list[tuple[float, int, float]]) -> None:
    """Also when limit and length change from one start to the next: but what has dropped out of a short window stays out."""
    window, times, now = SlidingWindow(), list[float](), 100.0
    for gap, limit, seconds in moves:
        now += gap
        times = [each for each in times if each > now - seconds]
        expected = wait_of(times, now, limit, seconds)
        assert window.wait(now, limit, seconds) == expected
        assert len(window) == len(times)
        if not expected:
            window.add(now)
            times.append(now)


@given(st.integers(1, 6), st.sampled_from([0.5, 1.0, 3.0]), st.lists(gaps, min_size=1, max_size=60))
def test_no_window_ever_holds_more_than_the_limit(limit: int, seconds: float, steps: list[float]) -> None:
    """Whatever moments starts come at; and who waits as long as was said is let in."""
    window, let_in, now = SlidingWindow(), list[float](), 0.0
    for step in steps:
        now += step
        if wait := window.wait(now, limit, seconds):
            assert window.wait(now + 0.9 * wait, limit, seconds) > 0
            assert window.wait(now + wait, limit, seconds) == 0
            now += wait
        window.add(now)
        let_in.append(now)
    assert all(later - earlier >= seconds for earlier, later in zip(let_in, let_in[limit:], strict=False))


@given(st.lists(st.tuples(st.sampled_from("abc"), gaps)))
def test_users_have_windows_of_their_own(moves: list[tuple[str, float]]) -> None:
    windows, alone, now = UserWindows(), {user: SlidingWindow() for user in "abc"}, 0.0
    for user, gap in moves:
        now += gap
        expected = alone[user].wait(now, 2, 3.0)
        assert windows.wait(user, now, 2, 3.0) == expected
        if not expected:
            windows.add(user, now)
            alone[user].add(now)


def test_memory_of_a_million_users_does_not_stay() -> None:
    """With a thousand starts a second and a window of a second, a thousand users are kept."""
    windows = UserWindows()
    for number in range(1_000_000):
        now = number / 1000
        assert windows.wait(f"user {number}", now, 5, 1.0) == 0
        windows.add(f"user {number}", now)
        if number % 10_000 == 0:
            assert len(windows) <= 1001
    assert len(windows) <= 1001


def test_a_crowd_is_forgotten_in_small_steps() -> None:
    """No single start has to clear away all at once."""
    windows = UserWindows()
    for number in range(10 * FORGOTTEN_MAX):
        windows.add(str(number), 0.0)
    left = len(windows)
    while left:
        windows.wait("one", 100.0, 1, 1.0)
        assert left - FORGOTTEN_MAX <= len(windows) < left
        left = len(windows)


def test_a_start_costs_the_same_however_long_the_window_is() -> None:
    """More than a hundred times as many in the window, and as much time for each."""

    def seconds_for(limit: int) -> float:
        window = SlidingWindow()
        for number in range(limit):
            window.add(number / limit)  # sums of such fractions are exact
        started = time.perf_counter()
        for number in range(20_000):
            now = 1.0 + number / limit
            assert window.wait(now, limit, 1.0) == 0
            window.add(now)
        return time.perf_counter() - started

    assert min(seconds_for(2**17) for _ in range(3)) < 5 * min(seconds_for(2**10) for _ in range(3))
