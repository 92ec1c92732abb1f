"""Exceptions as records: what is kept, what comes back, and what becomes a StepError."""

from __future__ import annotations

import asyncio
import decimal
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pydantic
import pytest

import durable.errors
from durable.codec import TaggedJson
from durable.core.records import Failure
from durable.errors import StepError, StepTimeoutError
from durable.tasks.failure import MESSAGE_CHARACTERS_MAX, TRACEBACK_CHARACTERS_MAX, _local_classes, describe, revive

CODEC = TaggedJson()


class PickyError(Exception):
    """Its constructor wants what `args` does not hold."""

    def __init__(self, code: int, *, where: str) -> None:
        super().__init__(f"code {code} at {where}")
        self.code = code
        self.where = where


class SlottedError(Exception):
    __slots__ = ("__hidden", "code", "never_set")

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code
        self.__hidden = code + 1

    def __str__(self) -> str:
        return f"{self.code} and {self.__hidden}"


class NewError(Exception):
    def __new__(cls, first: str, second: str) -> NewError:
        assert first
        assert second
        return super().__new__(cls, first, second)


class Outer:
    class InnerError(LookupError):
        pass


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class ResponseError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.connection = threading.Lock()


class TextNeedsLockError(Exception):
    def __init__(self) -> None:
        self.guard = threading.Lock()

    def __str__(self) -> str:
        return f"locked: {self.guard.locked()}"


class TeamError(ExceptionGroup[Exception]):
    pass


