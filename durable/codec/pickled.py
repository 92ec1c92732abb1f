"""The opt-in codec ``cloudpickle``: signed pickles, for the same interpreter only.

Law: not one byte of a payload is unpickled before its signature, made with a key from outside the store, is verified for this
very place in the store. Nothing falls back to this codec, and neither web nor command line ever decodes with it.

Layout: magic (4 bytes), HMAC-SHA256 (32), length of the header (2, big endian), header (JSON), pickle.
"""

from __future__ import annotations

import hmac
import json
import pickle
import struct
import sys
from typing import Any

from durable.codec.base import check_size, type_path
from durable.codec.tagged import TaggedJson
from durable.config import PayloadSettings
from durable.errors import (
    ConfigError,
    DecodeError,
    NotStorableError,
    PayloadTooDeepError,
    SignatureMismatchError,
)

_MAGIC = b"DPK1"
_SIGNATURE_BYTES = 32
_FORMAT = 1
_INTERPRETER = [sys.implementation.name, *sys.version_info[:2]]


class Pickled:
    """The codec ``cloudpickle``: stores nearly everything, lambdas and local classes too.

    Arguments:
        settings: needs `pickle_key`. Whoever has the key can run code in every process that decodes with it.

    Raises:
        ConfigError: no key, or cloudpickle is not installed.
    """

    name = "cloudpickle"

    def __init__(self, settings: PayloadSettings) -> None:
        if settings.pickle_key is None:
            raise ConfigError(
                "codec 'cloudpickle' needs a key to sign with: set Config(payload=PayloadSettings(pickle_key=...)) to 16 or "
                "more secret random bytes that are kept outside the store, for example from secrets.token_bytes(32)",
                key="payload.pickle_key",
            )
        try:
            import cloudpickle
        except ImportError:
            raise ConfigError(
                "codec 'cloudpickle' needs the package cloudpickle: pip install 'durable[pickle]'", key="codec"
            ) from None
        self._dumps = cloudpickle.dumps
        self._version: str = cloudpickle.__version__
        self._key = settings.pickle_key
        self._settings = settings
        self._context = b""
        self._comparing = TaggedJson(settings)

    def bind(self, context: bytes) -> Pickled:
        """This codec for one place (store, run, sequence number): a payload from another place is refused."""
        bound = Pickled.__new__(Pickled)
        bound.__dict__.update(self.__dict__)
        bound._context = context
        return bound

    def encode(self, value: object, expected: object = Any, label: str = "value") -> bytes:
        """Return the signed pickle of `value`.

        Raises:
            NotStorableError, PayloadTooLargeError, PayloadTooDeepError
        """
        try:
            pickled: bytes = self._dumps(value)
        except RecursionError:
            raise PayloadTooDeepError(
                f"cannot store {label}: it is nested too deeply to be pickled. Flatten it."
            ) from None
        except Exception as error:
            if isinstance(error.__cause__, RecursionError):  # as cloudpickle reports it
                raise PayloadTooDeepError(f"cannot store {label}: {error} Flatten it.") from None
            raise NotStorableError(
                f"cannot store {label} (type {type_path(type(value))}), not even by cloudpickle: {error}. "
                "Leave out what belongs to this process, such as locks, sockets and open files."
            ) from error
        header = json.dumps({"format": _FORMAT, "interpreter": _INTERPRETER, "cloudpickle": self._version}).encode(
            "ascii"
        )
        body = struct.pack(">H", len(header)) + header + pickled
        encoded = _MAGIC + self._sign(body) + body
        check_size(len(encoded), self._settings.bytes_max, label)
        return encoded

    def decode(self, data: bytes | memoryview, expected: object = Any) -> object:
        """Return the value, once signature and interpreter are found right.

        Raises:
            SignatureMismatchError: not signed with this key for this place; nothing was unpickled.
            DecodeError: written by another interpreter, or the pickle needs something that is gone.
            PayloadTooLargeError
        """
        payload = bytes(data)
        check_size(len(payload), self._settings.bytes_max, "payload")
        start = len(_MAGIC) + _SIGNATURE_BYTES
        signature, body = payload[len(_MAGIC) : start], payload[start:]
        if not payload.startswith(_MAGIC) or not hmac.compare_digest(signature, self._sign(body)):
            raise SignatureMismatchError(
                "a pickled payload is not signed, or not with this payload.pickle_key for this place in this store; it was "
                "not unpickled. Was the key changed, or a row copied?"
            )
        pickled, version = self._opened(body)
        try:
            # Signed by us: as trusted as the code that wrote it.
            return pickle.loads(pickled)
        except RecursionError:
            raise PayloadTooDeepError("a pickled payload is nested too deeply to be read") from None
        except Exception as error:
            raise DecodeError(
                f"a payload pickled by cloudpickle {version} cannot be read with {self._version}: {type(error).__name__}: {error}"
            ) from error

    def canonical(self, value: object, label: str = "value") -> bytes:
        """As `TaggedJson.canonical`, and with its refusals: equal values do not have equal pickles."""
        return self._comparing.canonical(value, label)

    def identity(self, value: object) -> bytes:
        """As `TaggedJson.identity`: equal values do not have equal pickles."""
        return self._comparing.identity(value)

    def _sign(self, body: bytes) -> bytes:
        # The length keeps a longer context with a shorter body apart.
        return hmac.digest(self._key, _MAGIC + struct.pack(">Q", len(self._context)) + self._context + body, "sha256")

    def _opened(self, body: bytes) -> tuple[bytes, str]:
        """The pickle and the version of cloudpickle that wrote it; refuses another interpreter's."""
        (length,) = struct.unpack_from(">H", body)
        header = json.loads(body[2 : 2 + length])
        if header["format"] != _FORMAT:
            raise DecodeError(
                f"a pickled payload has format {header['format']}; this version of durable reads {_FORMAT}"
            )
        if header["interpreter"] != _INTERPRETER:
            # Bytecode inside a pickle crashes other versions, and does so without an exception.
            written, here = (" ".join(map(str, version)) for version in (header["interpreter"], _INTERPRETER))
            raise DecodeError(
                f"a pickled payload was written by {written} and cannot be read by {here}; finish its run there"
            )
        return body[2 + length :], header["cloudpickle"]
