"""`ProcessPool`: functions run in processes of their own, which can be killed and may crash without harm to this one.

Law: a worker runs one call at a time; a call that is cancelled takes its worker's process, and all that it started, with it.

The parent holds one end of a socket pair for each worker, and frames (8 bytes of length, then a pickle) go to and fro. A worker is
started by `exec`, never by a bare fork: a fork of a process with threads may hang. It ends when its parent does: the kernel kills it
(PR_SET_PDEATHSIG, Linux), or it meets the end of the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from durable.engine.isolation_worker import LENGTH, Call, Pickles, Place, Reply, dumps, look_up, why
from durable.errors import ConfigError, NotStorableError, PayloadTooLargeError, ShuttingDownError, StepError
from durable.tasks.failure import revive

#: Largest call or result that crosses to a worker or back.
FRAME_BYTES_MAX = 256 * 1024 * 1024
#: What a reply may have besides the pickled result.
_ENVELOPE_BYTES_MAX = 256 * 1024

# prctl(PR_SET_PDEATHSIG, SIGKILL) is called here, so that the parent needs no ctypes. Then sys.path: the worker finds durable,
# and the user's modules, where the parent does.
_BOOTSTRAP = (
    "import ctypes, json, sys; sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, 9); sys.path[:] = json.loads(sys.argv[1]); "
    "from durable.engine.isolation_worker import serve; serve(*sys.argv[2:])"
)


class ProcessPool:
    """At most `workers` processes, started when they are needed and used again. It belongs to the event loop that first uses it.

    Arguments:
        workers: most calls that run at once; further ones wait their turn in the order in which they came.
        frame_bytes_max: largest pickled call or result.
    """

    def __init__(self, workers: int, *, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        if workers < 1:
            raise ConfigError(
                f"a process pool needs at least one worker, not {workers!r}", key="engine.process_workers"
            )
        self._frame_bytes_max = frame_bytes_max
        # A place is free only once the worker that had it is reaped: never are there more processes than places.
        self._places = asyncio.Semaphore(workers)
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._closed = False

    async def run(
        self, function: Callable[..., object], args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        """Run a function, sync or async, in a worker and return its result.

        Cancelling kills the process at once. What the function raises is raised here, with the traceback it had there as a note.

        Raises:
            StepError: the process died; `error_type` is ``durable.WorkerDied``, the message tells its exit code or signal.
            NotStorableError: the call or its result cannot be pickled.
            PayloadTooLargeError: the call or its result is larger than the limit.
            ConfigError: cloudpickle is not installed.
            ShuttingDownError: the pool is closed.
        """
        name = _name(function)
        call = self._call(name, function, args, kwargs or {})
        await self._places.acquire()
        try:
            worker = self._take()
        except BaseException:
            self._places.release()
            raise
        try:
            reply = await worker.exchange(name, call)
            if reply is None:
                await worker.wait_exited(grace_seconds=1.0)
                raise self._death(name, worker)
        except BaseException:
            worker.kill()
            worker.when_exited(self._places.release)
            raise
        self._idle.append(worker)
        self._places.release()
        return _unfold(name, reply, self._frame_bytes_max)

    async def close(self) -> None:
        """Kill all workers. Calls that run or wait end with `ShuttingDownError`."""
        self._closed = True
        workers = list(self._all)
        for worker in workers:
            worker.kill()
        for worker in workers:
            await worker.wait_exited()

    def pids(self) -> list[int]:
        """The processes that are there now."""
        return [worker.pid for worker in self._all]

    def _take(self) -> _Worker:
        if self._closed:
            raise ShuttingDownError("the process pool is closed: it takes no more calls")
        while self._idle:
            if (worker := self._idle.pop()).is_alive():
                return worker
        worker = _Worker(self._frame_bytes_max)
        self._all.add(worker)
        worker.when_exited(lambda: self._forget(worker))
        return worker

    def _forget(self, worker: _Worker) -> None:
        self._all.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)

    def _death(self, name: str, worker: _Worker) -> Exception:
        if self._closed:
            return ShuttingDownError(f"the process pool was closed while {name} ran")
        message = f"the worker process that ran {name} {worker.ending()}"
        return StepError(message, error_type="durable.WorkerDied", reason=message)

    def _call(
        self, name: str, function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]
    ) -> bytes:
        try:
            body = dumps((_place(function) or function, tuple(args), dict(kwargs)))
        except ConfigError:
            raise
        except Exception as error:
            raise NotStorableError(f"the call of {name} cannot be carried to a worker process: {why(error)}") from error
        frame = pickle.dumps(Call(name, _search_path(), _directory(), body))
        if len(frame) > self._frame_bytes_max:
            raise _too_large(f"the call of {name}", len(frame), self._frame_bytes_max)
        return frame


class _Worker:
    """One process, seen from the parent. Only the event loop's thread reaps it, so that no signal can meet a foreign process."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[None] = self._loop.create_future()
        self._frame_bytes_max = frame_bytes_max
        self._busy = False
        self._socket, theirs = socket.socketpair()
        try:
            self._socket.setblocking(False)
            arguments = [json.dumps(_search_path()), str(theirs.fileno()), str(os.getpid()), str(frame_bytes_max)]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOTSTRAP, *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # Its own group, to be killed with all that it starts; and a Ctrl-C in the terminal is the parent's to handle.
                start_new_session=True,
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        threading.Thread(target=self._watch, name=f"durable-worker-{self.pid}", daemon=True).start()

    async def exchange(self, name: str, call: bytes) -> Reply | None:
        """Send a call and wait for its reply; None if the process ended without one."""
        self._busy = True
        try:
            await self._loop.sock_sendall(self._socket, LENGTH.pack(len(call)) + call)
            (length,) = LENGTH.unpack(await self._receive(LENGTH.size))
            if length > self._frame_bytes_max + _ENVELOPE_BYTES_MAX:
                raise _too_large(f"the reply of {name}", length, self._frame_bytes_max)
            return cast(Reply, pickle.loads(await self._receive(length)))
        except (ConnectionError, EOFError):
            return None
        finally:
            self._busy = False
            self._close_socket()

    async def _receive(self, size: int) -> bytearray:
        received = bytearray(size)
        rest = memoryview(received)
        while rest:
            count = await self._loop.sock_recv_into(self._socket, rest)
            if not count:
                raise EOFError
            rest = rest[count:]
        return received

    def kill(self) -> None:
        """Kill the process and all processes of its group. At once; `wait_exited` tells when it is gone."""
        if not self._exited.done():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def is_alive(self) -> bool:
        """Whether the process lives, also where nobody was told yet that it does not."""
        if self._exited.done() or sys.platform == "darwin":
            return not self._exited.done()
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None
        except ChildProcessError:
            return False

    async def wait_exited(self, *, grace_seconds: float = 0.0) -> None:
        """Wait until the process is gone and reaped; kill it if that takes longer than the grace."""
        if grace_seconds:
            await asyncio.wait([self._exited], timeout=grace_seconds)
        self.kill()
        await asyncio.wait([self._exited])

    def when_exited(self, callback: Callable[[], None]) -> None:
        """Call back once the process is reaped."""
        self._exited.add_done_callback(lambda _: callback())

    def ending(self) -> str:
        """How the process ended."""
        code = self._process.returncode
        if code is None or code >= 0:
            return f"exited with code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"was killed by {name}" + (" (out of memory, perhaps)" if name == "SIGKILL" else "")

    def _watch(self) -> None:
        # WNOWAIT: until the loop's thread reaps it, the process id stays taken.
        if sys.platform != "darwin" or sys.version_info >= (3, 13):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        else:
            self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._reap)

    def _reap(self) -> None:
        # What the process had started must not outlive it.
        self.kill()
        self._process.wait()
        # A reply that was sent in full before the end is still read; but a grandchild that holds the other end shall not keep us.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._exited.set_result(None)
        self._close_socket()

    def _close_socket(self) -> None:
        # The event loop must not find a closed socket that it still waits for.
        if self._exited.done() and not self._busy:
            self._socket.close()


