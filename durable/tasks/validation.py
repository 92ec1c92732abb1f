"""Checks of inputs against annotations, compiled once and cheap per call.

Law: a value is accepted or refused, never converted; and what an error shows of a refused value is bounded.

An annotation becomes a probe, which answers None or the first `_Problem`; paths are put together only where something is wrong.
What cannot be checked (an unresolved forward reference, a Protocol that is not `runtime_checkable`) is accepted.
"""

from __future__ import annotations

import dataclasses
import inspect
import reprlib
import types
import typing
from collections import abc
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NoReturn

import typing_extensions

from durable.errors import ValidationError

#: A compiled annotation: `check(value, field)` raises `ValidationError`.
Check = Callable[[object, str], None]

#: Classes and aliases that contain each other are followed this deep, so that a value that contains itself is refused.
DEPTH_MAX = 50
_SHOWN_CHARACTERS = 80


@dataclasses.dataclass(slots=True)
class _Problem:
    expected: str
    value: object
    path: str = ""
    reason: str = ""

    def below(self, part: str) -> _Problem:
        self.path = part + self.path
        return self

    def error(self, field: str) -> dict[str, object]:
        given = f"{type(self.value).__qualname__}: {_shown(self.value)}"
        place = (field + self.path).lstrip(".")
        return {"field": place, "expected": self.expected, "given": given, "reason": self.reason}


_Probe = Callable[[Any, int], _Problem | None]

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = _SHOWN_CHARACTERS


