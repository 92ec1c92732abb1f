"""What type checkers make of the public interface: the right uses are accepted, and each wrong one is refused.

Law: mypy --strict and pyright strict agree. A wrong line says what refuses it: `# type: ignore[mypy's code]  # pyright's rule`. Here the
checkers see copies in which nothing is ignored; `make types` runs them over the files as they are, where an ignore too many is an error.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
GOOD = sorted(HERE.glob("good_*.py"))
BAD = sorted(HERE.glob("bad_*.py"))
MARK = re.compile(r"  # type: ignore\[(?P<mypy>[a-z, -]+)\]  # (?P<pyright>report\w+)$")

#: File name and line to what was found there.
Found = dict[tuple[str, int], set[str]]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, with nothing ignored."""
    folder = tmp_path_factory.mktemp("typing")
    for path in [*GOOD, *BAD]:
        lines = path.read_text(encoding="utf-8").splitlines()
        (folder / path.name).write_text("\n".join(MARK.sub("", line) for line in lines) + "\n", encoding="utf-8")
    return folder


def output(*command: str) -> str:
    """What a checker prints; it may find errors, but has to run."""
    environment = {**os.environ, "MYPYPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def mypy(copies: Path) -> Found:
    """What mypy --strict finds."""
    found: Found = defaultdict(set)
    options = (
        "--strict",
        "--config-file=",
        "--no-error-summary",
        "--hide-error-context",
        "--no-pretty",
        "--follow-imports=silent",
    )
    for line in output("mypy", *options, *map(str, sorted(copies.glob("*.py")))).splitlines():
        match = re.fullmatch(r"(.+?):(\d+): error: .*?(?:  \[([a-z-]+)\])?", line)
        if match:
            found[Path(match[1]).name, int(match[2])].add(match[3] or line)
    return found


@pytest.fixture(scope="module")
def pyright(copies: Path) -> Found:
    """What pyright finds in strict mode."""
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)], "include": ["."]}
    (copies / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    found: Found = defaultdict(set)
    report = json.loads(output("pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(copies)))
    assert report["summary"]["filesAnalyzed"] == len(GOOD) + len(BAD)
    for each in report["generalDiagnostics"]:
        if each["severity"] in ("error", "warning"):
            line = each["range"]["start"]["line"] + 1
            found[Path(each["file"]).name, line].add(each.get("rule", each["message"]))
    return found


def marked(path: Path, checker: str) -> Found:
    """The lines that have to be refused, and why."""
    expected: Found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if match := MARK.search(line):
            expected[path.name, number] = set(match[checker].split(", "))
    return expected


def of(path: Path, found: Found) -> Found:
    return {place: what for place, what in found.items() if place[0] == path.name}


def test_there_is_something_to_check() -> None:
    """The folder holds right uses and wrong ones, and every comment that ignores is a mark."""
    assert GOOD
    for path in BAD:
        text = path.read_text(encoding="utf-8")
        assert text.count("# type: ignore") == len(marked(path, "mypy")) > 10
    for path in GOOD:
        assert "ignore" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_right_use_is_accepted_by_mypy(path: Path, mypy: Found) -> None:
    """mypy --strict has nothing to say about right use."""
    assert of(path, mypy) == {}


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_right_use_is_accepted_by_pyright(path: Path, pyright: Found) -> None:
    """Pyright strict has nothing to say about right use."""
    assert of(path, pyright) == {}


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_each_wrong_line_is_refused_by_mypy(path: Path, mypy: Found) -> None:
    """mypy refuses the marked lines for the reasons given, and no other line."""
    assert of(path, mypy) == marked(path, "mypy")


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_each_wrong_line_is_refused_by_pyright(path: Path, pyright: Found) -> None:
    """Pyright refuses the marked lines for the reason given, maybe with others, and no other line."""
    found, expected = of(path, pyright), marked(path, "pyright")
    assert found.keys() == expected.keys()
    assert {place: rules for place, rules in expected.items() if not rules <= found[place]} == {}


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_right_use_runs(path: Path) -> None:
    """What the checkers accept also works; in a process of its own, for its task names are those of other tests, too."""
    program = f"import asyncio, {path.stem} as use; asyncio.run(asyncio.wait_for(use.main(), 60))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
