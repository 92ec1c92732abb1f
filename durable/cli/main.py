"""`durable`: the command line's grammar, and what becomes of errors.

Law: exit code 0 means fine, 1 that the thing asked about failed, 2 wrong use. An error is one line on stderr that says what to do.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence

from durable.cli import deciding, demo, logs, looking
from durable.cli.terminal import complain
from durable.core.status import Status
from durable.errors import DurableError

DEFAULT_FOLDER = "./.durable"
EPILOG = """\
RUN is the id of a run, the beginning of one (4 digits or more, if no other run has it), or its key.
Reading also works beside a process that has the folder open; writing waits for no one and says who has it.
exit codes: 0 fine, 1 the thing asked about failed (unknown run, refused transition, damaged log), 2 wrong use"""


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_count.__name__ = "count of 1 or more"


def _statuses(text: str) -> frozenset[Status]:
    try:
        return frozenset(Status(name.strip()) for name in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(Status)}") from None


def _parser() -> argparse.ArgumentParser:
    installed = sys.modules["durable"].__version__  # importlib.metadata would take 7 ms to find the same
    parser = argparse.ArgumentParser(
        prog="durable", description="Look at durable runs, decide about them, and see one survive kill -9.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"durable {installed}")
    parser.add_argument(
        "--dir", default=DEFAULT_FOLDER, metavar="DIR", help=f"the folder of the store (default {DEFAULT_FOLDER})"
    )
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument(
        "--dir", default=argparse.SUPPRESS, metavar="DIR", help=f"the folder of the store (default {DEFAULT_FOLDER})"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[..., object], **options: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, parents=[folder], description=options["help"], **options)  # type: ignore[arg-type]
        command.set_defaults(run_command=run)
        return command

    command = add("runs", looking.runs, help="list runs, the newest first")
    command.add_argument("--status", type=_statuses, metavar="STATUS[,STATUS]", help=f"of {', '.join(Status)}")
    command.add_argument("--task", help="of this task")
    command.add_argument("--user", help="of this user")
    command.add_argument("--parent", metavar="RUN", help="that this run returned, awaits or started")
    command.add_argument("--limit", type=_count, default=50, metavar="N", help="at most so many (default 50)")
    command.add_argument("--json", action="store_true", help="a line of JSON for each")
    for name, run, text in (
        ("show", looking.show, "one run: what it is, its steps, where each result came from, its children"),
        ("events", looking.events, "the events of a run"),
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
    _add_log(commands, folder)
    add("demo", demo.demo, help="see a run survive kill -9, and what it did not have to do again")
    return parser


def _add_log(commands: argparse._SubParsersAction[argparse.ArgumentParser], folder: argparse.ArgumentParser) -> None:
    log = commands.add_parser("log", help="verify, dump or repair the write-ahead log")
    log_commands = log.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, run, text in (
        ("verify", logs.verify_log, "check every byte; changes nothing"),
        ("dump", logs.dump_log, "print every record"),
        ("repair", logs.repair_log, "cut a damaged log at the damage"),
    ):
        command = log_commands.add_parser(name, parents=[folder], help=text, description=text)
        command.set_defaults(run_command=run)
        command.add_argument(
            "folder", metavar="DIR", nargs="?", help="the folder of a store, or of its log (default: --dir)"
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
    except (DurableError, OSError) as error:
        complain(str(error))
        return 1
