"""A disk that loses what was not synced.

Law: file content survives a power loss for sure only after `fdatasync` of the file, and a name only after
`fsync_dir`. All else may survive or not, sector by sector and in any order, or come back as zeros or garbage. A
failed sync marks the pages clean: they stay readable, are never written, and the next sync returns 0 (fsyncgate).
Assumed of the drive: bytes that a write does not change survive it (power-safe overwrite; every log that appends to a
sector needs that). Each operation is two crash points, before and after its effect.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from durable.errors import StoreLockedError

SECTOR_BYTES = 512
#: posix: pending names survive one by one. journal: a prefix of them does. ext4: moreover a sync of any file commits
#: them.
NameMode = Literal["posix", "journal", "ext4"]


class PowerLossError(KeyboardInterrupt):
    """The machine is off. (Only SystemExit and KeyboardInterrupt leave an asyncio task and its loop at once.)"""


@dataclass(slots=True)
class _Inode:
    cache: bytearray = field(default_factory=bytearray)
    disk: bytearray = field(default_factory=bytearray)
    #: Not synced yet, in order: (offset, bytes), or (size, None) for a truncation.
    dirty: list[tuple[int, bytes | None]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Fault:
    """The `nth` operation of this kind fails: an errno, or `short` for a write that takes only a part, or `eintr`."""

    kind: str
    nth: int
    how: int | Literal["short", "eintr"]
    for_ever: bool = False


class SimulatedFile:
    """One file of a `SimulatedDisk`, open for writing."""

    def __init__(self, disk: SimulatedDisk, inode: _Inode) -> None:
        self._disk, self._inode = disk, inode
        self.closed = False

    def pwrite(self, chunk: bytes | memoryview, offset: int) -> int:
        assert not self.closed, "write to a closed file"
        how = self._disk._begin("pwrite")
        if how == "short":
            chunk = chunk[: max(1, len(chunk) // 2)]
        count = self._disk._store(self._inode, bytes(chunk), offset)
        self._disk._end()
        return count

    def fdatasync(self) -> None:
        assert not self.closed, "sync of a closed file"
        try:
            self._disk._begin("fdatasync")
        except OSError:
            self._inode.dirty.clear()
            raise
        _settle(self._inode.disk, self._inode.dirty)
        self._inode.dirty.clear()
        if self._disk.mode == "ext4":
            self._disk._commit_names()
        self._disk._end()

    def preallocate(self, start: int, end: int) -> None:
        self._disk._begin("preallocate")
        if self._disk._store(self._inode, bytes(end - start), start) < end - start:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._disk._end()

    def close(self) -> None:
        self.closed = True


class SimulatedDisk:
    """`durable.log.Files` in memory.

    Arguments:
        crash_at: number of the crash point at which the power goes; None for never.
        capacity: bytes that all files together may have.
    """

    def __init__(self, rng: random.Random, mode: NameMode = "posix", *, capacity: int | None = None) -> None:
        self.rng, self.mode, self.capacity = rng, mode, capacity
        self.points = 0
        self.crash_at: int | None = None
        self.dead = False
        self.faults: list[Fault] = []
        self.counts: dict[str, int] = {}
        self.operations: list[str] = []
        self.holder: Mapping[str, object] | None = None
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        #: Not synced yet: (name gone or None, name set or None, its inode).
        self._name_changes: list[tuple[str | None, str | None, _Inode | None]] = []

    # -- crash points and faults

    def _begin(self, kind: str) -> int | str | None:
        self._point()
        count = self.counts[kind] = self.counts.get(kind, 0) + 1
        self.operations.append(kind)
        for fault in self.faults:
            if fault.kind == kind and (count == fault.nth or (fault.for_ever and count > fault.nth)):
                if fault.how == "eintr":
                    raise InterruptedError(errno.EINTR, "interrupted")
                if isinstance(fault.how, int):
                    raise OSError(fault.how, os.strerror(fault.how))
                return fault.how
        return None

    def _end(self) -> None:
        self._point()

    def _point(self) -> None:
        self.points += 1
        if self.dead or (self.crash_at is not None and self.points >= self.crash_at):
            self.dead = True
            raise PowerLossError

    def crash(self) -> SimulatedDisk:
        """The power went: the disk as the next boot finds it."""
        self.dead = True
        after = type(self)(self.rng, self.mode)
        self._commit_names(survivors=True)
        for name, inode in self._durable_names.items():
            content = self._surviving(inode)
            after._names[name] = after._durable_names[name] = _Inode(bytearray(content), content)
        return after

    def kill(self) -> SimulatedDisk:
        """The process was killed, the machine goes on: the caches live, and so does what a failed sync left in them."""
        self.dead = True
        after = type(self)(self.rng, self.mode, capacity=self.capacity)
        after._names, after._durable_names, after._name_changes = self._names, self._durable_names, self._name_changes
        return after

    def _surviving(self, inode: _Inode) -> bytearray:
        rng, content = self.rng, bytearray(inode.disk)
        how = rng.choice(("none", "all", "prefix", "sectors", "zeros", "garbage"))
        if how == "all":
            _settle(content, inode.dirty)
        elif how == "prefix":
            count = rng.randint(0, len(inode.dirty))
            _settle(content, inode.dirty[:count])
            if count < len(inode.dirty) and (chunk := inode.dirty[count][1]) is not None:
                _put(content, inode.dirty[count][0], chunk[: rng.randint(0, len(chunk))])
        elif how != "none":
            for offset, chunk in inode.dirty:
                if chunk is None:
                    if rng.random() < 0.5:
                        _settle(content, [(offset, None)])
                else:
                    self._survive_sectors(content, offset, chunk, how)
        return content

    def _survive_sectors(self, content: bytearray, offset: int, chunk: bytes, how: str) -> None:
        done = 0
        while done < len(chunk):
            count = min(SECTOR_BYTES - (offset + done) % SECTOR_BYTES, len(chunk) - done)
            luck, place = self.rng.random(), slice(offset + done, offset + done + count)
            if luck < 0.5:
                _put(content, offset + done, chunk[done : done + count])
            elif content[place] == chunk[done : done + count]:
                pass  # power-safe overwrite: a sector that is written again with what it holds keeps it
            elif how == "zeros":
                _put(content, offset + done, bytes(count))
            elif how == "garbage" and luck < 0.75:
                _put(content, offset + done, self.rng.randbytes(count))
            done += count

    # -- names

    def _commit_names(self, *, survivors: bool = False) -> None:
        changes = self._name_changes
        if survivors and self.mode == "posix":
            changes = [change for change in changes if self.rng.random() < 0.5]
        elif survivors:
            changes = changes[: self.rng.randint(0, len(changes))]
        for gone, name, inode in changes:
            if gone is not None:
                self._durable_names.pop(gone, None)
            if name is not None and inode is not None:
                self._durable_names[name] = inode
        self._name_changes.clear()

    def _inode(self, name: str) -> _Inode:
        try:
            return self._names[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None

    def _store(self, inode: _Inode, chunk: bytes, offset: int) -> int:
        growth = offset + len(chunk) - len(inode.cache)
        if self.capacity is not None and growth > 0 and growth > (room := self.free_bytes()):
            chunk = chunk[: max(0, len(chunk) - (growth - room))]
            if not chunk:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _put(inode.cache, offset, chunk)
        inode.dirty.append((offset, chunk))
        return len(chunk)

    # -- Files

    def makedirs(self) -> None:
        pass

    def names(self) -> list[str]:
        if self.dead:
            raise PowerLossError
        return sorted(self._names)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self._begin("read")
        end = None if length is None else offset + length
        return bytes(self._inode(name).cache[offset:end])

    def size(self, name: str) -> int:
        return len(self._inode(name).cache)

    def open(self, name: str, *, create: bool = False) -> SimulatedFile:
        if not create:
            self._begin("open")
            return SimulatedFile(self, self._inode(name))
        self._begin("create")
        # A new inode even where the name exists: an emptied file whose old content may come back is the weaker case.
        inode = self._names[name] = _Inode()
        self._name_changes.append((None, name, inode))
        self._end()
        return SimulatedFile(self, inode)

    def truncate(self, name: str, size: int) -> None:
        self._begin("truncate")
        inode = self._inode(name)
        change: list[tuple[int, bytes | None]] = [(size, None)]
        _settle(inode.cache, change)
        inode.dirty += change
        self._end()

    def rename(self, old: str, new: str) -> None:
        self._begin("rename")
        inode = self._inode(old)
        del self._names[old]
        self._names[new] = inode
        self._name_changes.append((old, new, inode))
        self._end()

    def unlink(self, name: str) -> None:
        self._begin("unlink")
        self._inode(name)
        del self._names[name]
        self._name_changes.append((name, None, None))
        self._end()

    def fsync_dir(self) -> None:
        self._begin("fsync_dir")
        self._commit_names()
        self._end()

    def free_bytes(self) -> int:
        if self.capacity is None:
            return 1 << 50
        return max(0, self.capacity - sum(len(inode.cache) for inode in self._names.values()))

    def lock(self, holder: Mapping[str, object]) -> None:
        if self.dead:
            raise PowerLossError
        if self.holder is not None:
            raise StoreLockedError(f"the log is open in process {self.holder['pid']} on {self.holder['host']}")
        self.holder = dict(holder)

    def unlock(self) -> None:
        self.holder = None

    # -- damage, for tests

    def content(self, name: str) -> bytearray:
        """The file's bytes, to be damaged in place; do so only while nobody has it open, and after everything was
        synced."""
        return self._inode(name).cache

    def lose(self, name: str) -> None:
        """Make a file vanish, without a crash point."""
        del self._names[name]


def _put(content: bytearray, offset: int, chunk: bytes) -> None:
    if len(content) < offset:
        content += bytes(offset - len(content))
    content[offset : offset + len(chunk)] = chunk


def _settle(content: bytearray, changes: list[tuple[int, bytes | None]]) -> None:
    for offset, chunk in changes:
        if chunk is not None:
            _put(content, offset, chunk)
        elif offset <= len(content):
            del content[offset:]
        else:
            content += bytes(offset - len(content))