def _shown(value: object) -> str:
    # reprlib: the repr of a list of a million items is not made in order to be cut.
    text = _repr.repr(value[:_SHOWN_CHARACTERS] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def _raise(errors: list[dict[str, object]]) -> NoReturn:
    lines = []
    for error in errors:
        line = f"field {error['field']!r} must be {error['expected']}, but is {error['given']}"
        lines.append(f"{line} ({error['reason']})" if error["reason"] else line)
    raise ValidationError("; ".join(lines), field=str(errors[0]["field"]), errors=errors)


def compile_check(annotation: object) -> Check:
    """Compile an annotation, as `typing.get_type_hints(..., include_extras=True)` gives it, into a check.

    The check raises `ValidationError` with `field` such as ``items[2].qty``.
    """
    probe = _compile(annotation)

    def check(value: object, field: str) -> None:
        if (problem := probe(value, 0)) is not None:
            _raise([problem.error(field)])

    return check


class InputCheck:
    """The check of a function's arguments. Compiled once; nothing is done for parameters that have no annotation.

    Arguments:
        signature: without the parameters that callers do not pass.
        hints: resolved annotations by name, with extras; a parameter that is missing there takes anything.
    """

    def __init__(self, signature: inspect.Signature, hints: Mapping[str, object]) -> None:
        self._plan: list[tuple[str, object, _Probe, inspect.Parameter]] = []
        for name, parameter in signature.parameters.items():
            probe = _of_parameter(parameter, hints.get(name, Any))
            if probe is not _accept:
                # A plain class is compared by identity before the probe is called: most arguments are done with that.
                single = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
                exact = next((kind for kind in _PLAIN if single and kind is hints[name]), None)
                self._plan.append((name, exact, probe, parameter))

    def check(self, arguments: Mapping[str, object]) -> None:
        """Check the arguments of one call, as `inspect.BoundArguments.arguments` has them.

        Raises:
            ValidationError: `field` is the first field that is wrong, `errors` has one entry for each parameter that is.
        """
        errors: list[dict[str, object]] = []
        for name, exact, probe, parameter in self._plan:
            if name not in arguments:
                continue
            value = arguments[name]
            if type(value) is exact:
                continue
            problem = probe(value, 0)
            # `limit: int = None` is wrong, but common: the default that the function itself names is accepted.
            if problem is not None and value is not parameter.default:
                # What comes in through **options is a field of its own name to the caller.
                errors.append(problem.error("" if parameter.kind is parameter.VAR_KEYWORD else name))
        if errors:
            _raise(errors)


def _of_parameter(parameter: inspect.Parameter, hint: Any) -> _Probe:
    unpacked = typing.get_origin(hint) in _UNPACK
    probe = _compile(typing.get_args(hint)[0] if unpacked and parameter.kind is parameter.VAR_KEYWORD else hint)
    if probe is _accept or parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or unpacked:
        return probe
    if parameter.kind is parameter.VAR_POSITIONAL:
        return _items(tuple, hint, "tuple")
    return _walk(_accept, ".{}", lambda value: ((key, probe, item) for key, item in value.items()))


def _accept(value: object, depth: int) -> _Problem | None:
    return None


def _name(annotation: Any) -> str:
    if isinstance(annotation, type):
        full = f"{annotation.__module__}.{annotation.__qualname__}".removeprefix("builtins.")
        return "None" if full == "NoneType" else full
    return repr(annotation).replace("typing.", "")[:200]


# Classes whose exact instances are right without another look.
_PLAIN = (int, float, str, bytes, bool, list, dict, tuple, set, frozenset)
_NUMBERS: dict[type, tuple[type, ...]] = {int: (int,), float: (float, int), complex: (complex, float, int)}
_UNPACK = (typing.Unpack, typing_extensions.Unpack)
_UNIONS = (typing.Union, types.UnionType)
#: Wrappers of a type, and whether they say that a TypedDict must have the key.
_WRAPPERS: dict[object, bool | None] = {
    **dict.fromkeys((typing.Final, typing.ClassVar, typing_extensions.ReadOnly), None),
    typing.Required: True,
    typing.NotRequired: False,
}
#: Where the containers live whose parameters mean what they seem to.
_STANDARD = ("builtins", "collections", "collections.abc")


def _compile(annotation: Any) -> _Probe:
    if annotation is Any or annotation is object:
        return _accept
    origin = typing.get_origin(annotation)
    if origin is not None:
        args = typing.get_args(annotation)
        # `typing.List` has an origin, but no arguments; so has `tuple[()]`, which means a tuple of none.
        empty = origin is tuple and annotation is not typing.Tuple  # noqa: UP006
        return _compile_generic(annotation, origin, args) if args or empty else _compile(origin)
    if isinstance(annotation, type):
        return _compile_class(annotation)
    if annotation is None:
        return _instance(type(None))
    if isinstance(annotation, typing.NewType):
        return _compile(annotation.__supertype__)
    if isinstance(annotation, typing.TypeVar):
        if annotation.__constraints__:
            return _union([_compile(each) for each in annotation.__constraints__], _name(annotation))
        return _accept if annotation.__bound__ is None else _compile(annotation.__bound__)
    # By name: there are two such classes, and before Python 3.12 `typing` has none.
    if type(annotation).__name__ == "TypeAliasType":
        return _deferred(lambda: _compile(annotation.__value__), _name(annotation))
    if annotation is typing.LiteralString:
        return _instance(str)
    return _accept


def _compile_generic(annotation: Any, origin: Any, args: tuple[Any, ...]) -> _Probe:
    name = _name(annotation)
    if origin is Annotated:
        return _annotated(_compile(args[0]), annotation)
    if origin in _UNIONS:
        return _union([_compile(each) for each in args], name)
    if origin is typing.Literal:
        # By type too: 1, True and 1.0 are equal, but different literals.
        return _where(lambda value: any(type(value) is type(each) and value == each for each in args), name)
    if origin in _WRAPPERS:
        return _compile(args[0])
    if origin is type:
        return _subclass(args[0], name)
    if origin is tuple and args[1:] != (Ellipsis,):
        return _tuple(args, name)
    if origin.__module__ in _STANDARD and issubclass(origin, abc.Mapping):
        return _mapping(origin, _compile(args[0]), _compile(args[1] if args[1:] else int), name)  # Counter has one
    if origin.__module__ in _STANDARD and issubclass(origin, abc.Collection) and (len(args) == 1 or origin is tuple):
        return _items(origin, args[0], name)
    # An iterator would be used up by a look at its items; what the parameters of a user's class mean is not known.
    return _compile(origin)


def _compile_class(kind: Any) -> _Probe:
    if typing_extensions.is_typeddict(kind):
        return _deferred(lambda: _typed_dict(kind), _name(kind))
    if getattr(kind, "_is_protocol", False):
        return _instance(kind) if getattr(kind, "_is_runtime_protocol", False) else _accept
    if dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        return _deferred(lambda: _fields(kind), _name(kind))
    if kind.__module__.startswith("pydantic.") and hasattr(kind, "__get_pydantic_core_schema__"):
        # EmailStr, AwareDatetime and their like have no instances: only pydantic knows what they accept.
        return _strictly(kind) or _instance(kind)
    generic: Mapping[str, Any] = getattr(kind, "__pydantic_generic_metadata__", None) or {}
    # `Box(n=1)` is no instance of the class Box[int], though it is what users pass for it.
    return _instance(generic.get("origin") or kind)


def _deferred(build: Callable[[], _Probe], name: str) -> _Probe:
    """A probe that is compiled when it is first used: classes and aliases may mention themselves."""
    probe: _Probe | None = None

    def deferred(value: object, depth: int) -> _Problem | None:
        nonlocal probe
        if probe is None:
            probe = build()
        if depth >= DEPTH_MAX:
            return _Problem(name, value, reason=f"nested more than {DEPTH_MAX} deep")
        return probe(value, depth + 1)

    return deferred


def _instance(kind: type, name: str = "") -> _Probe:
    expected, kinds, number = name or _name(kind), _NUMBERS.get(kind, (kind,)), kind in _NUMBERS

    def instance(value: object, depth: int) -> _Problem | None:
        # bool is an int to Python, but never what an `int` parameter means.
        if isinstance(value, kinds) and not (number and isinstance(value, bool)):
            return None
        return _Problem(expected, value)

    return instance


def _where(fits: Callable[[Any], bool], name: str) -> _Probe:
    return lambda value, depth: None if fits(value) else _Problem(name, value)


def _subclass(bound: Any, name: str) -> _Probe:
    bounds = typing.get_args(bound) if typing.get_origin(bound) in _UNIONS else (bound,)
    kinds = tuple(typing.get_origin(each) or each for each in bounds)
    if any(each is Any or not isinstance(each, type) or getattr(each, "_is_protocol", False) for each in kinds):
        return _instance(type, name)
    return _where(lambda value: isinstance(value, type) and issubclass(value, kinds), name)


def _union(probes: list[_Probe], name: str) -> _Probe:
    def union(value: object, depth: int) -> _Problem | None:
        problems = []
        for probe in probes:
            if (problem := probe(value, depth)) is None:
                return None
            problems.append(problem)
        # The one member that has the right shape says best what is wrong: `items[2]`, not "list[int] | None".
        inside = [problem for problem in problems if problem.path or problem.reason]
        return inside[0] if len(inside) == 1 else _Problem(name, value)

    return _accept if _accept in probes else union


def _walk(shape: _Probe, path: str, parts: Callable[[Any], Iterable[tuple[object, _Probe, object]]]) -> _Probe:
    """A probe of a value and its parts; `parts` gives each with what `path` is to be formatted with."""

    def walk(value: object, depth: int) -> _Problem | None:
        if (problem := shape(value, depth)) is not None:
            return problem
        for key, probe, item in parts(value):
            if (problem := probe(item, depth)) is not None:
                return problem.below(path.format(_shown(key) if path == "[{}]" else key))
        return None

    return walk


def _items(kind: type, annotation: object, name: str) -> _Probe:
    probe, exact = _compile(annotation), next((each for each in _PLAIN if each is annotation), None)

    def parts(value: Any) -> Iterable[tuple[int, _Probe, object]]:
        # All items of a string are of one class: one is enough.
        looked_at = value[:1] if isinstance(value, (str, bytes)) else value
        return ((index, probe, item) for index, item in enumerate(looked_at) if type(item) is not exact)

    return _instance(kind, name) if probe is _accept else _walk(_instance(kind, name), "[{}]", parts)


def _mapping(kind: type, key_probe: _Probe, item_probe: _Probe, name: str) -> _Probe:
    def parts(value: Any) -> Iterable[tuple[object, _Probe, object]]:
        for key, item in value.items():
            yield key, key_probe, key
            yield key, item_probe, item

    return _instance(kind, name) if key_probe is _accept is item_probe else _walk(_instance(kind, name), "[{}]", parts)


def _tuple(args: tuple[Any, ...], name: str) -> _Probe:
    if any(typing.get_origin(each) in _UNPACK or getattr(each, "__unpacked__", False) for each in args):
        return _instance(tuple)  # tuple[int, *Ts]
    probes = [_compile(each) for each in args]

    def shape(value: Any, depth: int) -> _Problem | None:
        if isinstance(value, tuple) and len(value) == len(probes):
            return None
        reason = f"{len(value)} items, not {len(probes)}" if isinstance(value, tuple) else ""
        return _Problem(name, value, reason=reason)

    return _walk(shape, "[{}]", lambda value: zip(range(len(probes)), probes, value, strict=True))


def _hints(kind: type) -> Mapping[str, Any]:
    try:
        return typing_extensions.get_type_hints(kind, include_extras=True)
    except Exception:  # noqa: BLE001 - an annotation may hold anything, also a name that exists for type checkers only
        return inspect.get_annotations(kind)


def _fields(kind: Any) -> _Probe:
    """Instances of a dataclass or NamedTuple, field by field."""
    hints = _hints(kind)
    if dataclasses.is_dataclass(kind):
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    else:
        defaults = {name: kind._field_defaults.get(name, dataclasses.MISSING) for name in kind._fields}
    compiled = [(name, _compile(hints.get(name, Any)), default) for name, default in defaults.items()]
    probes = [each for each in compiled if each[1] is not _accept]

    def parts(value: object) -> Iterable[tuple[object, _Probe, object]]:
        # A field that was never set (init=False, slots) is not wrong, and neither is the default the class itself names.
        for name, probe, default in probes:
            if (item := getattr(value, name, default)) is not default:
                yield name, probe, item

    return _walk(_instance(kind), ".{}", parts)


def _typed_dict(kind: Any) -> _Probe:
    probes, required, name = {}, set(kind.__required_keys__), _name(kind)
    for key, hint in _hints(kind).items():
        probes[key] = _compile(hint)
        # Where annotations are strings, __required_keys__ has not seen the wrappers.
        while (origin := typing.get_origin(hint)) in _WRAPPERS:
            if (needed := _WRAPPERS[origin]) is not None:
                (required.add if needed else required.discard)(key)
            hint = typing.get_args(hint)[0]  # noqa: PLW2901

    def shape(value: Any, depth: int) -> _Problem | None:
        if not isinstance(value, dict):
            return _Problem(name, value)
        wrong = [f"unknown key {_shown(key)}" for key in value if key not in probes]
        wrong += [f"key {key!r} is missing" for key in sorted(required - value.keys())]
        return _Problem(name, value, reason=", ".join(wrong[:10])) if wrong else None

    return _walk(shape, ".{}", lambda value: ((key, probes[key], item) for key, item in value.items()))


def _annotated(base: _Probe, annotation: Any) -> _Probe:
    """The base type, then the constraints in the metadata, if pydantic is here to know what they mean."""
    metadata = annotation.__metadata__
    known = [each for each in metadata if type(each).__module__.startswith(("annotated_types", "pydantic"))]
    if not known and not any(hasattr(each, "__get_pydantic_core_schema__") for each in metadata):
        return base
    # Any first: the base type is checked already, and pydantic may not know it. Some constraints need the type, though.
    constraints = _strictly(Annotated[(Any, *metadata)]) or _strictly(annotation) or _accept
    return lambda value, depth: base(value, depth) or constraints(value, depth)


def _strictly(annotation: Any) -> _Probe | None:
    """What pydantic accepts without converting; None where pydantic is missing or knows no schema."""
    try:
        import pydantic

        validate = pydantic.TypeAdapter(annotation).validate_python
    except Exception:  # noqa: BLE001 - pydantic raises one of many errors for a type that it cannot make a schema of
        return None
    invalid, expected = pydantic.ValidationError, _name(annotation)

    def strictly(value: object, depth: int) -> _Problem | None:
        try:
            validate(value, strict=True)
        except invalid as error:
            return _Problem(expected, value, reason=error.errors(include_input=False, include_url=False)[0]["msg"])
        return None

    return strictly
