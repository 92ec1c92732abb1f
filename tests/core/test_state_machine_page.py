"""docs/state-machine.md says what the table says."""

from __future__ import annotations

import re

import pytest

from docs.generate import (
    COMMANDS,
    PAGE,
    RETURNED,
    SEPARATOR,
    SHAPES,
    diagram,
    effects,
    reachable,
    state_machine,
    subjects,
)
from durable.core import commands, decide
from durable.core.status import ENDED, TRANSITIONS, Status, after


def test_the_page_is_up_to_date() -> None:
    """Diagram and tables are made from the code: `python -m docs.generate` writes them."""
    assert PAGE.read_text(encoding="utf-8") == state_machine(), "run `python -m docs.generate`"


def test_the_page_shows_each_command() -> None:
    """A command that is added to the core is on the page, and on the page every transition has a command."""
    classes = {type(command) for _, command in COMMANDS} | {commands.Create}
    assert classes == set(commands.Command.__args__)
    assert {(effect.before, effect.verb) for effect in effects() if effect.verb is not None} == set(TRANSITIONS)
    assert all(f"`{cls.__name__}`" in state_machine() for cls in classes)


def test_the_diagrams_have_each_transition_once() -> None:
    """What is drawn, in the one or in the other, can be read back as the table."""
    drawn = re.findall(r"(\w+) --> (\w+): (.+)", "\n".join([*diagram(family=False), *diagram(family=True)]))
    read = [(before, verb, following) for before, following, verbs in drawn for verb in verbs.split(SEPARATOR)]
    assert sorted(read) == sorted((*pair, following) for pair, following in TRANSITIONS.items())


def test_a_run_without_children_needs_only_the_first_diagram() -> None:
    """Who has no family to read about finds none of its states there."""
    first, second = "\n".join(diagram(family=False)), "\n".join(diagram(family=True))
    assert not any(status in first for status in RETURNED)
    assert all(status in second for status in RETURNED)
    assert all(f"{status} --> [*]" in first + second for status in ENDED)


@pytest.mark.parametrize("status", sorted(SHAPES))
def test_each_shape_makes_a_difference(status: Status) -> None:
    """A shape in which a run does just what it does in another would only be noise on the page."""
    found: dict[str, set[object]] = {shape: set() for shape, _ in subjects(status)}
    for effect in effects():
        if effect.before is status:
            found[effect.shape].add((effect.command, effect.verb, effect.kinds, effect.status))
    assert len({frozenset(done) for done in found.values()}) == len(found)


def test_what_no_run_can_come_to_is_named() -> None:
    """A status without a way to it is on the page as such."""
    for status in set(Status) - set(reachable()):
        assert f"`{status}`" in state_machine().partition("no transition leads to yet")[2]


def test_making_the_page_leaves_the_rules_alone() -> None:
    """The generator listens to what the rules ask the table for, and stops listening."""
    state_machine()
    assert decide.after is after
