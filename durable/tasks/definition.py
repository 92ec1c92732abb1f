"""Definitions: what a decorator learned about a function.

Law: a definition never changes; `options()` and a second decoration make new ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any, Generic, Literal, TypeVar, Union, get_origin, get_type_hints

from durable.core.retry import Retry, seconds
from durable.errors import ConfigError, DefinitionError, ValidationError
from durable.tasks.validation import InputCheck

R = TypeVar("R")
C = TypeVar("C", bound=str)

Shape = Literal["coroutine", "generator", "function"]


class Rerun(Enum):
    """What a recovery handler returns to have the body run again."""

    RERUN = "rerun"

    def __repr__(self) -> str:
        return "RERUN"


RERUN = Rerun.RERUN


class Result(Generic[R]):
    """What an async generator task yields to end with a result: `yield Result(value)`."""

    __slots__ = ("value",)

    def __init__(self, value: R) -> None:
        self.value: R = value

    def __repr__(self) -> str:
        return f"Result({self.value!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Result) and bool(self.value == other.value)

    __hash__ = None  # type: ignore[assignment]  # as a list has none: the value may be one


def shape_of(function: Callable[..., Any]) -> Shape:
    """How the function has to be run."""
    inner = inspect.unwrap(function)
    if inspect.isasyncgenfunction(inner):
        return "generator"
    if inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None)):  # noqa: B004
        return "coroutine"
    return "function"


def name_of(function: Callable[..., Any], name: str | None, what: str) -> str:
    """The name that the function goes by; raises `ConfigError` where it has none fit to find it again."""
    if name is None:
        name = getattr(function, "__name__", None)
        if not name or name == "<lambda>":
            raise ConfigError(f"{what} {function!r} has no name of its own: pass name=", key="name")
    if not isinstance(name, str) or not 1 <= len(name) <= 200 or not name.isprintable() or name != name.strip():
        raise ConfigError(
            f"{what} name {name!r} must be 1 to 200 printable characters without spaces around them", key="name"
        )
    return name


def _annotated(function: Callable[..., Any]) -> Any:
    """The function that carries the annotations: inside wrappers and partials, or the `__call__` of an object."""
    inner = inspect.unwrap(function)
    while isinstance(inner, partial):
        inner = inspect.unwrap(inner.func)
    return inner if hasattr(inner, "__qualname__") else type(inner).__call__


def origin_of(function: Callable[..., Any]) -> str:
    """Where the function is defined; the same when it is defined again."""
    while isinstance(function, partial):
        function = function.func
    named: Any = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def code_of(function: Callable[..., Any]) -> object:
    """What tells functions of one name apart: their code, which is the same when a nested function or a partial is made again."""
    inner: Any = function
    while isinstance(inner, partial) or inspect.ismethod(inner):
        inner = inner.func if isinstance(inner, partial) else inner.__func__
    return getattr(inner, "__code__", inner)


def check_callable(function: object, what: str) -> Callable[..., Any]:
    """Refuse what cannot be a task or a step."""
    if not callable(function) or inspect.isclass(function):
        raise DefinitionError(f"@{what} is for functions, but got {function!r}")
    if isinstance(function, staticmethod | classmethod):
        raise DefinitionError(f"@{what} does not go on a static or class method: decorate a function at module level")
    if inspect.isgeneratorfunction(function):
        name = getattr(function, "__name__", function)
        raise DefinitionError(f"@{what} does not support plain generators: make {name!r} an async one")
    return function


def positive(value: float | timedelta, key: str) -> float:
    """Seconds, more than none."""
    number = seconds(value, key)
    if number == 0:
        raise ConfigError(f"{key} must be longer than 0 seconds", key=key)
    return number


def checked_priority(value: int) -> int:
    """Return the priority, or raise `ConfigError`."""
    if isinstance(value, bool) or not isinstance(value, int) or not -1000 <= value <= 1000:
        raise ConfigError(f"priority is {value!r}, but must be an int between -1000 and 1000", key="priority")
    return value


def checked_switch(value: bool, key: str) -> bool:
    """Return the value, or raise `ConfigError`."""
    if not isinstance(value, bool):
        raise ConfigError(f"{key} is {value!r}, but must be True or False", key=key)
    return value


def checked_choice(value: C, choices: tuple[C, ...], key: str) -> C:
    """Return the value, or raise `ConfigError`."""
    if value not in choices:
        raise ConfigError(f"{key} is {value!r:.100}, but must be one of {', '.join(map(repr, choices))}", key=key)
    return value


def checked_function(value: Callable[..., Any], key: str) -> Callable[..., Any]:
    """Return the function, or raise `ConfigError`."""
    if not callable(value):
        raise ConfigError(f"{key} is {value!r}, but must be a function", key=key)
    return value


def checked_key(value: str | Callable[..., str] | None) -> str | Callable[..., str] | None:
    """Return the key, or raise `ConfigError`."""
    if value is not None and not callable(value) and (not isinstance(value, str) or not 1 <= len(value) <= 500):
        raise ConfigError(
            f"key is {value!r}, but must be a str of 1 to 500 characters, or a function of the arguments", key="key"
        )
    return value


def checked_count(value: int | None, key: str) -> int | None:
    """Return the count, or raise `ConfigError`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ConfigError(f"{key} is {value!r}, but must be an int of zero or more", key=key)
    return value


