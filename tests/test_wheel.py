"""The package as it is built and installed, not as it lies in the checkout: everything that it needs is in it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import asyncio, sys
import durable
from durable import Durable, step, task

@step
async def fetch(name: str) -> str:
    return f"Hello, {name}!"

@task
async def greet(name: str) -> int:
    return len(await fetch(name))

async def main() -> None:
    for _ in range(2):  # opened again it finds what it wrote
        async with Durable("state") as app:
            print(await (await app.start(greet, "world")))
    print(durable.__file__)

asyncio.run(main())
"""


def test_what_is_built_starts(tmp_path: Path) -> None:
    """The built package runs the main job with nothing of the checkout on its path, and has the scripts of its tables."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT],
        check=True, capture_output=True, timeout=110,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("durable-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    for folder in ("repository/sql", "store/postgres/sql"):
        scripts = {path.name for path in (ROOT / "durable" / folder).glob("*.sql")}
        assert scripts and scripts == {path.name for path in (installed / "durable" / folder).glob("*.sql")}
    assert (installed / "durable" / "py.typed").exists()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)},
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["13", "13", str(installed / "durable" / "__init__.py")]
