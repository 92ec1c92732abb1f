"""`durable log verify`, `dump` and `repair`: the write-ahead log, looked at and mended from outside.

Law: verify and dump change nothing; repair gives nothing up unless it was told to, and says what is gone and where its bytes are kept.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress

from durable.cli.target import LOOKS_MAX, Target
from durable.cli.terminal import (
    call_text,
    clipped,
    clock_time,
    complain,
    counted,
    escaped,
    iso,
    readable,
    to_json,
    value_of,
)
from durable.clock import SYSTEM_CLOCK
from durable.core.records import CALLS, Kind, Record
from durable.core.wire import decode_unit
from durable.errors import ConfigError, StorageError
from durable.log import DiskFiles
from durable.log.repair import LogReport, dump, repair, verify
from durable.repository.sqlite import SqliteRepository


def _log_of(args: Namespace) -> tuple[DiskFiles, str]:
    """The log that was meant, and the folder of its store: DIR may be either. Raises `StorageError`, `ConfigError`."""
    target = Target.of(args)
    if args.folder is None and target.is_shared:
        raise ConfigError("a PostgreSQL store has no log in files: its tables are the log", key="store")
    folder = target.text if args.folder is None else args.folder
    for path, store in ((os.path.join(folder, "log"), folder), (folder, os.path.dirname(os.path.abspath(folder)))):
        if os.path.isdir(path) and any(name == "manifest" or name.endswith(".log") for name in os.listdir(path)):
            return DiskFiles(path), store
    raise StorageError(f"{folder!r} holds no log of durable: name the folder of a store, or the folder `log` in it")


def _verified(files: DiskFiles) -> LogReport:
    for _ in range(LOOKS_MAX - 1):
        with suppress(FileNotFoundError):  # a segment whose records were all flushed was removed meanwhile
            report = verify(files)
            if report.ok:
                return report
    return verify(files)


def _units(files: DiskFiles) -> Iterator[tuple[int, bytes]]:
    """What is in the log, also while segments are removed at its beginning."""
    after = 0
    for look in range(LOOKS_MAX):
        try:
            for lsn, payload in dump(files):
                if lsn > after:
                    after = lsn
                    yield lsn, payload
            return
        except FileNotFoundError:
            if look == LOOKS_MAX - 1:
                raise


async def verify_log(args: Namespace) -> int:
    """Check every byte of the log."""
    files, _ = _log_of(args)
    report = _verified(files)
    if args.json:
        problem = None if report.problem is None else str(report.problem)
        print(to_json({
            "ok": report.ok, "problem": problem, "store_id": report.store_id, "epoch": report.epoch, "segments": report.segments,
            "first_lsn": report.first_lsn, "next_lsn": report.next_lsn, "torn_bytes": report.torn_bytes,
        }))  # fmt: skip
        return 0 if report.ok else 1
    count = report.next_lsn - report.first_lsn
    sound = "sound" if report.ok else "DAMAGED"
    print(f"log      {escaped(files.path)}: {sound}")
    print(f"store    {report.store_id or 'unknown'}, opened {counted(report.epoch, 'time')} for writing")
    print(f"segments {', '.join(report.segments) or 'none'}")
    which = f", {report.first_lsn} to {report.next_lsn - 1}" if count else ""
    print(f"holds    {counted(count, 'record')}{which}{'' if report.ok else ' before the damage'}")
    if report.torn_bytes:
        print(
            f"tail     {counted(report.torn_bytes, 'byte')} that were being written when the process died; the next open cuts them off"
        )
    if report.problem is not None:
        complain(str(report.problem))
        return 1
    return 0


async def dump_log(args: Namespace) -> int:
    """Print every record that is in the log."""
    files, _ = _log_of(args)
    for lsn, payload in _units(files):
        for record in decode_unit(payload, lsn):
            print(to_json(_record_json(lsn, record)) if args.json else _record_text(lsn, record))
    return 0


def _record_json(lsn: int, record: Record) -> dict[str, object]:
    return {
        "lsn": lsn, "run_id": record.run_id, "seq": record.seq, "kind": record.kind.name.lower(), "at": iso(record.at),
        "attempt": record.attempt, "name": record.name, "ident": record.ident.decode("utf-8", "replace"),
        "occurrence": record.occurrence, "head": record.head, "payload": value_of(record.payload),
    }  # fmt: skip


def _record_text(lsn: int, record: Record) -> str:
    name = escaped(record.name)
    if record.kind in CALLS and record.kind is not Kind.EVENT:
        name = call_text(record.name, record.ident)
    head = {key: value for key, value in record.head.items() if key != "traceback"}
    parts = [name, readable(head) if head else "", "" if record.payload is None else readable(value_of(record.payload))]
    text = clipped("  ".join(filter(None, parts)))
    return f"{lsn:>6}  {record.run_id} #{record.seq:<4} {clock_time(record.at)}  {record.kind.name.lower():<14}  {text}".rstrip()


async def repair_log(args: Namespace) -> int:
    """Cut a damaged log at the damage."""
    files, folder = _log_of(args)
    report = _verified(files)
    if report.ok:
        print(f"log {escaped(files.path)} is sound: nothing to repair")
        return 0
    if not args.accept_loss:
        complain(
            f"{report.problem} `durable log repair DIR --accept-loss` keeps the {counted(report.next_lsn - report.first_lsn, 'record')} "
            "before the damage, gives up what is behind it, and keeps all its bytes beside. Better: restore a copy."
        )
        return 1
    repository = SqliteRepository(os.path.join(folder, "repository.db"))
    try:
        applied = (await repository.peek()).applied
    finally:
        await repository.close()
    done = repair(files, accept_loss=True, clock=SYSTEM_CLOCK, applied=applied)
    if done is None:
        print(f"log {escaped(files.path)} is sound: nothing to repair")
        return 0
    lost = f"records {done.lost_from} to {done.lost_through}" if done.lost else "no record"
    print(f"log {escaped(files.path)} is repaired; {lost} had to be given up, as far as can be told")
    if done.kept_in:
        print(f"the bytes that were given up are kept in {', '.join(map(escaped, done.kept_in))}")
    return 0
