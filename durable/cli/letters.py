"""`durable dead-letters`: runs that failed for good: listed, retried, discarded.

Law: as for `durable retry`: what is decided is decided by the run, and no body runs here. How often a dead letter may be retried is what
`Limits` says by default; `durable retry` has no such limit.
"""

from __future__ import annotations

import asyncio
from argparse import Namespace

from durable.app import Durable
from durable.cli.deciding import PATIENCE_SECONDS, application, decide, no_answer, report_retry
from durable.cli.looking import run_json
from durable.cli.target import Target, opened, pages
from durable.cli.terminal import clipped, complain, counted, escaped, moment, print_table, to_json
from durable.core.query import RunFilter, by_death
from durable.core.run import Run
from durable.errors import ConfigError, LimitError, RunNotFoundError, StorageError, TransitionError
from durable.store.base import Store
from durable.tasks.handle import Handle


async def dead_letters(args: Namespace) -> int:
    """List dead letters, or decide about them. Raises `ConfigError` for what does not go together."""
    if args.action == "list" and (args.run or args.all):
        raise ConfigError("dead-letters list takes no RUN and no --all: say what to do with it, retry or discard")
    if args.action == "discard" and (args.all or not args.run):
        raise ConfigError("dead-letters discard needs a RUN, and takes one at a time")
    if args.action == "retry" and bool(args.run) is args.all:
        raise ConfigError("dead-letters retry needs either a RUN or --all")
    if args.action == "list":
        return await _list(args)
    if args.all:
        return await _retry_all(args)
    return await (_retry(args) if args.action == "retry" else _discard(args))


async def _letters(store: Store, task: str | None) -> list[Run]:
    """Dead letters, the oldest first."""
    found = [run async for page in pages(store, RunFilter(dead=True, task=task)) for run in page]
    return sorted(found, key=by_death)


async def _list(args: Namespace) -> int:
    async with opened(args) as store:
        found = await _letters(store, args.task)
    if args.json:
        for run in found:
            print(to_json(run_json(run)))
        return 0
    if not found:
        print("no dead letters" if args.task is None else "no dead letters like that")
        return 0
    rows = [
        (
            run.run_id,
            escaped(run.task),
            moment(run.ended_at),
            str(run.retried),
            clipped(escaped(run.key or "-"), 40),
            _error(run),
        )
        for run in found
    ]
    print_table(("run", "task", "died (UTC)", "retried", "key", "error"), rows)
    return 0


def _error(run: Run) -> str:
    failure = run.failure or {}
    return clipped(escaped(f"{failure.get('error_type')}: {failure.get('message')}"))


async def _retry(args: Namespace) -> int:
    async def action(app: Durable, handle: Handle[object]) -> None:
        await app.dead_letters.retry(handle.run_id)

    decided = await decide(args, action)
    if args.json:
        print(to_json(run_json(decided.run)))
    else:
        report_retry(decided)
    return 0


async def _discard(args: Namespace) -> int:
    async def action(app: Durable, handle: Handle[object]) -> None:
        await app.dead_letters.discard(handle.run_id)

    run = (await decide(args, action)).run
    if args.json:
        print(to_json(run_json(run)))
    else:
        print(
            f"run {run.run_id} of task {escaped(run.task)!r} is no dead letter any more; it stays {run.status}, and durable retry can "
            "still let it go on"
        )
    return 0


async def _retry_all(args: Namespace) -> int:
    target = Target.of(args)
    going: list[Run] = []
    stays: list[tuple[str, str]] = []
    async with application(target) as (app, store):
        for letter in await _letters(store, args.task):
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await app.dead_letters.retry(letter.run_id)
            except (LimitError, RunNotFoundError, TransitionError) as error:
                stays.append((letter.run_id, str(error)))
            except TimeoutError:
                raise StorageError(no_answer(target, store, letter.run_id)) from None
            else:
                going.append(await store.find(letter.run_id) or letter)
        # One that belongs to another run went on with that.
        stays = [(run_id, why) for run_id, why in stays if (run := await store.find(run_id)) is not None and run.dead]
    if args.json:
        for run in going:
            print(to_json(run_json(run)))
    elif going or not stays:
        what = counted(len(going), "dead letter")
        print(
            f"{what} of {len(going) + len(stays):,} retried; they go on {target.goes_on}"
            if going
            else "no dead letters"
        )
    for run_id, why in stays:
        complain(f"dead letter {run_id} stays: {why}")
    return 1 if stays else 0