@dataclass(frozen=True, eq=False)
class FunctionFacts:
    """What calling a function needs, learned once."""

    function: Callable[..., Any]
    context_class: type

    @cached_property
    def shape(self) -> Shape:
        """How the function has to be run."""
        return shape_of(self.function)

    @cached_property
    def hints(self) -> Mapping[str, Any]:
        """The annotations, resolved where they can be."""
        function = _annotated(self.function)
        try:
            return get_type_hints(function, include_extras=True)
        except Exception:  # noqa: BLE001 - annotations are the user's code: any of them may fail to resolve
            pieces = dict(getattr(function, "__annotations__", {}))
        for name, hint in pieces.items():
            piece = SimpleNamespace(__annotations__={name: hint})
            try:
                pieces[name] = get_type_hints(piece, getattr(function, "__globals__", {}), include_extras=True)[name]
            except Exception:  # noqa: BLE001 - the same
                pieces[name] = hint  # as it is written; the others are worth having
        return pieces

    @cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self.function)

    @cached_property
    def takes_context(self) -> bool:
        """Whether the first parameter is annotated `Context` and supplied by the engine."""
        first = next(iter(self._signature.parameters.values()), None)
        if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
            return False
        hint = self.hints.get(first.name)
        if isinstance(hint, str):  # the annotations could not be resolved as a whole
            return hint.split("[")[0].split(".")[-1] == self.context_class.__name__
        hint = get_origin(hint) or hint
        return isinstance(hint, type) and issubclass(hint, self.context_class)

    @cached_property
    def signature(self) -> inspect.Signature:
        """The signature that callers see: without the context."""
        parameters = list(self._signature.parameters.values())
        return self._signature.replace(parameters=parameters[1:] if self.takes_context else parameters)

    @cached_property
    def returns(self) -> Any:
        """The annotated result, or Any."""
        hint = self.hints.get("return", Any)
        return Any if hint is None or isinstance(hint, str) or self.shape == "generator" else hint

    @cached_property
    def input_hint(self) -> Any:
        """A hint that mentions every class that the parameters' annotations do."""
        hints = [
            hint for name, hint in self.hints.items() if name in self.signature.parameters and not isinstance(hint, str)
        ]
        return Union[tuple(hints)] if hints else Any  # noqa: UP007 - made of a list

    @cached_property
    def input_check(self) -> InputCheck:
        """Checks arguments against the annotations."""
        return InputCheck(self.signature, self.hints)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> dict[str, Any]:
        """Bind a call to parameter names and check it. Raises `ValidationError`."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ValidationError(
                f"{name}{self.signature} was called wrongly: {error}", field=_field_of(error)
            ) from None
        try:
            self.input_check.check(bound.arguments)
        except ValidationError as error:
            raise ValidationError(f"{name}: {error}", field=error.field, errors=error.errors) from None
        return bound.arguments

    def check_takes_one(self, why: str) -> None:
        """Raise `DefinitionError` where the function cannot be called with one positional argument.

        Arguments:
            why: who calls it so, as a sentence.
        """
        try:
            self.signature.bind(None)
        except (TypeError, ValueError) as error:  # ValueError: a builtin without a signature
            function = getattr(self.function, "__qualname__", self.function)
            raise DefinitionError(f"{why}, but {function} cannot be called with one argument: {error}") from None

    def essential(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments without those that are their parameter's default: two calls with equal ones are the same call."""
        return {name: value for name, value in arguments.items() if not self._is_default(name, value)}

    def _is_default(self, name: str, value: Any) -> bool:
        default = self.signature.parameters[name].default
        try:
            return value is default or (type(value) is type(default) and bool(value == default))
        except Exception:  # noqa: BLE001 - `==` is the user's code
            return False

    def call_arguments(self, arguments: Mapping[str, Any], name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Turn stored arguments back into a call. Raises `ValidationError` where the signature has changed."""
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        rest = dict(arguments)
        skipped = False
        for parameter in self.signature.parameters.values():
            if parameter.name not in rest:
                skipped = True
                continue
            value = rest.pop(parameter.name)
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional.extend(value)
            elif parameter.kind is parameter.VAR_KEYWORD:
                keywords.update(value)
            elif parameter.kind is parameter.KEYWORD_ONLY or (
                skipped and parameter.kind is not parameter.POSITIONAL_ONLY
            ):
                keywords[parameter.name] = value
            else:
                positional.append(value)
        if rest:
            first = sorted(rest)[0]
            raise ValidationError(
                f"{name}{self.signature} no longer has the parameter {first!r} that is stored", field=first
            )
        return tuple(positional), keywords


def _field_of(error: TypeError) -> str:
    """The parameter that a binding error names, as far as its text tells."""
    parts = str(error).split("'")
    return parts[1] if len(parts) > 1 else "arguments"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    """Options of one start. None leaves the task's own setting."""

    key: str | None = None
    user: str | None = None
    timeout: float | None = None
    retry: Retry | None = None
    delay: float | None = None
    priority: int | None = None


NO_OPTIONS = StartOptions()


@dataclass(frozen=True, eq=False, kw_only=True)
class StepDefinition:
    """A step."""

    name: str
    facts: FunctionFacts
    retry: Retry
    timeout: float | None = None
    codec: str | None = None
    isolate: Literal["process"] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class TaskDefinition:
    """A task."""

    name: str
    facts: FunctionFacts
    retry: Retry
    version: str | None = None
    timeout: float | None = None
    delay: float = 0.0
    key: str | Callable[..., str] | None = None
    priority: int = 0
    auto_recover: bool = True
    max_recoveries: int | None = None
    recovery: FunctionFacts | None = None
    validate: Callable[..., Any] | None = None
    #: The coordinator: called with what the function returned, when the children in that have ended.
    on_children_complete: FunctionFacts | TaskDefinition | None = None
    #: Options of the coordinator's start, if it is a task.
    coordinator_options: StartOptions = NO_OPTIONS
    on_child_failure: Literal["fail", "continue"] = "fail"
    origin: str = field(default="")

    @property
    def result_hint(self) -> Any:
        """The annotated result of a run, or Any: the coordinator's, where there is one, else the function's."""
        match self.on_children_complete:
            case None:
                return self.facts.returns
            case FunctionFacts() as coordinator:
                return coordinator.returns
            case coordinator:
                return coordinator.result_hint
