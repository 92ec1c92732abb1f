"""`durable worker`: a process that executes the tasks of a module, until it is told to stop.

Law: at the first SIGTERM or SIGINT it takes no new work, lets bodies finish within the grace, hands the rest back, and ends with exit
code 0; the second ends it at once, by the signal itself.
"""

from __future__ import annotations

import asyncio
import signal
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

from durable.app import Durable
from durable.cli.program import load
from durable.cli.target import Target, check_there
from durable.cli.terminal import clipped, counted, escaped
from durable.config import Config, Limits
from durable.errors import ConfigError
from durable.store.shared import is_shared
from durable.tasks.registry import all_tasks

TASKS_CHARACTERS_MAX = 400
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def work(args: Namespace) -> int:
    """Execute tasks until a signal comes."""
    module_name, _, app_name = args.module.partition(":")
    if args.store is None and not app_name:
        raise ConfigError(
            "name the store to work on with --store postgresql://..., or an application that has one with MODULE:APP",
            key="store",
        )
    app, store_name = _application(args, load(module_name, app_name))
    stopping = asyncio.Event()
    _on_signals(asyncio.get_running_loop(), stopping.set)
    async with app:
        print(_ready(app, store_name or f"the store of {args.module}"), flush=True)
        await stopping.wait()
        print(
            "durable worker stops: what it does not finish now goes on elsewhere, or when it is started again",
            flush=True,
        )
    return 0


def _application(args: Namespace, app: Durable | None) -> tuple[Durable, str]:
    """The application to open, and what to call its store, if the options say which it is.

    What the options say holds; what they leave open is as in APP, or as it is by default.
    """
    if args.store is None and (args.schema, args.lease) != (None, None):
        raise ConfigError("--schema and --lease go with --store postgresql://...", key="store")
    limits = Limits() if app is None else app.limits
    config = Config() if app is None else app.config
    if args.concurrency is not None:  # of this process: limits.max_running is of all that share the store
        config = replace(config, engine=replace(config.engine, concurrency=args.concurrency))
    if args.schema is not None:
        config = replace(config, postgres=replace(config.postgres, schema=args.schema))
    if args.lease is not None:
        config = replace(config, postgres=replace(config.postgres, lease_seconds=args.lease))
    target, name = _target(args, config)
    if app is None:
        return Durable(target, limits=limits, config=config), name
    # The object itself, which the code of the module may use. A worker executes, also where the module made a client.
    app.move_to(target or app.store, limits=limits, config=config)
    return app, name


def _target(args: Namespace, config: Config) -> tuple[str, str]:
    """The store that the options say, and what to call it; empty where they leave that to APP."""
    if args.store is None:
        return "", ""
    target = replace(Target.of(args), settings=config.postgres)
    if not target.is_shared:
        check_there(target.text)
        if args.lease is not None:
            raise ConfigError("--lease is for a PostgreSQL store: a folder has one process", key="lease")
    return target.text, target.name


def _ready(app: Durable, store_name: str) -> str:
    names = sorted(f"{task.name} {task.version}" if task.version else task.name for task in all_tasks())
    store = app.store
    ids = [shard.executor_id for shard in store.shards] if is_shared(store) else []
    executor = f", as executor {', '.join(ids)}" if ids else ""
    tasks = clipped(escaped(", ".join(names)), TASKS_CHARACTERS_MAX)
    return (
        f"durable worker is ready: executes {counted(len(names), 'task')} ({tasks}) of {escaped(store_name)}{executor}"
    )


def _on_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Have the first signal call `stop` on the loop, and the next one end the process, also where the loop is blocked."""

    def received(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        loop.call_soon_threadsafe(stop)

    for number in _SIGNALS:
        signal.signal(number, received)
