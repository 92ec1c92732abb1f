"""`durable why`: what a run does or waits for.

Law: as for `durable.cli.looking`: nothing here changes a run or holds one up.
"""

from __future__ import annotations

from argparse import Namespace

from durable.cli.family import Family
from durable.cli.reasons import Facts, reasons
from durable.cli.target import find_run, opened
from durable.cli.terminal import escaped
from durable.clock import SYSTEM_CLOCK
from durable.store.shared import is_shared


async def why(args: Namespace) -> int:
    """Say what a run does or waits for."""
    async with opened(args) as store:
        run = await find_run(store, args.run, args)
        placement = await store.placement(run.run_id) if is_shared(store) else None
        records = await store.history(run.run_id)
        run = await store.find(run.run_id) or run
        family = await Family.of(store, run, records)
    facts = Facts(run=run, records=records, children=family.children, placement=placement, now=SYSTEM_CLOCK.now())
    print(f"run {run.run_id} of task {escaped(run.task)!r} is {run.status}")
    for line in reasons(facts):
        print(f"  {line}")
    return 0