def raised(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except BaseException as error:  # noqa: BLE001 - whatever it is
        return error
    raise AssertionError("nothing was raised")


def with_note() -> ValueError:
    error = ValueError("noted")
    error.add_note("look here")
    return error


def round_trip(error: BaseException) -> Exception:
    return revive(describe(error, CODEC), CODEC)


REVIVED: list[BaseException] = [
    ValueError(),
    ValueError("text", 2, None, (1, 2)),
    ValueError("\ud800 and \0"),
    KeyError("key"),
    with_note(),
    raised(lambda: os.stat("/there/is/nothing")),
    OSError(5, "bad", "one", None, "two"),
    raised(lambda: b"\xff".decode()),
    raised(lambda: "\ud800".encode()),
    raised(lambda: int.nothing),  # type: ignore[attr-defined]
    raised(lambda: nothing),  # type: ignore[name-defined]
    raised(lambda: __import__("nothing_of_that_name")),
    raised(lambda: compile("a b", "<text>", "exec")),
    raised(lambda: 1 / 0),
    raised(lambda: decimal.Decimal("abc")),
    raised(lambda: json.loads("{")),
    asyncio.TimeoutError("late"),  # noqa: UP041 - the alias is what users write
    subprocess.CalledProcessError(3, ["true"], b"out"),
    PickyError(3, where="sea"),
    SlottedError(3),
    NewError("a", "b"),
    Outer.InnerError("x"),
    durable.errors.NonRetryableError("no"),
    durable.errors.ValidationError("bad", field="x", errors=[{"field": "x"}]),
    durable.errors.BackpressureError(retry_after=3.5),
    durable.errors.RunFailedError("r", run_id="1", error_type="t", reason="m", traceback="tb"),
    StepTimeoutError("step 'x' timed out", error_type="t", reason="r"),
]


@pytest.mark.parametrize("error", REVIVED, ids=lambda error: type(error).__name__)
def test_an_exception_comes_back_as_it_was(error: BaseException) -> None:
    """Class, arguments, attributes and text are equal, and the constructor is not called."""
    made = round_trip(error)
    assert type(made) is type(error)
    assert made.args == error.args
    assert str(made) == str(error)
    assert vars(made) == vars(error)
    for name in ("errno", "filename", "filename2", "start", "reason", "name", "lineno", "code"):
        assert getattr(made, name, None) == getattr(error, name, None)


def test_a_group_comes_back_with_its_members() -> None:
    """Groups in groups keep their classes; a member whose class is gone becomes a StepError in its place."""
    gone = type("GoneError", (Exception,), {"__module__": __name__})
    group = TeamError("all", [PickyError(1, where="a"), ExceptionGroup("some", [KeyError("k"), gone("g")])])
    made = round_trip(group)
    assert type(made) is TeamError
    assert str(made) == str(group)
    first, second = made.exceptions
    assert (type(first), str(first)) == (PickyError, "code 1 at a")
    assert isinstance(second, ExceptionGroup)
    assert [type(each) for each in second.exceptions] == [KeyError, StepError]
    assert "GoneError: g" in str(second.exceptions[1])


def test_the_cause_comes_back_too() -> None:
    """`except X as error: error.__cause__` sees the same, live and on replay."""

    def fail() -> None:
        try:
            raise KeyError("k")
        except KeyError as error:
            raise ValueError("v") from error

    made = round_trip(raised(fail))
    assert isinstance(made.__cause__, KeyError)
    assert made.__cause__.args == ("k",)


def test_an_attribute_that_cannot_be_stored_is_left_out_and_named() -> None:
    """The class still routes the `except`; a note tells what is missing."""
    made = round_trip(ResponseError(503))
    assert type(made) is ResponseError
    assert made.status == 503
    assert not hasattr(made, "connection")
    assert "connection (lock)" in made.__notes__[0]


def local_error() -> Exception:
    class LocalError(Exception):
        pass

    return LocalError("inside")


def test_a_class_inside_a_function_is_found_where_it_was_seen() -> None:
    """The process that raised it makes it again."""
    error = local_error()
    assert type(round_trip(error)) is type(error)


SUBSTITUTED: list[tuple[BaseException, str]] = [
    (ValueError(threading.Lock()), "builtins.ValueError"),
    (TextNeedsLockError(), f"{__name__}.TextNeedsLockError"),
    (local_error(), f"{__name__}.local_error.<locals>.LocalError"),
    (raised(lambda: pydantic.TypeAdapter(int).validate_python("x")), "pydantic_core._pydantic_core.ValidationError"),
    (KeyboardInterrupt(), "builtins.KeyboardInterrupt"),
    (SystemExit(3), "builtins.SystemExit"),
    (asyncio.CancelledError(), "asyncio.exceptions.CancelledError"),
    (StopIteration(1), "builtins.StopIteration"),
    (BaseExceptionGroup("g", [KeyboardInterrupt()]), "builtins.BaseExceptionGroup"),
]


@pytest.mark.parametrize(("error", "error_type"), SUBSTITUTED, ids=[each[1] for each in SUBSTITUTED])
def test_what_cannot_come_back_is_a_step_error(error: BaseException, error_type: str) -> None:
    """It carries the recorded type, message and traceback."""
    failure = describe(error, CODEC)
    _local_classes.clear()  # as in another process
    made = revive(failure, CODEC)
    assert type(made) is StepError
    assert made.error_type == failure.error_type == error_type
    assert made.message == failure.message == str(error)
    assert made.traceback == failure.traceback != ""
    assert error_type in str(made)


def test_a_timeout_recorded_without_state_revives_with_its_message() -> None:
    """The engine records a step's timeout by name and text alone."""
    made = revive(Failure("durable.errors.StepTimeoutError", "step 'fetch' timed out after 5 s"), CODEC)
    assert type(made) is StepTimeoutError
    assert isinstance(made, TimeoutError)
    assert str(made) == made.message == "step 'fetch' timed out after 5 s"


@pytest.mark.parametrize(
    "failure",
    [
        Failure("", "m"),
        Failure("nodots", "m"),
        Failure("no.such.Class", "m"),
        Failure("builtins.ValueError", "m", state=b"garbage"),
        Failure("builtins.ValueError", "m", state=CODEC.encode([1, 2])),
        Failure("builtins.ValueError", "m", state=CODEC.encode([[["x", 1]], {}, []])),
        Failure("builtins.int", "m", state=CODEC.encode([[], {}, []])),
        Failure("os.system", "m", state=CODEC.encode([[["v", "true"]], {}, []])),
        Failure("email.mime.nonmultipart.MIMENonMultipart", "m", state=b"null"),
    ],
)
def test_a_record_that_makes_no_sense_is_a_step_error(failure: Failure) -> None:
    """Whatever is stored, nothing is imported or called, and the message is not lost."""
    before = set(sys.modules)
    made = revive(failure, CODEC)
    assert type(made) is StepError
    assert made.message == "m"
    assert set(sys.modules) == before


def test_a_stored_name_cannot_reach_behind_the_attributes() -> None:
    """`__class__` in a state is a plain attribute and changes nothing."""
    state = CODEC.encode([[], {"__class__": ["c", "builtins.KeyError"], "__traceback__": ["v", 1]}, []])
    assert type(revive(Failure("builtins.ValueError", "", state=state), CODEC)) is ValueError


def test_describing_never_fails() -> None:
    """A __str__ that raises, a codec that breaks and exceptions nested without end are all recorded."""
    assert "__str__ raised RuntimeError" in describe(MuteError(), CODEC).message

    class BrokenCodec:
        def encode(self, value: object, /) -> bytes:
            raise RuntimeError("broken")

        def decode(self, data: bytes, /) -> object:
            raise RuntimeError("broken")

    assert describe(ValueError("x"), BrokenCodec()).state is None
    chain = deep = ValueError("deep")
    for _ in range(100):
        outer = ValueError("outer")
        outer.__cause__ = chain
        chain = outer
    assert type(round_trip(chain)) is ValueError
    loop = ValueError("loop")
    loop.__cause__ = deep
    deep.__cause__ = loop
    assert type(round_trip(loop)) is ValueError
    selfish: Any = ValueError("selfish")
    selfish.args = (selfish,)
    assert type(round_trip(selfish)) is ValueError


def test_message_and_traceback_are_cut() -> None:
    """A huge text is cut at its end, a huge traceback at its start, and the frames survive a huge text."""

    def recurse(depth: int) -> None:
        # Two lines by turns, for the formatter folds one that repeats.
        if depth == 0:
            raise ValueError("x" * 1_000_000)
        if depth % 2:
            recurse(depth - 1)
        recurse(depth - 1)

    failure = describe(raised(lambda: recurse(500)), CODEC)
    assert failure.message == "x" * MESSAGE_CHARACTERS_MAX
    assert len(failure.traceback) <= TRACEBACK_CHARACTERS_MAX
    assert failure.traceback.startswith("…\n")
    assert "in recurse" in failure.traceback
    assert "ValueError: xxx" in failure.traceback


def test_the_traceback_shows_the_users_code_and_no_values() -> None:
    """Causes and groups are included, frames of durable are not, values of variables never."""

    def fail() -> None:
        password = "hunter" + "2"
        try:
            assert password
            raise KeyError("first")
        except KeyError as error:
            raise ExceptionGroup("group", [ValueError("member")]) from error

    text = describe(raised(fail), CODEC).traceback
    for part in ("in fail", "KeyError: 'first'", "direct cause", "ValueError: member", "group (1 sub-exception)"):
        assert part in text
    assert "hunter2" not in text
    within = raised(lambda: CODEC.encode(object()))
    lines = describe(within, CODEC).traceback
    assert lines.count("/durable/") == 1  # only where it was raised
    assert "test_failure.py" in lines
