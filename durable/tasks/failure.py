"""Exceptions as records: `describe` turns one into a `Failure`, `revive` makes it again.

Law: neither fails, whatever the exception is; reviving imports nothing and calls no constructor of the class. What cannot be made
again as it was becomes a `StepError` that says what it had been.

The state is a tree: ``[arguments, attributes, what was left out]``, where each value is a cell: ``["v", value]``, ``["c", path of a
class]``, ``["l" | "t", cells]`` for a list or tuple, ``["e", type, message, *tree]`` for an exception (a member of a group, a cause).
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from types import BuiltinMethodType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, Protocol
from weakref import WeakValueDictionary

import durable.errors
from durable.codec.classes import NO_HINTS, find_class
from durable.core.records import Failure
from durable.errors import DecodeError, NotStorableError, StepError

MESSAGE_CHARACTERS_MAX = 10_000
TRACEBACK_CHARACTERS_MAX = 20_000
#: An exception within an exception within ... is stored this deep.
NESTED_MAX = 8
_LINE_CHARACTERS_MAX = 2_000
_PACKAGE = str(Path(durable.errors.__file__).parent) + "/"

#: Exception classes that are defined inside a function and were seen in this process: no module could find them again.
_local_classes: WeakValueDictionary[str, type] = WeakValueDictionary()

_Descriptor = MemberDescriptorType | GetSetDescriptorType


class ValueCodec(Protocol):
    """The part of a codec that this module needs."""

    def encode(self, value: object, /) -> bytes:
        """Return the bytes of the value, or refuse it with any exception."""

    def decode(self, data: bytes, /) -> object:
        """Return the value of the bytes."""


def describe(error: BaseException, codec: ValueCodec) -> Failure:
    """Return the exception as it is recorded.

    Arguments:
        codec: stores the arguments and attributes. Where it refuses an argument there is no state; an attribute that it refuses
            is left out, and named in a note on the exception that `revive` makes.
    """
    return Failure(_path(type(error)), _text(error), _traceback(error), _state(error, codec))


def revive(failure: Failure, codec: ValueCodec, kind: type[BaseException] | None = None) -> Exception:
    """Return the recorded exception, ready to be raised: of the same class, with equal arguments, attributes and text.

    Arguments:
        codec: what the state was encoded with.
        kind: the class, where the caller knows it; else it is looked for in the modules that are imported.

    Returns:
        A `StepError` with the recorded type, message and traceback, where the class is not there, is none that a coroutine
        could raise, or does not let itself be made again.
    """
    found = kind or _find(failure.error_type)
    if found is None or not _raisable(found) or failure.state is None:
        return _substitute(failure, found)
    try:
        tree: Any = codec.decode(failure.state)
        error = _remake(found, failure.message, tree)
    except Exception as refused:  # noqa: BLE001 - a class may refuse in any way; the note tells how
        error = _substitute(failure, found)
        error.add_note(f"durable could not make the exception itself again: {type(refused).__name__}: {refused}"[:500])
    return error


def _raisable(kind: type[BaseException]) -> bool:
    # A coroutine cannot raise StopIteration; KeyboardInterrupt and its like would stop more than the run.
    return issubclass(kind, Exception) and not issubclass(kind, StopIteration)


def _substitute(failure: Failure, kind: type[BaseException] | None) -> Exception:
    # These two are what the engine itself records, without a state: the message is all there is to them.
    own = kind if kind in (StepError, durable.errors.StepTimeoutError) else None
    message = failure.message if own or not failure.error_type else f"{failure.error_type}: {failure.message}"
    known = {"error_type": failure.error_type, "reason": failure.message, "traceback": failure.traceback}
    return (
        durable.errors.StepTimeoutError(message, **known)
        if own not in (None, StepError)
        else StepError(message, **known)
    )


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _find_class(path: str) -> type | None:
    local = _local_classes.get(path)
    if local is not None:
        return local
    parts = path.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            return find_class(f"{'.'.join(parts[:split])}:{'.'.join(parts[split:])}", NO_HINTS)
        except DecodeError:
            continue  # a class within a class: its module is named by fewer parts
    return None


def _find(error_type: str) -> type[BaseException] | None:
    found = _find_class(error_type)
    return found if found is not None and issubclass(found, BaseException) else None


def _text(error: BaseException) -> str:
    try:
        return _storable(str(error)[:MESSAGE_CHARACTERS_MAX])
    except Exception as failed:  # noqa: BLE001 - a __str__ that raises is no reason to lose the failure
        return f"<no text: {type(error).__qualname__}.__str__ raised {type(failed).__name__}>"


def _storable(text: str) -> str:
    # A lone surrogate (from os.fsdecode, say) is no UTF-8, and PostgreSQL takes no NUL in a text.
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _traceback(error: BaseException) -> str:
    """Format the traceback without values of variables, causes and groups included; of a long one the end is kept."""
    try:
        formatted = traceback.TracebackException(
            type(error), error, error.__traceback__, lookup_lines=False, compact=True
        )
        waiting: list[traceback.TracebackException | None] = [formatted]
        while waiting:
            each = waiting.pop()
            if each is not None:
                each.stack = _without_own_frames(each.stack)
                waiting += [each.__cause__, each.__context__, *(each.exceptions or ())]
        # One long message must not push out the frames.
        parts = [
            part if len(part) <= _LINE_CHARACTERS_MAX else part[:_LINE_CHARACTERS_MAX] + "…\n"
            for part in formatted.format()
        ]
    except Exception as failed:  # noqa: BLE001 - an exception whose attributes lie is still a failure to be recorded
        return f"<the traceback cannot be formatted: {type(failed).__name__}>"
    text = _storable("".join(parts))
    return text if len(text) <= TRACEBACK_CHARACTERS_MAX else "…\n" + text[2 - TRACEBACK_CHARACTERS_MAX :]


def _without_own_frames(stack: traceback.StackSummary) -> traceback.StackSummary:
    # The last frame stays: an error that durable itself raised would have no place otherwise.
    kept = [frame for frame in stack[:-1] if not frame.filename.startswith(_PACKAGE)]
    return traceback.StackSummary.from_list(kept + stack[-1:])


def _state(error: BaseException, codec: ValueCodec) -> bytes | None:
    # Nearly always everything is storable: only when it is not, each attribute is tried on its own.
    try:
        return codec.encode(_tree(error, None, NESTED_MAX))
    except Exception:  # noqa: BLE001 - a codec may refuse in any way; the failure itself must be recorded
        tree = _tree(error, codec, NESTED_MAX)
    try:
        return None if tree[0] is None else codec.encode(tree)
    except Exception:  # noqa: BLE001 - all parts fit, but not together: too large, say
        return None


def _tree(error: BaseException, sieve: ValueCodec | None, depth: int) -> list[Any]:
    kind = type(error)
    if "<locals>" in kind.__qualname__:
        _local_classes[_path(kind)] = kind
    if depth == 0:
        raise NotStorableError(f"exceptions are nested more than {NESTED_MAX} deep")
    arguments: list[Any] | None = None
    try:
        arguments = [_cell(value, sieve, depth) for value in error.args]
        if sieve is not None:
            sieve.encode(arguments)
    except Exception:  # as above
        if sieve is None:
            raise
        return [None, {}, []]
    attributes, left_out = {}, []
    for name, value in _attributes(error).items():
        try:
            cell = _cell(value, sieve, depth)
            if sieve is not None:
                sieve.encode(cell)
            attributes[name] = cell
        except Exception:  # as above
            if sieve is None:
                raise
            left_out.append(f"{name} ({type(value).__qualname__})")
    return [arguments, attributes, left_out]


def _cell(value: object, sieve: ValueCodec | None, depth: int) -> list[Any]:
    if isinstance(value, BaseException):
        return ["e", _path(type(value)), _text(value), *_tree(value, sieve, depth - 1)]
    if isinstance(value, type):
        return ["c", _path(value)]
    if type(value) in (list, tuple) and any(isinstance(item, (BaseException, type)) for item in value):  # type: ignore[attr-defined]
        return ["l" if type(value) is list else "t", [_cell(item, sieve, depth) for item in value]]  # type: ignore[attr-defined]
    return ["v", value]


def _attributes(error: BaseException) -> Mapping[str, object]:
    found: dict[str, object] = {}
    for name, descriptor in _members(type(error)).items():
        value = getattr(error, name, None)
        # Unset is None in the interpreter's own classes; in a user's slot None is a value.
        if value is not None or (descriptor.__objclass__.__module__ != "builtins" and hasattr(error, name)):
            found[name] = value
    found.update(vars(error))
    if isinstance(error.__cause__, Exception):
        found["__cause__"] = error.__cause__
    return found


def _members(kind: type[BaseException]) -> Mapping[str, _Descriptor]:
    """What instances hold outside `__dict__`: slots, and the fields of OSError, UnicodeError and their like."""
    return {
        name: member
        for each in kind.__mro__
        # Groups are made from their arguments. `obj` of an AttributeError can be anything, and only serves the interpreter's hints.
        if each not in (BaseException, BaseExceptionGroup, object)
        for name, member in vars(each).items()
        if isinstance(member, _Descriptor)
        and name not in ("__weakref__", "__dict__")
        and (each, name) != (AttributeError, "obj")
    }


def _remake(kind: type[BaseException], message: str, tree: list[Any]) -> Exception:
    cells, attributes, left_out = tree
    args = tuple(_value(cell) for cell in cells)
    # The nearest class whose __new__ is the interpreter's: a user's may want other arguments, and would be run.
    base: Any = next(each for each in kind.__mro__ if isinstance(vars(each).get("__new__"), BuiltinMethodType))
    error: Any = base.__new__(kind, *args) if issubclass(kind, BaseExceptionGroup) else base.__new__(kind)
    error.args = args
    members = _members(kind)
    for name, cell in attributes.items():
        if name == "__cause__":
            error.__cause__ = _value(cell)
        elif name in members:
            members[name].__set__(error, _value(cell))
        else:
            vars(error)[name] = _value(cell)
    if left_out:
        if _text(error) != message:
            raise NotStorableError(f"its text needs what could not be stored: {', '.join(left_out)}")
        error.add_note(f"durable could not store of this exception: {', '.join(left_out)}")
    made: Exception = error
    return made


def _value(cell: list[Any]) -> Any:
    match cell:
        case ["v", value]:
            return value
        case ["c", str(path)]:
            return _find_class(path)
        case ["l", cells]:
            return [_value(each) for each in cells]
        case ["t", cells]:
            return tuple(_value(each) for each in cells)
        case ["e", str(error_type), str(message), cells, attributes, left_out]:
            kind = _find(error_type)
            if kind is None or not _raisable(kind) or cells is None:
                return _substitute(Failure(error_type, message), kind)
            return _remake(kind, message, [cells, attributes, left_out])
        case _:
            raise DecodeError("the recorded state of an exception is malformed")
