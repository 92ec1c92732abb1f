"""docs/state-machine.md says what the table says."""

from __future__ import annotations

import re

from docs.generate import COMMANDS, PAGE, diagram, effects, reachable, state_machine
from durable.core import commands, decide
from durable.core.status import TRANSITIONS, Status, after


def test_the_page_is_up_to_date() -> None:
    """Diagram and tables are made from the code: `python -m docs.generate` writes them."""
    assert PAGE.read_text(encoding="utf-8") == state_machine(), "run `python -m docs.generate`"


def test_the_page_shows_each_command() -> None:
    """A command that is added to the core is on the page, and on the page every transition has a command."""
    classes = {type(command) for _, command in COMMANDS} | {commands.Create}
    assert classes == set(commands.Command.__args__)
    assert {(effect.before, effect.verb) for effect in effects() if effect.verb is not None} == set(TRANSITIONS)
    assert all(f"`{cls.__name__}`" in state_machine() for cls in classes)


def test_the_diagram_has_each_transition_once() -> None:
    """What is drawn can be read back as the table."""
    drawn = re.findall(r"(\w+) --> (\w+): (\w+)", "\n".join(diagram()))
    assert drawn == [(str(status), str(following), str(verb)) for (status, verb), following in TRANSITIONS.items()]


def test_what_no_run_can_come_to_is_named() -> None:
    """A status without a way to it is on the page as such."""
    for status in set(Status) - set(reachable()):
        assert f"`{status}`" in state_machine().partition("no transition leads to yet")[2]


def test_making_the_page_leaves_the_rules_alone() -> None:
    """The generator listens to what the rules ask the table for, and stops listening."""
    state_machine()
    assert decide.after is after
