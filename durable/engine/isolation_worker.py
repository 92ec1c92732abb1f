"""A worker process of `isolation.ProcessPool`: what it does, and what goes to and fro.

Law: one call at a time; whatever happens to it, there is a reply, or the process is gone. Frames are 8 bytes of length, then a pickle.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import os
import pickle
import queue
import signal
import socket
import struct
import sys
import threading
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import cast

from durable.core.records import Failure
from durable.errors import ConfigError, PayloadTooLargeError
from durable.tasks.failure import describe

LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Place:
    """Where to import a function that hides behind a decorator: cloudpickle would copy it, and its module's globals with it."""

    module: str
    qualname: str
    unwraps: int


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    path: list[str]
    directory: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """`result` is a pickle; where there is none, `failure` says why, with its class pickled, if that is possible."""

    result: bytes | None = None
    failure: Failure | None = None
    kind: bytes | None = None
    #: Why the call or its result could not be carried.
    refusal: str = ""
    too_large: int = 0


class Pickles:
    """The codec of exceptions between the processes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max

    def encode(self, value: object, /) -> bytes:
        """Refuse what is too large: the exception then comes as a `StepError`, with its text cut."""
        pickled = dumps(value)
        if len(pickled) > self._bytes_max:
            raise PayloadTooLargeError(size_bytes=len(pickled), limit_bytes=self._bytes_max)
        return pickled

    def decode(self, data: bytes, /) -> object:
        return pickle.loads(data)


def dumps(value: object) -> bytes:
    try:
        import cloudpickle
    except ImportError:
        raise ConfigError(
            "isolate='process' needs the package cloudpickle: pip install durable[pickle]", key="isolate"
        ) from None
    return cast(bytes, cloudpickle.dumps(value))


def why(error: BaseException) -> str:
    return f"{type(error).__qualname__}: {error}"[:1000]


def look_up(found: object, qualname: str) -> object:
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def serve(descriptor: str, parent: str, frame_bytes_max: str) -> None:
    """Be a worker, until the parent is gone. Called in the process that the pool has started."""
    if os.getppid() != int(parent):  # it died before the kernel was told
        return
    connection = socket.socket(fileno=int(descriptor))
    connection.set_inheritable(False)
    calls: queue.SimpleQueue[Call] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, calls), daemon=True).start()
    while True:
        reply = pickle.dumps(_execute(calls.get(), int(frame_bytes_max)))
        # A worker is killed, never ended: what is buffered would be lost.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        connection.sendall(LENGTH.pack(len(reply)) + reply)


def _listen(connection: socket.socket, calls: queue.SimpleQueue[Call]) -> None:
    # In a thread: the end of the parent is met also while a function runs.
    with contextlib.suppress(OSError), connection.makefile("rb") as stream:
        while len(head := stream.read(LENGTH.size)) == LENGTH.size:
            frame = stream.read(LENGTH.unpack(head)[0])
            calls.put(pickle.loads(frame))
    os.killpg(0, signal.SIGKILL)


def _execute(call: Call, frame_bytes_max: int) -> Reply:
    try:
        if sys.path != call.path:
            sys.path[:] = call.path
            importlib.invalidate_caches()
        if call.directory:
            os.chdir(call.directory)
        function, args, kwargs = pickle.loads(call.body)
        if isinstance(function, Place):
            function = _import(function)
    except BaseException as error:  # noqa: BLE001 - an import may raise anything
        return Reply(refusal=f"the call of {call.name} cannot be loaded in a worker process: {why(error)}")
    try:
        result = function(*args, **kwargs)
        if inspect.isawaitable(result):
            result = asyncio.run(_awaited(result))
    except BaseException as error:  # noqa: BLE001 - sys.exit() too: the caller has to be told
        return _failed(error, frame_bytes_max // 2)
    try:
        pickled = dumps(result)
    except Exception as error:  # noqa: BLE001 - a __reduce__ may raise anything
        kind = f"{type(result).__module__}.{type(result).__qualname__}"
        return Reply(
            refusal=f"the result of {call.name}, a {kind}, cannot be carried back from its worker process: {why(error)}"
        )
    return Reply(result=pickled) if len(pickled) <= frame_bytes_max else Reply(too_large=len(pickled))


async def _awaited(awaitable: Awaitable[object]) -> object:
    return await awaitable


def _failed(error: BaseException, bytes_max: int) -> Reply:
    codec = Pickles(bytes_max)
    try:
        kind = codec.encode(type(error))
    except Exception:  # noqa: BLE001 - a metaclass may refuse in any way; then the class is looked for by its name
        kind = None
    return Reply(failure=describe(error, codec), kind=kind)


def _import(place: Place) -> object:
    found = look_up(importlib.import_module(place.module), place.qualname)
    for _ in range(place.unwraps):
        found = getattr(found, "__wrapped__", None)
    if found is None:
        raise AttributeError(f"module {place.module} has no such function {place.qualname}")
    return found
