"""The kinds of user class that are stored field by field: dataclass, NamedTuple, attrs, pydantic, msgspec.

Law: an instance comes back with the state it had. `__init__`, `__post_init__`, validators and setters do not run (a msgspec
Struct, which cannot be made otherwise, runs `__post_init__` and then gets its stored fields back).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, MemberDescriptorType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from durable.codec.base import Refused
from durable.codec.classes import class_attribute

State = dict[str, object]


class Missing:
    """What stands in for a field that a payload does not have."""


#: The field has no default: the payload cannot be read.
REQUIRED = Missing()
#: The field is left to the class.
UNSET = Missing()


class RecordKind(NamedTuple):
    """One kind. `fields` names the declared fields, `take` splits an instance into fields and further state, `default` is
    for a field that was added since, `make` puts an instance together."""

    tag: str
    fits: Callable[[type], bool]
    fields: Callable[[type], tuple[str, ...]]
    take: Callable[[Any, Shape], tuple[State, State]]
    default: Callable[[Any, str], object]
    make: Callable[[Any, State, State], object]


class Shape(NamedTuple):
    """What is known about one class. Holds no reference to it, so that it can be a weak key."""

    kind: RecordKind
    fields: tuple[str, ...]
    #: (index in the MRO, name) of each slot.
    slots: tuple[tuple[int, str], ...]


def instance_state(value: object, shape: Shape) -> State:
    """Everything that the instance holds, read past properties and `__getattr__`."""
    cls = type(value)
    state: State = {}
    for index, name in shape.slots:
        try:
            state[name] = cls.__mro__[index].__dict__[name].__get__(value)
        except AttributeError:
            continue  # a slot without a value
    if cls.__dictoffset__:
        state.update(object.__getattribute__(value, "__dict__"))
    return state


def _split(value: object, shape: Shape) -> tuple[State, State]:
    cls = type(value)
    state = instance_state(value, shape)
    fields: State = {}
    for name in shape.fields:
        if name in state:
            fields[name] = state.pop(name)
        elif (default := class_attribute(cls, name)) is not None and type(default) is not MemberDescriptorType:
            fields[name] = default  # an init=False field whose value is still the class's
        elif shape.kind.default(cls, name) is not UNSET:
            raise Refused(f"its field {name!r} has no value")
    for name in [name for name in state if _is_derived(cls, name)]:
        del state[name]
    if "_attrs_cached_hash" in state:
        state["_attrs_cached_hash"] = None  # hashes differ from process to process
    return fields, state


def _is_derived(cls: type, name: str) -> bool:
    """Whether an attribute beyond the fields is made again on demand, or is typing's own note."""
    return name == "__orig_class__" or isinstance(class_attribute(cls, name), functools.cached_property)


def _fill(cls: type, fields: State, extras: State) -> object:
    """A new instance with this state; runs no code of the class."""
    shape = shape_of(cls)
    made: object = object.__new__(cls)
    state = {**extras, **fields}
    for index, name in shape.slots if shape is not None else ():
        if name in state:
            cls.__mro__[index].__dict__[name].__set__(made, state.pop(name))
    if state:
        object.__getattribute__(made, "__dict__").update(state)
    return made


def _slots(cls: type) -> tuple[tuple[int, str], ...]:
    return tuple(
        (index, name)
        for index, base in enumerate(cls.__mro__)
        for name, attribute in base.__dict__.items()
        if type(attribute) is MemberDescriptorType
    )


def _require_plain_layout(cls: type) -> None:
    for base in cls.__mro__[:-1]:
        # A __new__ in C means state in C, which no field shows: dict, int, Exception, ...
        if type(base.__dict__.get("__new__")) is BuiltinFunctionType:
            raise Refused(
                f"{cls.__module__}.{cls.__qualname__} derives from {base.__name__}, whose state is no field",
                "Keep that value in a field instead.",
            )


def _stored_fields(cls: type, names: tuple[str, ...]) -> tuple[str, ...]:
    """Without fields behind a property: their state is elsewhere in the instance."""
    return tuple(
        name
        for name in names
        if type(attribute := class_attribute(cls, name)) is MemberDescriptorType
        or not hasattr(type(attribute), "__set__")
    )


def _dataclass_fields(cls: Any) -> tuple[str, ...]:
    _require_plain_layout(cls)
    return _stored_fields(cls, tuple(field.name for field in dataclasses.fields(cls)))


def _dataclass_default(cls: Any, name: str) -> object:
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    if field.default is not dataclasses.MISSING:
        return field.default
    return REQUIRED if field.init else UNSET


def _attrs_fields(cls: Any) -> tuple[str, ...]:
    _require_plain_layout(cls)
    return _stored_fields(cls, tuple(attribute.name for attribute in cls.__attrs_attrs__))


def _attrs_default(cls: Any, name: str) -> object:
    attribute = next(attribute for attribute in cls.__attrs_attrs__ if attribute.name == name)
    default = attribute.default
    nothing = sys.modules["attr"].NOTHING
    if default is nothing:
        return REQUIRED if attribute.init else UNSET
    if isinstance(default, sys.modules["attr"].Factory):
        # A factory that takes the instance would see it half made.
        return REQUIRED if default.takes_self else default.factory()
    return default


def _is_namedtuple(cls: type) -> bool:
    fields = class_attribute(cls, "_fields")
    return issubclass(cls, tuple) and type(fields) is tuple and all(type(name) is str for name in fields)


def _namedtuple_take(value: Any, shape: Shape) -> tuple[State, State]:
    if len(value) != len(shape.fields):
        raise Refused(f"it has {len(value)} items, its class has {len(shape.fields)} fields")
    if getattr(value, "__dict__", None):
        raise Refused("this NamedTuple has attributes of its own", "Make it a dataclass.")
    return dict(zip(shape.fields, value, strict=True)), {}


