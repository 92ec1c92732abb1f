"""The stories of tests/transcripts, each played and compared to the letter.

After a change that is meant, `DURABLE_REWRITE_TRANSCRIPTS=1 python -m pytest tests/core/test_transcripts.py` writes what is so now;
read the difference before it is committed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from durable.core.records import Kind
from durable.core.run import fold
from durable.core.status import TRANSITIONS, Status
from tests.core.machine import asked, give
from tests.core.story import perform

FOLDER = Path(__file__).resolve().parent.parent / "transcripts"
STORIES = sorted(FOLDER.glob("*.txt"))
REWRITE = os.environ.get("DURABLE_REWRITE_TRANSCRIPTS") == "1"


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_story_goes_as_it_is_written(path: Path) -> None:
    """The commands of the story give just the records, effects, refusals and statuses that stand there."""
    text = path.read_text(encoding="utf-8")
    played, _, _ = perform(text)
    if REWRITE:
        path.write_text(played, encoding="utf-8")
    else:
        assert played == text, f"if this is meant, write {path.name} anew with DURABLE_REWRITE_TRANSCRIPTS=1"


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_the_run_of_a_story_is_the_fold_of_its_records(path: Path) -> None:
    """At the end the run is what its records say, numbered without a gap, after a trip over the wire."""
    _, story, _ = perform(path.read_text(encoding="utf-8"))
    assert fold(story.records) == story.run
    assert [record.seq for record in story.records] == list(range(1, story.run.seq + 1))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_a_story_says_what_it_is_about(path: Path) -> None:
    """A story opens with a sentence for its reader."""
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_the_stories_take_every_transition_and_record_every_kind() -> None:
    """Whoever reads all stories has seen all that can happen to a run."""
    taken = [change for path in STORIES for change in perform(path.read_text(encoding="utf-8"))[2]]
    assert {kind for _, kind, _ in taken} == set(Kind)
    wanted: set[tuple[Status, Kind, Status]] = set()
    for (status, verb), following in TRANSITIONS.items():
        run, command = asked(status, verb)
        wanted.add((status, give(run, command)[-1].kind, following))
    assert wanted - set(taken) == set()


def test_there_are_stories() -> None:
    """An empty folder would pass all the tests above."""
    assert len(STORIES) >= 12
