"""The circuit breaker, transition by transition."""

from __future__ import annotations

from durable.flush.breaker import Breaker, BreakerState


def opened(now: float = 100.0) -> Breaker:
    breaker = Breaker(3, 30.0)
    for _ in range(3):
        breaker.failure(now)
    return breaker


def test_it_opens_at_the_threshold_and_not_before() -> None:
    """Two failures of three leave it closed, the third opens it."""
    breaker = Breaker(3, 30.0)
    for _ in range(2):
        breaker.failure(0.0)
        assert breaker.allows(0.0)
    breaker.failure(0.0)
    assert breaker.state is BreakerState.OPEN
    assert not breaker.allows(0.0)


def test_a_success_forgets_the_failures_before_it() -> None:
    """Only failures in a row count."""
    breaker = Breaker(3, 30.0)
    for _ in range(10):
        breaker.failure(0.0)
        breaker.failure(0.0)
        breaker.success()
    assert breaker.state is BreakerState.CLOSED


def test_it_lets_one_through_when_its_time_is_up() -> None:
    """Open until the time is up, then half-open."""
    breaker = opened(100.0)
    assert breaker.wait_seconds(110.0) == 20.0
    assert not breaker.allows(129.9)
    assert breaker.allows(130.0)
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.wait_seconds(131.0) == 0.0


def test_half_open_closes_on_success_and_opens_on_failure() -> None:
    """The one call decides; after a failure the time begins anew."""
    breaker = opened(100.0)
    breaker.allows(130.0)
    breaker.failure(131.0)
    assert breaker.state is BreakerState.OPEN
    assert not breaker.allows(160.9)
    assert breaker.allows(161.0)
    breaker.success()
    assert breaker.state is BreakerState.CLOSED
    assert breaker.allows(161.0)
    breaker.failure(162.0)
    assert breaker.allows(162.0)
