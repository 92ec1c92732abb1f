"""Finding a stored class by its path, in what is imported already and in the type hint, and nowhere else.

Law: nothing here imports, calls or evaluates anything that a payload names. Lookups go through plain namespaces, past
module `__getattr__`, metaclass hooks and lazy modules.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType, ModuleType
from typing import Any

from durable.codec.base import type_path
from durable.errors import DecodeError

NO_HINTS: Mapping[str, type] = MappingProxyType({})


def find_class(path: str, hints: Mapping[str, type]) -> type:
    """Return the class stored as `path` (``module:Outer.Inner``).

    A class that the hint mentions wins: it is the one that the code names, even if its module was loaded anew.

    Raises:
        DecodeError: it is nowhere; says whether the module or the class is missing.
    """
    hinted = hints.get(path)
    if hinted is not None:
        return hinted
    module_name, _, qualname = path.partition(":")
    module = sys.modules.get(module_name)
    if module is None or not issubclass(type(module), ModuleType):
        raise DecodeError(
            f"payload needs class {_shown(path)}, but module {_shown(module_name)} is not imported here. "
            "Import it before opening the app; a payload never causes an import."
        )
    # Past LazyLoader and PEP 562: asking such a module for an attribute runs code.
    namespace: Mapping[str, object] = object.__getattribute__(module, "__dict__")
    found: object = None
    for part in qualname.split("."):
        found = namespace.get(part)
        # issubclass, for isinstance would ask a proxy object for its __class__.
        if not issubclass(type(found), type):
            raise DecodeError(_missing(path, module_name, qualname))
        namespace = type.__dict__["__dict__"].__get__(found)
    return typing.cast(type, found)


def is_findable(kind: type, hints: Mapping[str, type]) -> bool:
    """Whether decoding would find exactly this class again."""
    try:
        return find_class(type_path(kind), hints) is kind
    except DecodeError:
        return False


def class_attribute(kind: type, name: str) -> object:
    """The class attribute `name` along the MRO, without calling a descriptor or a metaclass; None if there is none."""
    for base in kind.__mro__:
        namespace: Mapping[str, object] = type.__dict__["__dict__"].__get__(base)
        if name in namespace:
            return namespace[name]
    return None


def hinted_classes(expected: object) -> Mapping[str, type]:
    """The classes that a type hint mentions, their fields' hints included, by path."""
    if expected is Any or expected is None or expected is object:
        return NO_HINTS
    try:
        return _hinted_cached(expected)
    except TypeError:  # an unhashable part, such as Annotated[int, []]
        return _hinted(expected)


def _hinted(expected: object) -> Mapping[str, type]:
    found: dict[str, type] = {}
    waiting = [expected]
    seen: set[int] = set()
    while waiting:
        hint = waiting.pop()
        if id(hint) in seen:
            continue
        seen.add(id(hint))
        waiting.extend(typing.get_args(hint))
        waiting.append(typing.get_origin(hint))
        # `type X = ...` and NewType wrap another hint.
        waiting.append(getattr(hint, "__value__", None) or getattr(hint, "__supertype__", None))
        if isinstance(hint, (list, tuple)):  # Callable's arguments
            waiting.extend(hint)
        if isinstance(hint, type) and hint.__module__ != "builtins" and type_path(hint) not in found:
            found[type_path(hint)] = hint
            waiting.extend(_field_hints(hint).values())
    return found


# Bounded, because it keeps the classes alive.
_hinted_cached = lru_cache(maxsize=256)(_hinted)


def _field_hints(kind: type) -> Mapping[str, object]:
    try:
        return typing.get_type_hints(kind, localns={kind.__name__: kind}, include_extras=True)
    except Exception:  # noqa: BLE001 - an annotation may hold anything; without it only the class itself is known
        own = class_attribute(kind, "__annotations__")
        return own if isinstance(own, dict) else {}


def _missing(path: str, module_name: str, qualname: str) -> str:
    if "<locals>" in qualname:
        return (
            f"payload needs class {_shown(path)}, which is defined inside a function. Name it in the type hint "
            "(of the parameter or the return value), or move it to the module's top level."
        )
    return (
        f"payload needs class {_shown(path)}, but module {_shown(module_name)} has no such class: it was renamed, moved or "
        "deleted. Keep an alias under the old name (`Old = New`) until the runs that stored it are gone."
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:200] + "…")