def _namedtuple_default(cls: Any, name: str) -> object:
    defaults = class_attribute(cls, "_field_defaults")
    return defaults.get(name, REQUIRED) if isinstance(defaults, dict) else REQUIRED


def _namedtuple_make(cls: Any, fields: State, extras: State) -> object:
    return tuple.__new__(cls, fields.values())


def _pydantic_base() -> type | None:
    base: type | None = getattr(sys.modules.get("pydantic.main"), "BaseModel", None)
    return base


def _pydantic_fields(cls: Any) -> tuple[str, ...]:
    _require_plain_layout(cls)
    return tuple(cls.model_fields)


def _is_undefined(item: object) -> bool:
    """Whether this is pydantic's mark of a private attribute that has no value yet."""
    return type(item).__name__ == "PydanticUndefinedType"


def _pydantic_take(value: Any, shape: Shape) -> tuple[State, State]:
    fields, state = _split(value, shape)
    fields_set: Any = state.pop("__pydantic_fields_set__")
    extras: State = {"set": set(fields_set)}
    for key, slot in (("extra", "__pydantic_extra__"), ("private", "__pydantic_private__")):
        part = state.pop(slot, None)
        if isinstance(part, dict):
            extras[key] = {name: item for name, item in part.items() if not _is_undefined(item)}
    if state:
        raise Refused(
            f"attribute {next(iter(state))!r} is no field of this model", "Declare it as a field or PrivateAttr."
        )
    return fields, extras


def _pydantic_default(cls: Any, name: str) -> object:
    field = cls.model_fields[name]
    if field.is_required() or getattr(field, "default_factory_takes_validated_data", None):
        return REQUIRED
    default: object = field.get_default(call_default_factory=True)
    return default


def _pydantic_make(cls: Any, fields: State, extras: State) -> object:
    made: object = object.__new__(cls)
    fields_set, extra, private = extras.get("set", set(fields)), extras.get("extra"), extras.get("private")
    if type(fields_set) is not set or type(extra) not in (dict, type(None)) or type(private) not in (dict, type(None)):
        raise TypeError("malformed state of a pydantic model")
    defaults = {name: attribute.get_default() for name, attribute in cls.__private_attributes__.items()}
    if defaults:
        gained = {name: item for name, item in defaults.items() if not _is_undefined(item)}
        private = {**gained, **(private or {})}  # type: ignore[dict-item]  # a dict or None, see above
    # What BaseModel.__setstate__ sets; a model may override that one, and it may not run here.
    object.__setattr__(made, "__dict__", fields)
    object.__setattr__(made, "__pydantic_fields_set__", fields_set)
    object.__setattr__(made, "__pydantic_extra__", extra)
    object.__setattr__(made, "__pydantic_private__", private)
    return made


def _msgspec_base() -> type | None:
    base: type | None = getattr(sys.modules.get("msgspec"), "Struct", None)
    return base


def _msgspec_make(cls: Any, fields: State, extras: State) -> object:
    made = cls(**fields)
    for name, item in fields.items():
        if getattr(made, name) is not item:  # __post_init__ changed it
            sys.modules["msgspec"].structs.force_setattr(made, name, item)
    if extras:
        object.__getattribute__(made, "__dict__").update(extras)
    return made


KINDS: tuple[RecordKind, ...] = (
    RecordKind(
        "namedtuple",
        _is_namedtuple,
        lambda cls: tuple(class_attribute(cls, "_fields")),  # type: ignore[arg-type]  # `fits` saw a tuple
        _namedtuple_take,
        _namedtuple_default,
        _namedtuple_make,
    ),
    RecordKind(
        "pydantic",
        lambda cls: (base := _pydantic_base()) is not None and base in cls.__mro__,
        _pydantic_fields,
        _pydantic_take,
        _pydantic_default,
        _pydantic_make,
    ),
    RecordKind(
        "attrs",
        lambda cls: class_attribute(cls, "__attrs_attrs__") is not None and "attr" in sys.modules,
        _attrs_fields,
        _split,
        _attrs_default,
        _fill,
    ),
    RecordKind(
        "struct",
        lambda cls: (base := _msgspec_base()) is not None and base in cls.__mro__,
        lambda cls: tuple(cls.__struct_fields__),  # type: ignore[attr-defined]
        _split,
        lambda cls, name: UNSET,
        _msgspec_make,
    ),
    RecordKind(
        "dataclass",
        lambda cls: class_attribute(cls, "__dataclass_fields__") is not None,
        _dataclass_fields,
        _split,
        _dataclass_default,
        _fill,
    ),
)

RECORD_TAGS = tuple(kind.tag for kind in KINDS)

_shapes: WeakKeyDictionary[type, Shape] = WeakKeyDictionary()


def shape_of(cls: type) -> Shape | None:
    """How instances of a class are stored, or None if it is of no known kind.

    Raises:
        Refused: it is of a known kind, but has state that cannot be stored.
    """
    shape = _shapes.get(cls)
    if shape is None:
        kind = next((kind for kind in KINDS if kind.fits(cls)), None)
        if kind is None:
            return None
        shape = Shape(kind, kind.fields(cls), _slots(cls))
        _shapes[cls] = shape
    return shape


def missing_fields(cls: type, shape: Shape, stored: Mapping[str, object]) -> State:
    """Defaults for the fields that a payload lacks; REQUIRED marks one that has none."""
    found = {name: shape.kind.default(cls, name) for name in shape.fields if name not in stored}
    return {name: default for name, default in found.items() if default is not UNSET}
