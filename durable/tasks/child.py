"""`Child`: a run that a task returned, in place of the value that it will have.

Law: a child is *new* (a call that nobody has started), *started* (the id of a run, and no more) or *ended* (its outcome), and only goes
on from one to the next. It starts by being encoded as part of what a task returned, so that it comes into being in the same commit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Generic, NamedTuple

from typing_extensions import TypeVar

from durable.codec import Codec, Encoded, TaggedJson
from durable.codec.base import Refused
from durable.codec.encoder import TAG
from durable.core.run import Run
from durable.core.status import Status
from durable.errors import DecodeError, NotStorableError, RunError, TransitionError
from durable.tasks.definition import StartOptions, TaskDefinition
from durable.tasks.outcome import error_of
from durable.tasks.registry import find_task

R_co = TypeVar("R_co", covariant=True, default=Any)

CHILD_TAG = "child"
#: What the bytes of a value that holds a child contain.
_MARK = f'"{TAG}":"{CHILD_TAG}"'.encode()
_UNREAD = object()


class ChildCall(NamedTuple):
    """What a child is started with.

    Arguments:
        task: the task.
        options: the options of this start.
        arguments: bound and checked, by parameter name.
    """

    task: TaskDefinition
    options: StartOptions
    arguments: dict[str, Any]


class Child(Generic[R_co]):
    """A run that is returned by the task that wants it: made by `task.child(...)`, started once it was returned.

    The coordinator (`on_children_complete=`), and who waits for the parent, see its outcome. Asked before, it raises `TransitionError`.
    """

    __slots__ = ("_codec", "_run", "_run_id", "_value", "call")

    def __init__(self, call: ChildCall | None = None, run_id: str | None = None) -> None:
        #: What it is to be started with; None where it was decoded.
        self.call: ChildCall | None = call
        self._run_id = run_id
        self._run: Run | None = None
        self._codec: Codec | None = None
        self._value: Any = _UNREAD

    def __repr__(self) -> str:
        if self._run is not None:
            return f"<child {self._run.task!r}: run {self._run_id} is {self._run.status}>"
        task = "" if self.call is None else f" {self.call.task.name!r}"
        return f"<child{task}: {'new' if self._run_id is None else f'run {self._run_id}'}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Child):
            return NotImplemented
        return self is other or (self._run_id is not None and self._run_id == other._run_id)

    def __hash__(self) -> int:
        return object.__hash__(self) if self._run_id is None else hash(self._run_id)

    def __copy__(self) -> Child[R_co]:
        return self  # it stands for one run, whatever holds it

    def __deepcopy__(self, memo: dict[int, Any]) -> Child[R_co]:
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # for a step in a process of its own
        if self._run_id is None:
            raise NotStorableError(f"cannot store {self!r}: a child is started by being returned from a task")
        return _unpickled, (self._run_id, self._run, self.result if self._run is not None and self.ok else None)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> dict[str, Any]:
        return {"type": "is-instance", "cls": cls}

    @property
    def run_id(self) -> str:
        """The id of its run. Raises `TransitionError` while it is not started."""
        if self._run_id is None:
            raise TransitionError(
                f"{self!r} has no run yet: it is started when the task that made it has returned it. "
                "Return it, and read it in the coordinator (on_children_complete=)."
            )
        return self._run_id

    @property
    def status(self) -> Status:
        """How its run ended. Raises `TransitionError` where that is not known."""
        return self._ended.status

    @property
    def ok(self) -> bool:
        """Whether its run completed. Raises `TransitionError` where that is not known."""
        return self._ended.status is Status.COMPLETED

    @property
    def error(self) -> RunError | None:
        """What `.result` would raise; None if it completed. Raises `TransitionError` where that is not known."""
        return None if self.ok else error_of(self._ended)

    @property
    def result(self) -> R_co:
        """The result of its run.

        Raises `RunFailedError`, `RunTimedOutError` or `RunCancelledError` for one that ended otherwise, `TransitionError` where its end
        is not known, `DecodeError` where the class of the result is not there.
        """
        run = self._ended
        if not self.ok:
            raise error_of(run)
        if self._value is _UNREAD:
            assert self._codec is not None, "a run that ended came with its codec"
            self._value = self._codec.decode(run.result or b"null", _result_hint(run))
        value: R_co = self._value
        return value

    @property
    def _ended(self) -> Run:
        if self._run is None:
            raise TransitionError(
                f"the outcome of run {self.run_id}, a child, is not known here: it is known in the coordinator "
                "(on_children_complete=), and in what waiting for its parent returns."
            )
        return self._run

    def end(self, run: Run, codec: Codec) -> None:
        """Give it the outcome of its run.

        Arguments:
            run: its run, ended.
            codec: reads the result, when it is asked for.

        Raises `TransitionError` where it is not started, or has ended.
        """
        if self._run is not None or self.run_id != run.run_id or not run.ended:
            raise TransitionError(f"{self!r} cannot take the outcome of run {run.run_id}, which is {run.status}")
        self._run = Run(
            run.run_id, task=run.task, status=run.status, attempt=run.attempt,
            result=run.result, failure=run.failure, reason=run.reason,
        )  # fmt: skip
        self._codec = codec

    def stands_for(self, run_id: str) -> None:
        """Its key names a run that exists: that is its run, and not the one that was to be started."""
        self._run_id = run_id

    def unresolved(self) -> list[Child[Any]]:
        """The children that its result holds and that have no outcome yet: a run without coordinator completes with such."""
        if not self.ok or not self._holds_children or self._value is not _UNREAD:
            return []
        with found_children() as found:
            try:
                _ = self.result
            except DecodeError:
                return []  # whoever asks for the result is told
        return found

    def outcome(self) -> dict[str, Any]:
        """What is stored of it, once it has ended, within another value."""
        run, result = self._ended, self._ended.result
        if self._holds_children and self._value is not _UNREAD and self._codec is not None:
            # They have outcomes by now, which shall be stored, too.
            result = self._codec.encode(self._value, _result_hint(run))
        return {
            "run": run.run_id, "task": run.task, "status": str(run.status), "attempt": run.attempt,
            "result": None if result is None else Encoded(result), "failure": run.failure, "reason": run.reason,
        }  # fmt: skip

    @property
    def _holds_children(self) -> bool:
        return _MARK in (self._ended.result or b"")


def _result_hint(run: Run) -> Any:
    definition = find_task(run.task)
    return Any if definition is None else definition.result_hint


def _unpickled(run_id: str, run: Run | None, value: Any) -> Child[Any]:
    child: Child[Any] = Child(run_id=run_id)
    child._run, child._value = run, value
    return child


class _Starting:
    """The children that an encode starts."""

    def __init__(self, make_id: Callable[[], str]) -> None:
        self._make_id = make_id
        self._known: set[int] = set()
        self.children: list[Child[Any]] = []

    def start(self, child: Child[Any]) -> None:
        """Give a new child the id of its run; one that is met again is the same child."""
        if id(child) in self._known:
            return
        if child._run_id is not None:
            raise Refused(
                "it is a child that was returned before", "A child is one run: make another by `task.child(...)`."
            )
        child._run_id = self._make_id()
        self._known.add(id(child))
        self.children.append(child)


# Context variables, as an encode or decode of a deep value goes on in another thread, with a copy of the context.
_starting: ContextVar[_Starting | None] = ContextVar("durable.starting", default=None)
_finding: ContextVar[list[Child[Any]] | None] = ContextVar("durable.finding", default=None)


class new_children:  # like contextlib.suppress
    """In this block, encoding a value starts the new children in it; the list gets each once, in the order met.

    Arguments:
        make_id: makes the id of the next child's run.
    """

    def __init__(self, make_id: Callable[[], str]) -> None:
        self._starting = _Starting(make_id)

    def __enter__(self) -> list[Child[Any]]:
        self._token = _starting.set(self._starting)
        return self._starting.children

    def __exit__(self, *raised: object) -> None:
        _starting.reset(self._token)


class found_children:  # like contextlib.suppress
    """In this block, the list gets each child without an outcome that decoding makes, in the order of the value."""

    def __enter__(self) -> list[Child[Any]]:
        found: list[Child[Any]] = []
        self._token = _finding.set(found)
        return found

    def __exit__(self, *raised: object) -> None:
        _finding.reset(self._token)


def holds_children(payload: bytes) -> bool:
    """Whether an encoded value may hold children: a quick look that errs on the safe side."""
    return _MARK in payload


async def resolve(
    run_id: str, found: list[Child[Any]], end_children: Callable[[str, list[Child[Any]]], Awaitable[None]]
) -> None:
    """Give children their outcomes, and those that their results hold, however deep.

    Arguments:
        run_id: the run in whose value they were found.
        found: from `found_children`.
        end_children: calls `end` on each of some children of a run.
    """
    waiting = deque([(run_id, found)])
    while waiting:
        parent_id, children = waiting.popleft()
        if children:
            await end_children(parent_id, children)
            waiting.extend((child.run_id, child.unresolved()) for child in children)


def register_children(codec: TaggedJson) -> None:
    """Teach the codec children: a started one is stored as the id of its run, one that ended with its outcome."""

    def encode(child: Child[Any]) -> object:
        if child._run is not None:
            return child.outcome()
        starting = _starting.get()
        if starting is not None and child.call is not None:
            starting.start(child)
        elif child._run_id is None:
            what = f"a child of task {child.call.task.name!r} that was not started" if child.call else "no run"
            raise Refused(
                f"it is {what}",
                "A child is started by being returned from a task: return it; or call the task, or start() it.",
            )
        return child.run_id

    def decode(stored: Any) -> Child[Any]:
        if isinstance(stored, str):
            child: Child[Any] = Child(run_id=stored)
            found = _finding.get()
            if found is not None:
                found.append(child)
            return child
        child = Child(run_id=stored["run"])
        result = stored["result"]
        child.end(
            Run(
                stored["run"], task=stored["task"], status=Status(stored["status"]), attempt=stored["attempt"],
                result=None if result is None else result.payload, failure=stored["failure"], reason=stored["reason"],
            ),
            codec,
        )  # fmt: skip
        return child

    codec.register(Child, CHILD_TAG, encode, decode)
