"""Standard-library values without parts: how each is written as JSON and read back.

Law: `read(write(value))` has the same type, the same value and the same representation; a malformed input raises an
ordinary exception (ValueError, TypeError, ...), which the decoder turns into `DecodeError`.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
import re
import struct
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, NamedTuple, TypeVar
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

from durable.codec.base import Refused

T = TypeVar("T")

#: Integers up to here are plain JSON numbers: every JSON reader, a browser's too, reads them exactly (RFC 8259, 6).
INT_PLAIN_MAX = 2**53 - 1
#: Below 640 digits, the smallest value `sys.set_int_max_str_digits` takes, decimal works under every setting.
_DECIMAL_BITS_MAX = 2048
_INT_TEXT = re.compile(r"-?(0x[0-9a-f]+|[0-9]{1,640})")
_ZONE_KEY = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")
_NAN_BITS = struct.pack(">d", math.nan).hex()
_SPECIAL_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_PATHS: dict[str, type[PurePosixPath | PureWindowsPath]] = {
    kind.__name__: kind for kind in (PosixPath, WindowsPath, PurePosixPath, PureWindowsPath)
}


class Scalar(NamedTuple):
    """One type, the tag it is stored under, and its two directions."""

    kind: type
    tag: str
    write: Callable[[Any], object]
    read: Callable[[Any], object]


class Encoded(NamedTuple):
    """A value that this codec has encoded, to be stored within another: it is neither walked nor decoded with that, nor escaped.

    Arguments:
        payload: what `encode` returned.
    """

    payload: bytes


def need(part: object, kind: type[T]) -> T:
    """Return `part` if it is exactly a `kind` (a bool is no int), else raise TypeError."""
    if type(part) is not kind:
        raise TypeError(f"expected {kind.__name__}, found {type(part).__name__}")
    return part


def need_list(part: object, length: int) -> list[Any]:
    parts = need(part, list)
    if len(parts) != length:
        raise ValueError(f"expected {length} items, found {len(parts)}")
    return parts


def write_int(value: int) -> str:
    return str(value) if value.bit_length() <= _DECIMAL_BITS_MAX else hex(value)


def read_int(part: object) -> int:
    if type(part) is int:
        return part
    text = need(part, str)
    if not _INT_TEXT.fullmatch(text):
        raise ValueError("malformed integer")
    return int(text, 16) if "x" in text else int(text)


def write_float(value: float) -> str:
    if not math.isnan(value):
        return repr(value)
    # A NaN has a sign and a payload, which only the bits tell.
    bits = struct.pack(">d", value).hex()
    return "nan" if bits == _NAN_BITS else f"nan:{bits}"


def read_float(part: object) -> float:
    if type(part) is float:
        return part
    text = need(part, str)
    if text in _SPECIAL_FLOATS:
        return _SPECIAL_FLOATS[text]
    prefix, _, bits = text.partition(":")
    if prefix == "nan" and len(bits) == 16:
        value: float = struct.unpack(">d", bytes.fromhex(bits))[0]
        if math.isnan(value):
            return value
    return float(text)


def _write_bytes(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode("ascii")


def _read_bytes(part: object) -> bytes:
    return base64.b64decode(need(part, str), validate=True)


def _write_uuid(value: UUID) -> object:
    if value.is_safe is SafeUUID.unknown:
        return str(value)
    return [str(value), value.is_safe.value]


def _read_uuid(part: object) -> UUID:
    if type(part) is list:
        text, safe = need_list(part, 2)
        return UUID(need(text, str), is_safe=SafeUUID(safe))
    return UUID(need(part, str))


def _write_fraction(value: Fraction) -> object:
    return [write_int(value.numerator), write_int(value.denominator)]


def _read_fraction(part: object) -> Fraction:
    # Never from one string: Fraction("1e999999999") would compute that power.
    numerator, denominator = need_list(part, 2)
    return Fraction(read_int(numerator), read_int(denominator))


def _write_zone(zone: dt.tzinfo) -> object:
    if type(zone) is ZoneInfo and zone.key:
        return zone.key
    if type(zone) is dt.timezone:
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]  # the only way to tell a given name
        return [_write_timedelta(offset), name[0] if name else None]
    raise Refused(
        f"its tzinfo is a {type(zone).__module__}.{type(zone).__qualname__}",
        "Use zoneinfo.ZoneInfo(key) or datetime.timezone.",
    )


def _read_zone(part: object) -> dt.tzinfo:
    if type(part) is list:
        offset, name = need_list(part, 2)
        return (
            dt.timezone(_read_timedelta(offset))
            if name is None
            else dt.timezone(_read_timedelta(offset), need(name, str))
        )
    key = need(part, str)
    # ZoneInfo may look its key up as a resource of the tzdata package: keep anything but a zone's name away from it.
    if not _ZONE_KEY.fullmatch(key):
        raise ValueError(f"malformed time zone {key[:60]!r}")
    return ZoneInfo(key)


def _write_moment(value: dt.datetime | dt.time) -> object:
    """ISO text alone where that says everything, else ``[naive ISO text, zone, fold]``."""
    zone = value.tzinfo
    if not value.fold and (zone is None or (type(zone) is dt.timezone and len(zone.__getinitargs__()) == 1)):  # type: ignore[attr-defined]
        return value.isoformat()
    naive = value.replace(tzinfo=None, fold=0).isoformat()
    return [naive, None if zone is None else _write_zone(zone), value.fold]


def _read_datetime(part: object) -> dt.datetime:
    if type(part) is str:
        return dt.datetime.fromisoformat(part)
    naive, zone, fold = need_list(part, 3)
    tzinfo = None if zone is None else _read_zone(zone)
    return dt.datetime.fromisoformat(need(naive, str)).replace(tzinfo=tzinfo, fold=need(fold, int))


def _read_time(part: object) -> dt.time:
    if type(part) is str:
        return dt.time.fromisoformat(part)
    naive, zone, fold = need_list(part, 3)
    tzinfo = None if zone is None else _read_zone(zone)
    return dt.time.fromisoformat(need(naive, str)).replace(tzinfo=tzinfo, fold=need(fold, int))


def _write_timedelta(value: dt.timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _read_timedelta(part: object) -> dt.timedelta:
    days, seconds, microseconds = need_list(part, 3)
    return dt.timedelta(need(days, int), need(seconds, int), need(microseconds, int))


def _write_complex(value: complex) -> list[object]:
    return [write_float(value.real), write_float(value.imag)]


def _read_complex(part: object) -> complex:
    real, imaginary = need_list(part, 2)
    return complex(read_float(real), read_float(imaginary))


def _write_range(value: range) -> list[object]:
    return [write_int(value.start), write_int(value.stop), write_int(value.step)]


def _read_range(part: object) -> range:
    start, stop, step = need_list(part, 3)
    return range(read_int(start), read_int(stop), read_int(step))


def _write_path(value: Path | PurePosixPath | PureWindowsPath) -> list[str]:
    return [type(value).__name__, str(value)]


def _read_path(part: object) -> PurePosixPath | PureWindowsPath:
    kind, text = need_list(part, 2)
    return _PATHS[need(kind, str)](need(text, str))


def _write_encoded(value: Encoded) -> object:
    return json.loads(value.payload.decode("utf-8", "surrogatepass"))


def _read_encoded(part: object) -> Encoded:
    return Encoded(json.dumps(part, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))


SCALARS: tuple[Scalar, ...] = (
    Scalar(bytes, "bytes", _write_bytes, _read_bytes),
    Scalar(bytearray, "bytearray", _write_bytes, lambda part: bytearray(_read_bytes(part))),
    Scalar(Decimal, "decimal", str, lambda part: Decimal(need(part, str))),
    Scalar(Fraction, "fraction", _write_fraction, _read_fraction),
    Scalar(complex, "complex", _write_complex, _read_complex),
    Scalar(UUID, "uuid", _write_uuid, _read_uuid),
    Scalar(dt.datetime, "datetime", _write_moment, _read_datetime),
    Scalar(dt.date, "date", dt.date.isoformat, lambda part: dt.date.fromisoformat(need(part, str))),
    Scalar(dt.time, "time", _write_moment, _read_time),
    Scalar(dt.timedelta, "timedelta", _write_timedelta, _read_timedelta),
    Scalar(range, "range", _write_range, _read_range),
    Scalar(Encoded, "encoded", _write_encoded, _read_encoded),
    *(Scalar(kind, "path", _write_path, _read_path) for kind in _PATHS.values()),
)
