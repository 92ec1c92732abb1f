"""`durable cancel`, `retry`, `stop` and `resume`: a decision about one run, made while no process executes it.

Law: the rules of `core/decide.py` decide, the store makes the decision durable, and no body runs here: the next application that opens the
folder acts on it.
"""

from __future__ import annotations

from argparse import Namespace

from durable.cli.folder import find_run, opened
from durable.cli.terminal import complain, escaped
from durable.clock import SYSTEM_CLOCK
from durable.config import EngineSettings
from durable.core.commands import Cancel, Command, Resume, Revive, Suspend
from durable.core.decide import decide
from durable.core.run import apply
from durable.core.status import Status

_NEXT = {
    Status.READY: "it goes on when the next application opens this folder",
    Status.SUSPENDED: "it waits until `durable resume`",
    Status.CANCELLED: "its unfinished children are cancelled when the next application opens this folder",
}


async def _command(args: Namespace, command: Command, wanted: Status) -> int:
    """Have the run decide, and commit what it decided. Raises `TransitionError`, `StoreLockedError`."""
    async with opened(args.dir, read_only=False) as store:
        run = await find_run(store, args.run, args.user)
        records = decide(run, command, SYSTEM_CLOCK.now(), EngineSettings().history_records_max)
        if records:
            await store.commit([records])
            for record in records:
                apply(run, record)
    if run.status is not wanted:
        complain(f"run {run.run_id} has ended as {run.status} already: nothing was changed")
        return 1
    changed = "is now" if records else "was already"
    print(
        f"run {run.run_id} of task {escaped(run.task)!r} {changed} {run.status}"
        + (f"; {_NEXT[wanted]}" if records else "")
    )
    return 0


async def cancel(args: Namespace) -> int:
    """End a run."""
    return await _command(args, Cancel(args.reason), Status.CANCELLED)


async def retry(args: Namespace) -> int:
    """Let a run that failed go on from the step that failed."""
    return await _command(args, Revive(), Status.READY)


async def stop(args: Namespace) -> int:
    """Suspend a run."""
    return await _command(args, Suspend(args.reason), Status.SUSPENDED)


async def resume(args: Namespace) -> int:
    """Go on with a suspended run."""
    return await _command(args, Resume(), Status.READY)
