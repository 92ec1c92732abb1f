"""`durable gc`: what has long been over is forgotten, by hand.

Law: it forgets what `retention.closed_seconds` would, and nothing else; of a folder only where no process has it open.
"""

from __future__ import annotations

from argparse import Namespace

from durable.cli.target import Target, opened, pages
from durable.cli.terminal import counted, escaped, span
from durable.clock import SYSTEM_CLOCK
from durable.config import RetentionSettings
from durable.core.families import prunable
from durable.core.query import RunFilter
from durable.core.run import Run


async def gc(args: Namespace) -> int:
    """Forget families of runs that have been closed for long, or only count them."""
    target = Target.of(args)
    before = SYSTEM_CLOCK.now() - args.older_than
    count = await (_would_go(args, before) if args.dry_run else _forget(target, before))
    ended = f"that ended more than {span(args.older_than)} ago"
    verb = "would be forgotten" if args.dry_run else "was forgotten" if count == 1 else "were forgotten"
    print(f"{escaped(target.name)}: {counted(count, 'run')} {ended} {verb}")
    return 0


async def _forget(target: Target, before: float) -> int:
    store = target.store()
    await store.open()
    try:
        gone, size = 0, RetentionSettings().batch_runs
        while count := await store.prune(before, size):
            gone += count
        return gone
    finally:
        await store.close()


async def _would_go(args: Namespace, before: float) -> int:
    runs: dict[str, Run] = {}
    async with opened(args) as store:
        async for page in pages(store, RunFilter()):
            for run in page:
                run.input, run.result = b"", None
                runs[run.run_id] = run
    return sum(map(len, prunable(runs, before)))
