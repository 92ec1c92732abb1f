"""Settings from environment variables: `DURABLE_<PART>_<KEY>`.

Law: a variable that names no setting, or a value that is none, is an error that names the variable; no value that is secret is ever shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from durable.errors import ConfigError

S = TypeVar("S")

PREFIX = "DURABLE_"
#: The variable that names the store of the command line.
STORE = f"{PREFIX}STORE"

_SWITCHES = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def variable(part: str, key: str) -> str:
    """The variable of a setting: `DURABLE_ENGINE_MAX_RECOVERIES` of `engine` and `max_recoveries`."""
    return f"{PREFIX}{part}_{key}".upper()


def read_part(kind: Callable[..., S], part: str, environ: Mapping[str, str]) -> S:
    """Make the settings of one part; what no variable says is as it is by default.

    Arguments:
        kind: the class of the settings.
        part: what the part is called.

    Raises `ConfigError` that names the variable.
    """
    specs = {variable(part, spec.name): spec for spec in fields(kind)}  # type: ignore[arg-type]
    found = sorted(name for name in environ if name.startswith(f"{PREFIX}{part}_".upper()))
    for name in found:
        if name not in specs:
            raise ConfigError(
                f"the environment variable {name} names no setting: those of {part!r} are {', '.join(sorted(specs))}",
                key=name,
            )
    hints = get_type_hints(kind)
    values = {specs[name].name: _parsed(name, specs[name], hints[specs[name].name], environ[name]) for name in found}
    try:
        return kind(**values)
    except ConfigError as error:
        key = error.key.rpartition(".")[2] if error.key else ""
        raise ConfigError(f"the environment variable {variable(part, key)}: {error}", key=error.key) from None


def _parsed(name: str, spec: Field[Any], hint: Any, text: str) -> Any:
    """The value that a text stands for. Raises `ConfigError`."""
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    if not text and NoneType in kinds:
        return None
    (kind,) = (each for each in kinds if each is not NoneType)
    rule, parse = _PARSERS.get(kind) or _choice(kind)
    try:
        return parse(text)
    except (ValueError, KeyError):
        shown = repr(text) if spec.repr else "<hidden>"
        empty = ", or empty for none" if NoneType in kinds else ""
        raise ConfigError(
            f"the environment variable {name} is {shown:.100}, but must be {rule}{empty}", key=name
        ) from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _choice(kind: Any) -> tuple[str, Callable[[str], Any]]:
    assert get_origin(kind) is Literal, f"{kind!r} cannot be read from a variable"
    choices = {str(choice): choice for choice in get_args(kind)}
    return f"one of {', '.join(choices)}", choices.__getitem__


_PARSERS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    bool: ("true or false", lambda text: _SWITCHES[text.strip().lower()]),
    int: ("a whole number", int),
    float: ("a number", _finite),
    str: ("a text", str),
    bytes: ("a text", str.encode),
}
