"""Retry arithmetic: how many attempts, and how long to wait before the next one.

Law: pure; the random fraction for the jitter is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from durable.errors import ConfigError, NonRetryableError

#: The largest float. A larger int cannot become one.
_MOST = 1.7976931348623157e308


def seconds(value: float | timedelta, key: str) -> float:
    """Turn a duration into seconds; raise `ConfigError` for what is not a finite duration of zero or more."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key} is {value!r}, but must be seconds (int or float) or a timedelta", key=key)
    if not 0 <= value <= _MOST:
        raise ConfigError(f"{key} is {_text(value)}, but must be finite and not negative", key=key)
    return float(value)


def _number(value: object, least: float, most: float) -> bool:
    """Whether it is a number (no bool, no NaN) from `least` to `most`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _text(value: object) -> str:
    """The value as a message shows it: an int of thousands of digits has no decimal text."""
    return repr(value) if not isinstance(value, int) or abs(value) <= _MOST else "an int too large for a float"


@dataclass(frozen=True, init=False)
class Retry:
    """How often and how fast a task or step is tried again.

    Arguments:
        max_attempts: attempts in all, the first included.
        delay: wait before the second attempt, seconds or timedelta.
        factor: each further wait is longer by this factor.
        max_delay: longest wait, seconds or timedelta.
        jitter: up to this share of the wait is added at random, 0 to 1.
        unless: exception classes that end the attempts at once.
    """

    max_attempts: int
    delay: float
    factor: float
    max_delay: float
    jitter: float
    unless: tuple[type[BaseException], ...]

    def __init__(
        self,
        max_attempts: int,
        delay: float | timedelta = 1.0,
        factor: float = 2.0,
        max_delay: float | timedelta = 60.0,
        jitter: float = 0.0,
        unless: tuple[type[BaseException], ...] | type[BaseException] = (),
    ) -> None:
        if isinstance(max_attempts, bool) or not isinstance(max_attempts, int) or max_attempts < 1:
            raise ConfigError(
                f"Retry(max_attempts={_text(max_attempts)}) must be an int of at least 1", key="max_attempts"
            )
        if not _number(factor, 1, _MOST):
            raise ConfigError(f"Retry(factor={_text(factor)}) must be a finite number of at least 1", key="factor")
        if not _number(jitter, 0, 1):
            raise ConfigError(f"Retry(jitter={_text(jitter)}) must be between 0 and 1", key="jitter")
        classes = unless if isinstance(unless, tuple) else (unless,)
        if not all(isinstance(cls, type) and issubclass(cls, BaseException) for cls in classes):
            raise ConfigError(f"Retry(unless={unless!r}) must hold exception classes", key="unless")
        put = object.__setattr__  # the class is frozen
        put(self, "max_attempts", max_attempts)
        put(self, "delay", seconds(delay, "delay"))
        put(self, "factor", float(factor))
        put(self, "max_delay", seconds(max_delay, "max_delay"))
        put(self, "jitter", float(jitter))
        put(self, "unless", classes)

    @classmethod
    def of(cls, value: int | Retry) -> Retry:
        """Accept the short form: a number of attempts."""
        return value if isinstance(value, Retry) else cls(value)

    def wait_after(self, attempt: int, fraction: float) -> float:
        """Seconds to wait after attempt number `attempt` (from 1) failed; `fraction` in [0, 1) spreads the jitter."""
        if not self.delay:
            return 0.0  # however large the factor has become
        try:
            wait = min(self.delay * self.factor ** (attempt - 1), self.max_delay)
        except OverflowError:
            wait = self.max_delay
        return wait * (1 + self.jitter * fraction)

    def allows(self, error: BaseException) -> bool:
        """Whether this error may be tried again at all."""
        return not isinstance(error, (NonRetryableError, *self.unless))

    def to_json(self) -> list[Any]:
        """The part that is stored with a run. `unless` holds classes and stays with the code."""
        return [self.max_attempts, self.delay, self.factor, self.max_delay, self.jitter]

    @classmethod
    def from_json(cls, stored: list[Any], unless: tuple[type[BaseException], ...] = ()) -> Retry:
        """The counterpart of `to_json`."""
        max_attempts, delay, factor, max_delay, jitter = stored
        return cls(max_attempts, delay, factor, max_delay, jitter, unless)


#: One attempt and no more.
ONCE = Retry(1)
