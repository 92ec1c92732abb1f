"""Defects that are planted: a simulation that does not find them proves nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from durable.testing.oracle import SimulationError


def find(words: str, run_seed: Callable[[int], Any], seeds_max: int) -> None:
    """Fail unless one of the first seeds breaks a promise with these words, which are a pattern."""
    said = set()
    for seed in range(seeds_max):
        try:
            run_seed(seed)
        except SimulationError as error:
            if re.search(words, str(error)):
                return
            said.add(str(error)[:200])
    pytest.fail(f"{seeds_max} seeds did not find {words!r}; they said {said}")