def _name(function: object) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    return f"{module}.{name}" if module and name else type(function).__qualname__


def _too_large(what: str, size_bytes: int, limit_bytes: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"{what} is {size_bytes} bytes when pickled, but at most {limit_bytes} cross to a worker process or back. "
        "Pass the name of a file instead.",
        size_bytes=size_bytes,
        limit_bytes=limit_bytes,
    )


def _search_path() -> list[str]:
    return [entry for entry in sys.path if isinstance(entry, str)]


def _directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # somebody deleted it
        return ""


def _place(function: object) -> Place | None:
    module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module == "__main__" or module not in sys.modules or "<" in qualname:
        return None
    found = look_up(sys.modules[module], qualname)
    for unwraps in range(10):
        if found is function:
            # Without a decorator, cloudpickle refers to it by name itself.
            return Place(module, qualname, unwraps) if unwraps else None
        found = getattr(found, "__wrapped__", None)
    return None


def _unfold(name: str, reply: Reply, limit_bytes: int) -> object:
    """The result, or raise what the function raised."""
    if reply.too_large:
        raise _too_large(f"the result of {name}", reply.too_large, limit_bytes)
    if reply.refusal:
        raise NotStorableError(reply.refusal)
    if reply.failure is not None:
        kind = None
        if reply.kind is not None:
            with contextlib.suppress(ImportError, AttributeError):  # of a module that only the worker can import
                kind = pickle.loads(reply.kind)
        error = revive(reply.failure, Pickles(limit_bytes), kind)
        error.add_note(f"In the worker process:\n{reply.failure.traceback.rstrip()}")
        raise error
    assert reply.result is not None
    try:
        return cast(object, pickle.loads(reply.result))
    except Exception as error:
        raise NotStorableError(
            f"the result of {name} cannot be loaded from its worker process: {why(error)}"
        ) from error
