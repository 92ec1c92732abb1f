"""The seam to the log's directory, and the real one.

Law: nothing else in durable touches the log's files. Every method is one system call (or a loop of one), so that a
test can fail or crash at each of them; nothing here retries a sync.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import weakref
from collections.abc import Mapping
from typing import Protocol

from durable.errors import StoreLockedError

LOCK_NAME = "lock"
ZERO_CHUNK = bytes(1024 * 1024)
#: Errors that mean "no room": nothing is wrong with what is on the disk already.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class LogFile(Protocol):
    """One file, open for writing."""

    def pwrite(self, chunk: bytes | memoryview, offset: int) -> int:
        """Write at `offset`; returns how many bytes went, which may be fewer than given."""
        ...

    def fdatasync(self) -> None:
        """Return only once what was written is durable. After an error the outcome is unknown for ever."""
        ...

    def preallocate(self, start: int, end: int) -> None:
        """Fill `start` to `end` with zeros that are really written, so that a later sync writes data and no
        metadata."""
        ...

    def close(self) -> None:
        """Let go of the file; safe to call twice."""
        ...


class Files(Protocol):
    """One directory of the log. Names are plain file names."""

    def makedirs(self) -> None:
        """Create the directory (0700), durably, when it is missing."""
        ...

    def names(self) -> list[str]:
        """All names in the directory, sorted; empty when there is no directory."""
        ...

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """The bytes from `offset` on, at most `length` of them."""
        ...

    def size(self, name: str) -> int:
        """Size of the file in bytes."""
        ...

    def open(self, name: str, *, create: bool = False) -> LogFile:
        """Open for writing; `create` makes an empty file (0600), emptying one that is there."""
        ...

    def truncate(self, name: str, size: int) -> None:
        """Cut or extend the file."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Rename, replacing `new`. Durable after `fsync_dir`."""
        ...

    def unlink(self, name: str) -> None:
        """Remove a name. Durable after `fsync_dir`."""
        ...

    def fsync_dir(self) -> None:
        """Make creations, renames and removals durable."""
        ...

    def free_bytes(self) -> int:
        """Room left on the file system for this user."""
        ...

    def lock(self, holder: Mapping[str, object]) -> None:
        """Take the directory for this process or raise `StoreLockedError` at once, naming who has it."""
        ...

    def unlock(self) -> None:
        """Give the directory back; does nothing when it is not held."""
        ...


def write_all(file: LogFile, chunk: bytes | memoryview, offset: int) -> None:
    """Write every byte: a short write and EINTR go on, everything else is the caller's end."""
    view = memoryview(chunk)
    while view:
        try:
            count = file.pwrite(view, offset)
        except InterruptedError:
            continue
        if count <= 0:
            raise OSError(errno.EIO, "a write took no byte")
        view = view[count:]
        offset += count


class DiskFile:
    """A real file."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def pwrite(self, chunk: bytes | memoryview, offset: int) -> int:
        return os.pwrite(self._fd, chunk, offset)

    def fdatasync(self) -> None:
        os.fdatasync(self._fd)

    def preallocate(self, start: int, end: int) -> None:
        while start < end:
            start += os.pwrite(self._fd, memoryview(ZERO_CHUNK)[: end - start], start)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class DiskFiles:
    """The directory `path` on a real file system (POSIX)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self._lock_fd = -1
        _OPEN_DIRECTORIES.add(self)

    def __repr__(self) -> str:
        return f"DiskFiles({self.path!r})"

    def _at(self, name: str) -> str:
        return os.path.join(self.path, name)

    def makedirs(self) -> None:
        missing = []
        path = self.path
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for each in reversed(missing):
            try:
                os.mkdir(each, 0o700)
            except FileExistsError:  # another opener was faster
                continue
            _fsync_path(os.path.dirname(each))

    def names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.path))
        except FileNotFoundError:
            return []

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        with open(self._at(name), "rb", buffering=0) as file:
            if length is None:
                length = max(0, os.fstat(file.fileno()).st_size - offset)
            chunk = os.pread(file.fileno(), length, offset)
            if len(chunk) == length:
                return chunk
            parts = [chunk]
            got = len(chunk)
            while chunk and got < length:
                chunk = os.pread(file.fileno(), length - got, offset + got)
                parts.append(chunk)
                got += len(chunk)
            return b"".join(parts)

    def size(self, name: str) -> int:
        return os.stat(self._at(name)).st_size

    def open(self, name: str, *, create: bool = False) -> LogFile:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        if create:
            flags |= os.O_CREAT | os.O_TRUNC
        return DiskFile(os.open(self._at(name), flags, stat.S_IRUSR | stat.S_IWUSR))

    def truncate(self, name: str, size: int) -> None:
        os.truncate(self._at(name), size)

    def rename(self, old: str, new: str) -> None:
        os.rename(self._at(old), self._at(new))

    def unlink(self, name: str) -> None:
        os.unlink(self._at(name))

    def fsync_dir(self) -> None:
        _fsync_path(self.path)

    def free_bytes(self) -> int:
        room = os.statvfs(self.path)
        return room.f_bavail * room.f_frsize

    def lock(self, holder: Mapping[str, object]) -> None:
        fd = os.open(self._at(LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(fd, 4096, 0)
            os.close(fd)
            raise StoreLockedError(f"the log in {self.path} is open in {_holder(text)}; close that one first") from None
        except OSError:
            os.close(fd)
            raise
        # The name of the holder is a hint for people; the flock is the lock. So no sync, and rewriting in place is
        # fine.
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(dict(holder)).encode(), 0)
        self._lock_fd = fd

    def unlock(self) -> None:
        if self._lock_fd >= 0:
            fd, self._lock_fd = self._lock_fd, -1
            os.close(fd)


_OPEN_DIRECTORIES: weakref.WeakSet[DiskFiles] = weakref.WeakSet()


def _close_locks_in_child() -> None:
    # A forked child shares the flock. It must neither give it up for the parent nor hold it longer than the parent
    # lives: closing its copy does exactly that.
    for directory in list(_OPEN_DIRECTORIES):
        directory.unlock()


os.register_at_fork(after_in_child=_close_locks_in_child)


def _fsync_path(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _holder(text: bytes) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']} (since {holder['started_at']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
