"""The tasks and steps that imported modules define, by name.

Law: it holds definitions weakly, so that one that nobody can call any more (a test's local function) is gone. Nothing else is
process-wide; applications look names up here when a run needs its code.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable
from weakref import WeakSet, WeakValueDictionary

from durable.errors import DuplicateTaskError
from durable.tasks.definition import StepDefinition, TaskDefinition

_tasks: WeakValueDictionary[str, TaskDefinition] = WeakValueDictionary()
_steps: WeakValueDictionary[str, StepDefinition] = WeakValueDictionary()
_listeners: WeakSet[Callable[[TaskDefinition], None]] = WeakSet()


def register_task(definition: TaskDefinition) -> None:
    """Make the task findable. Raises `DuplicateTaskError` when another function has its name."""
    known = _tasks.get(definition.name)
    if known is not None and (known.origin != definition.origin or "<locals>" in known.origin):
        known = None  # or it would be held by that
        gc.collect()  # the other one may be garbage that only waits to be collected
        known = _tasks.get(definition.name)
    if known is not None:
        if known.origin != definition.origin:
            raise DuplicateTaskError(
                f"task {definition.name!r} is defined by {known.origin} and again by {definition.origin}: pass name= to one of them"
            )
        warnings.warn(
            f"task {definition.name!r} of {definition.origin} is defined again and replaces the former definition",
            stacklevel=_levels_to_the_user(),
        )
    _tasks[definition.name] = definition
    for listener in list(_listeners):
        try:
            listener(definition)
        except RuntimeError:  # the event loop of its application is closed: nobody is there to be told
            _listeners.discard(listener)


def _levels_to_the_user() -> int:
    """How far up the stack the code is that used the decorator: `@task` and `@task(...)` differ in that."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("durable."):
        frame, level = frame.f_back, level + 1
    return level


def register_step(definition: StepDefinition) -> None:
    """Note that the code has a step of this name."""
    _steps[definition.name] = definition


def find_task(name: str) -> TaskDefinition | None:
    """The task of this name, if any imported module defines it."""
    return _tasks.get(name)


def find_code(name: str, version: str | None) -> TaskDefinition | None:
    """The code for a run of this task and version, if any imported module has it. One without a version goes with all."""
    definition = _tasks.get(name)
    if definition is None or version is None or definition.version in (None, version):
        return definition
    return None


def all_tasks() -> list[TaskDefinition]:
    """All tasks that imported modules define."""
    return list(_tasks.values())


def has_step(name: str) -> bool:
    """Whether the code has a step of this name."""
    return name in _steps


def on_new_task(listener: Callable[[TaskDefinition], None]) -> None:
    """Call `listener` for each task that is defined from now on; it is held weakly."""
    _listeners.add(listener)
