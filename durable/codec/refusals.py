"""Why a value of an unknown type is refused, and what its owner can do about it.

Law: every refusal names the type and one way out. The value's own code is asked for nothing but a key's `repr`.
"""

from __future__ import annotations

from durable.codec.base import Refused

_BUILTIN_BASES = (str, int, float, bytes, list, dict, tuple, set, frozenset)


def refusal(value: object) -> Refused:
    """The error for a value that has no route; all others would store it as something else."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, type):
        return Refused(f"it is the class {value.__module__}.{value.__qualname__}, not a value", "Store its name.")
    if isinstance(value, BaseException):
        return Refused(f"it is an exception ({name})", "Raise it, raised exceptions are recorded; or store str(error).")
    if isinstance(value, _BUILTIN_BASES):
        base = next(base for base in kind.__mro__ if base in _BUILTIN_BASES)
        return Refused(
            f"type {name} is a subclass of {base.__name__} and would come back as another type",
            f"Convert it with {base.__name__}(...), or teach the codec with `register(type, tag, encode, decode)`.",
        )
    if hasattr(kind, "__await__"):
        return Refused(f"it is awaitable (type {name})", "Await it and store the result.")
    if hasattr(kind, "__next__"):
        return Refused(f"it is an iterator (type {name})", "Store list(...) of it.")
    return Refused(f"type {name} is not storable")


def shown(key: object) -> str:
    """A dict's key as it appears in a path: at most 60 characters."""
    try:
        text = repr(key)
    except Exception:  # noqa: BLE001 - the key's own repr failed; the error being reported is another
        text = f"<{type(key).__name__}>"
    return text if len(text) <= 60 else text[:60] + "…"
