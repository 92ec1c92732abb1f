"""`durable`: the command line's grammar, and what becomes of errors.

Law: exit code 0 means fine, 1 that the thing asked about failed, 2 wrong use. An error is one line on stderr that says what to do.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from durable.cli import deciding, demo, explaining, figures, keeping, letters, logs, looking, migrating, worker
from durable.cli.target import DEFAULT_FOLDER
from durable.cli.terminal import complain, without_passwords
from durable.core.status import Status
from durable.errors import ConfigError, DurableError

EPILOG = """\
RUN is the id of a run, the beginning of one (4 digits or more, if no other run has it), or its key.
STORE is a folder, or the postgresql:// URL of a database; a password is better kept in PGPASSWORD or ~/.pgpass than in the URL.
Reading also works beside a process that has the folder open; writing waits for no one and says who has it. In a database, what is
decided about a run is decided by the executor that holds it.
Without --store it is the one that DURABLE_STORE names, and settings are as DURABLE_<PART>_<KEY> say: see docs/settings.md.
exit codes: 0 fine, 1 the thing asked about failed (unknown run, refused transition, damaged log, no such server), 2 wrong use"""


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_count.__name__ = "count of 1 or more"


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


_seconds.__name__ = "number of seconds"


def _age(text: str) -> float:
    return _seconds(text.rstrip("smhd") or "-") * {"s": 1, "m": 60, "h": 3_600, "d": 86_400}.get(text[-1:], 1)


_age.__name__ = "age like 90s, 30m, 12h or 7d"


def _statuses(text: str) -> frozenset[Status]:
    try:
        return frozenset(Status(name.strip()) for name in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(Status)}") from None


class _Parser(argparse.ArgumentParser):
    """The grammar; what it refuses it repeats without passwords."""

    def error(self, message: str) -> NoReturn:
        super().error(without_passwords(message))


def _name_store(parser: argparse.ArgumentParser, default: str | None) -> None:
    """The options that name a store; before the command or behind it."""
    parser.add_argument(
        "--store", "--dir", dest="store", default=default, metavar="STORE",
        help=f"a folder (default {DEFAULT_FOLDER}), or postgresql://USER@HOST/DATABASE",
    )  # fmt: skip
    parser.add_argument("--schema", default=default, help="of the database, if it is not durable's own")


def _parser() -> argparse.ArgumentParser:
    installed = sys.modules["durable"].__version__  # importlib.metadata would take 7 ms to find the same
    parser = _Parser(
        prog="durable", description="Look at durable runs, decide about them, execute them, and see one survive kill -9.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"durable {installed}")
    _name_store(parser, None)
    store = _Parser(add_help=False)
    _name_store(store, argparse.SUPPRESS)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[..., object], **options: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, parents=[store], description=options["help"], **options)  # type: ignore[arg-type]
        command.set_defaults(run_command=run)
        return command

    _add_runs(add)
    _add_keeping(add)
    command = add(
        "worker", worker.work, help="execute the tasks of a module until SIGTERM or SIGINT, which lets bodies finish"
    )
    command.add_argument(
        "module", metavar="MODULE[:APP]",
        help="that defines the tasks, as in pkg.tasks or pkg/tasks.py; APP is a Durable object in it, whose store and settings hold where "
        "no option says otherwise",
    )  # fmt: skip
    command.add_argument(
        "--concurrency",
        type=_count,
        metavar="N",
        help="runs that this process executes at once (default: limits.max_running)",
    )
    command.add_argument(
        "--lease",
        type=_seconds,
        metavar="SECONDS",
        help="after which others take the runs of a worker that died (default 15)",
    )
    command = add("migrate", migrating.migrate, help="create or update the tables of a PostgreSQL store")
    command.add_argument(
        "--grant-execute", action="append", default=[], metavar="ROLE", help="let a role start and execute runs"
    )
    command.add_argument("--grant-read", action="append", default=[], metavar="ROLE", help="let a role look at runs")
    command.add_argument("--print", action="store_true", help="only show the SQL that lets roles do so")
    _add_log(commands, store)
    add("demo", demo.demo, help="see a run survive kill -9, and what it did not have to do again")
    return parser


def _add_runs(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add("runs", looking.runs, help="list runs, the newest first")
    command.add_argument("--status", type=_statuses, metavar="STATUS[,STATUS]", help=f"of {', '.join(Status)}")
    command.add_argument("--task", help="of this task")
    command.add_argument("--user", help="of this user")
    command.add_argument("--parent", metavar="RUN", help="that this run returned, awaits or started")
    command.add_argument("--limit", type=_count, default=50, metavar="N", help="at most so many (default 50)")
    command.add_argument("--json", action="store_true", help="a line of JSON for each")
    command = add("stats", figures.stats, help="how many runs there are, what of them waits, and who executes them")
    command.add_argument("--json", action="store_true", help="JSON")
    for name, run, text in (
        ("show", looking.show, "one run: what it is, its steps, where each result came from, its children"),
        ("events", looking.events, "the events of a run"),
        ("why", explaining.why, "what a run does or waits for, and who has it"),
        ("cancel", deciding.cancel, "end a run and the children that belong to it"),
        ("retry", deciding.retry, "let a run that failed go on from the step that failed"),
        ("stop", deciding.stop, "suspend a run"),
        ("resume", deciding.resume, "go on with a suspended run"),
    ):
        command = add(name, run, help=text)
        command.add_argument("run", metavar="RUN", help="id, beginning of an id, or key")
        command.add_argument("--user", help="whose key it is, for the key of a user's run")
        if name in ("show", "events"):
            command.add_argument("--json", action="store_true", help="JSON, with values as they are stored")
        if name == "events":
            command.add_argument(
                "--steps",
                action="store_true",
                help="every record, not only what was emitted and what became of the run",
            )
            command.add_argument("--follow", action="store_true", help="go on until the run ends")
        if name in ("cancel", "stop"):
            command.add_argument("--reason", help="recorded with it")


def _add_keeping(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "dead-letters", letters.dead_letters, help="runs that failed for good: list them, retry or discard them"
    )
    command.add_argument(
        "action", nargs="?", choices=("list", "retry", "discard"), default="list", help="(default list)"
    )
    command.add_argument("run", nargs="?", metavar="RUN", help="id, beginning of an id, or key: for retry and discard")
    command.add_argument("--all", action="store_true", help="for retry: all of them, the oldest first")
    command.add_argument("--task", help="for list and retry --all: those of this task")
    command.add_argument("--user", help="whose key it is, for the key of a user's run")
    command.add_argument("--json", action="store_true", help="a line of JSON for each run")
    command = add(
        "gc", keeping.gc, help="forget families of runs that have long been closed, with their events and payloads"
    )
    command.add_argument(
        "--older-than", type=_age, default=7 * 86_400.0, metavar="AGE",
        help="those that ended longer ago, as in 90s, 30m, 12h or 7d (default 7d)",
    )  # fmt: skip
    command.add_argument("--dry-run", action="store_true", help="only count what would go")


def _add_log(commands: argparse._SubParsersAction[_Parser], store: _Parser) -> None:
    log = commands.add_parser("log", help="verify, dump or repair the write-ahead log")
    log_commands = log.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, run, text in (
        ("verify", logs.verify_log, "check every byte; changes nothing"),
        ("dump", logs.dump_log, "print every record"),
        ("repair", logs.repair_log, "cut a damaged log at the damage"),
    ):
        command = log_commands.add_parser(name, parents=[store], help=text, description=text)
        command.set_defaults(run_command=run)
        command.add_argument(
            "folder", metavar="DIR", nargs="?", help="the folder of a store, or of its log (default: --store)"
        )
        if name == "repair":
            command.add_argument("--accept-loss", action="store_true", help="yes, give up what is behind the damage")
        else:
            command.add_argument("--json", action="store_true", help="JSON")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    args = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 is no reason to fail
    try:
        code: int = asyncio.run(args.run_command(args))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read this has seen enough (`durable runs | head`). The interpreter must not fail once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except ConfigError as error:
        complain(str(error))
        return 2
    except (DurableError, OSError) as error:
        complain(str(error))
        return 1
