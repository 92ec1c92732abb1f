"""`durable worker`: a process that executes the tasks of a module, until it is told to stop.

Law: at the first SIGTERM or SIGINT it takes no new work, lets bodies finish within the grace, hands the rest back, and ends with exit
code 0; the second ends it at once, by the signal itself.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from argparse import Namespace
from dataclasses import replace

from durable.app import Durable
from durable.cli.program import load
from durable.cli.target import Target, check_there
from durable.cli.terminal import clipped, counted, escaped
from durable.config import Config, Limits
from durable.environment import STORE
from durable.errors import ConfigError
from durable.store.shared import is_shared
from durable.tasks.registry import all_tasks

TASKS_CHARACTERS_MAX = 400
STOPS = "durable worker stops: what it does not finish now goes on elsewhere, or when it is started again"


async def work(args: Namespace) -> int:
    """Execute tasks until a signal comes."""
    module_name, _, app_name = args.module.partition(":")
    if args.store is None and not app_name:
        args.store = os.environ.get(STORE)
    if args.store is None and not app_name:
        raise ConfigError(
            "name the store to work on with --store postgresql://... or DURABLE_STORE, or an application that has one with MODULE:APP",
            key="store",
        )
    app, store_name = _application(args, load(module_name, app_name))
    await app.serve(
        ready=lambda: print(_ready(app, store_name or f"the store of {args.module}"), flush=True),
        stopping=lambda: print(STOPS, flush=True),
    )
    _leave_threads()
    return 0


def _leave_threads() -> None:
    """End here where threads are left that the interpreter would wait for, such as one of `asyncio.to_thread` that hangs."""
    left = [each for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]
    if left:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _application(args: Namespace, app: Durable | None) -> tuple[Durable, str]:
    """The application to open, and what to call its store, if the options say which it is.

    What the options say holds; what they leave open is as in APP, or else as variables of the environment say.
    """
    if args.store is None and (args.schema, args.lease) != (None, None):
        raise ConfigError("--schema and --lease go with --store postgresql://...", key="store")
    limits = Limits.from_env() if app is None else app.limits
    config = Config.from_env() if app is None else app.config
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
