"""What all tests share: `need` for tools that a machine may lack, and a folder for a store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def need(what: object, reason: str) -> None:
    """Go on if `what` is there. Else skip on a person's machine and fail in CI, where green has to mean that it ran.

    The reason names what would run the test: `need(shutil.which("node"), "node was not found: install Node.js 18 or newer")`.
    """
    if what:
        return
    if CI:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture
def store_dir(tmp_path: Path) -> Path:
    """A folder for one store, which is not there yet."""
    return tmp_path / "store"
