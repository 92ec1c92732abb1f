"""Plays the stories of tests/transcripts: lines of commands in, the exact records, effects and status out.

A story is a text file. A line that begins with `#` is prose. A block is one or more lines of commands, a line `----`, and what came of
them, up to an empty line. The records of a block are one commit. `+5 begin` gives a command five seconds after the one before it;
`NAME=VALUE` are options of a command; `limits` sets bounds; `replay` shows what the next attempt's calls would be handed back.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from durable.core.commands import (
    Begin,
    Cancel,
    ChildEnded,
    Close,
    Command,
    Complete,
    Coordinate,
    Create,
    Discard,
    Fail,
    Note,
    Receive,
    Recover,
    Release,
    Resume,
    Revive,
    Send,
    Sleep,
    Suspend,
    Wake,
    Watch,
)
from durable.core.decide import decide
from durable.core.memo import Memo
from durable.core.react import REACTIONS
from durable.core.records import CALLS, Call, Failure, Kind, Record
from durable.core.retry import Retry
from durable.core.run import Run, apply
from durable.core.status import Status
from durable.core.wire import decode_unit, encode_record, encode_unit
from durable.errors import DurableError

RULE = "----"
CREATE_OPTIONS = ("version", "key", "user", "parent_id")
#: Words for what the body does, and the kind that each is recorded as.
BODY = {
    "step": Kind.STEP_COMPLETED,
    "step-failed": Kind.STEP_FAILED,
    "step-cancelled": Kind.STEP_CANCELLED,
    "step-retrying": Kind.STEP_RETRYING,
    "timer": Kind.TIMER_SET,
    "wait": Kind.WAITING,
    "child": Kind.CHILD_STARTED,
    "emit": Kind.EVENT,
}
PLAIN: dict[str, type[Command]] = {
    "begin": Begin,
    "resume": Resume,
    "release": Release,
    "discard": Discard,
    "wake": Wake,
    "close": Close,
}
#: What the status line shows where it is not as usual.
SHOWN = (
    "attempt",
    "attempt_base",
    "recoveries",
    "recovery_reason",
    "not_before",
    "reason",
    "signals",
    "failure",
    "result",
    "dead",
    "returned_seq",
    "join",
    "lenient",
    "unfinished",
    "awaiting",
    "coordinator_id",
    "asleep",
    "wake_at",
)


class Story:
    """One run, the records that it has so far, and the clock of the story."""

    def __init__(self) -> None:
        self.run = Run("0" * 32)
        self.records: list[Record] = []
        self.now = 0.0
        self.limits = {"records": 1_000, "signals": 100, "recoveries": 10}

    def play(self, commands: list[str]) -> Iterator[str]:
        """Give the commands of one block; yield what comes of them."""
        unit: list[Record] = []
        for line in commands:
            words = shlex.split(line)
            if words[0].startswith("+"):
                self.now += float(words.pop(0))
            verb, *rest = words
            options = dict(word.split("=", 1) for word in rest if "=" in word)
            args = [word for word in rest if "=" not in word]
            if verb == "limits":
                self.limits |= {name: int(value) for name, value in options.items()}
            elif verb == "replay":
                yield from self.replay()
            else:
                yield from self.give(self.command(verb, args, options), unit)
        self.records += decode_unit(encode_unit(map(encode_record, unit)), batch=len(self.records))
        yield self.status()

    def give(self, command: Command, unit: list[Record]) -> Iterator[str]:
        """Decide and apply one command, and tell of its records or of its refusal."""
        before = self.run.copy()
        try:
            records = decide(self.run, command, self.now, self.limits["records"])
        except DurableError as error:
            assert self.run == before, "a refused command has changed the run"
            yield f"! {type(error).__name__}: {error}".replace(self.run.run_id, "R")
            return
        for record in records:
            apply(self.run, record)
            unit.append(record)
            yield shown(record)
        if not records:
            yield "nothing to do"

    def command(self, verb: str, args: list[str], options: dict[str, str]) -> Command:
        """Read a command."""
        first = args[0] if args else ""
        match verb:
            case "create":
                policy = {
                    name: float(options[name]) for name in ("delay", "factor", "max_delay", "jitter") if name in options
                }
                return Create(
                    first,
                    options.get("input", "null").encode(),
                    retry=Retry(int(options["attempts"]), **policy) if "attempts" in options else None,  # type: ignore[arg-type]
                    timeout=float(options["timeout"]) if "timeout" in options else None,
                    delay=float(options.get("after", 0)),
                    priority=int(options.get("priority", 0)),
                    attached="attached" in args,
                    joined="joined" in args,
                    depth=int(options.get("depth", 0)),
                    **{name: options[name] for name in CREATE_OPTIONS if name in options},  # type: ignore[arg-type]
                )
            case "complete":
                children, join = int(options.get("children", 0)), options.get("join", "")
                return Complete(first.encode(), children, join, "lenient" in args)  # type: ignore[arg-type]
            case "child-ended":
                return child_ended(first, Status(args[1]), options)
            case "watch":
                return Watch(first)
            case "coordinate":
                return Coordinate(first or None)
            case "sleep":
                return Sleep(float(options["until"]) if "until" in options else None)
            case "revive":
                return Revive(int(options.get("children", 0)), "by-parent" in args)
            case "fail":
                failure = Failure(options.get("type", "builtins.ValueError"), first)
                return Fail(failure, "final" not in args, "late" in args, float(options.get("fraction", 0)))
            case "recover":
                return Recover(first or "crash", self.limits["recoveries"])
            case "send":
                return Send(
                    first, options["payload"].encode() if "payload" in options else None, self.limits["signals"]
                )
            case "receive":
                payloads = {record.seq: record.payload for record in self.records if record.kind is Kind.SIGNAL}
                return Receive(first, call_of(options.get("call", "wait_for"), options), payloads)
            case "cancel":
                return Cancel(first or None)
            case "suspend":
                failed = Failure(options["type"], options.get("message", "")) if "type" in options else None
                return Suspend(first or None, failed)
            case _ if verb in BODY:
                head: dict[str, object] = {
                    name: options[name] for name in ("child", "what", "awaited") if name in options
                }
                if "until" in options:
                    head["until"] = float(options["until"])
                payload = options["payload"].encode() if "payload" in options else None
                return Note(BODY[verb], call_of(first, options), payload, head)
        return PLAIN[verb]()

    def replay(self) -> Iterator[str]:
        """Make every recorded call anew and tell what is handed back, batch by batch."""
        memo = Memo(self.records, self.run.attempt)
        calls = dict.fromkeys(
            record.call for record in self.records if record.kind in CALLS or record.kind is Kind.EVENT
        )
        made = [memo.number(name, ident) for name, ident, _ in calls]
        given_up = {record.call for record in self.records if record.kind is Kind.STEP_CANCELLED}
        while due := memo.next_batch([call for call in made if call not in given_up]):
            yield "handed back: " + ", ".join(f"{call_text(record.call)} {record.kind.name}" for record in due)
        for call in made:
            if (marker := memo.marker(call)) is not None:
                yield f"under way: {call_text(call)} {marker.kind.name}{head_text(marker.head)}"
        yield "everything else runs"

    def status(self) -> str:
        """The run, as far as it is not as usual."""
        usual = Run(self.run.run_id)
        parts = [str(self.run.status)]
        for name in SHOWN:
            value = getattr(self.run, name)
            if value == getattr(usual, name):
                continue
            if name == "failure":
                value = f"{value['error_type']}({value['message']!r})"
            elif name == "signals":
                value = ",".join(f"{signal}@{seq}" for seq, signal in value)
            elif isinstance(value, bytes):
                value = value.decode()
            parts.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
        if self.run.ended and not self.run.closed:
            parts.append("open")
        return f"= {' '.join(parts)}"


def child_ended(child_id: str, status: Status, options: dict[str, str]) -> ChildEnded:
    """What a parent hears of its child."""
    failure = {"error_type": options["type"], "message": options.get("message", "")} if "type" in options else None
    result = options["result"].encode() if "result" in options else None
    return ChildEnded(child_id, options.get("task", child_id), status, result, failure, options.get("reason"))


def call_of(name: str, options: dict[str, str]) -> Call:
    """The identity of a call."""
    return name, options.get("args", "").encode(), int(options.get("occurrence", 0))


def call_text(call: Call) -> str:
    """A call, as it would be written."""
    name, ident, occurrence = call
    return f"{name}({ident.decode()})" + (f"#{occurrence}" if occurrence else "")


def head_text(head: dict[str, object]) -> str:
    """The small values of a record; a traceback says nothing here."""
    kept = {key: value for key, value in head.items() if (key, value) != ("traceback", "")}
    return f" {json.dumps(kept)}" if kept else ""


def shown(record: Record) -> str:
    """A record on one line: number, kind, time, attempt, call or name, small values, payload, and what follows from it."""
    name = call_text(record.call) if record.kind in CALLS else record.name
    parts = [f"{record.seq} {record.kind.name} @{record.at:g} attempt {record.attempt}"]
    if name:
        parts.append(name)
    line = " ".join(parts) + head_text(record.head)
    if record.payload is not None:
        line += f" <{record.payload.decode()}>"
    effects = " ".join(effect.name.lower() for effect in REACTIONS[record.kind])
    return f"{line} -> {effects}" if effects else line


def perform(text: str) -> tuple[str, Story, list[tuple[Status, Kind, Status]]]:
    """Play a whole story. Return its text with what really came of it, the run, and the changes of status by kind of record."""
    story, written, commands = Story(), [], []
    expecting = False
    for line in text.splitlines():
        if expecting:
            expecting = bool(line.strip())
            if expecting:
                continue
        if line == RULE:
            written += [line, *story.play(commands)]
            commands, expecting = [], True
            continue
        if line.strip() and not line.startswith("#"):
            commands.append(line)
        written.append(line)
    assert not commands, f"these commands have no {RULE} after them: {commands}"
    return "\n".join(written).rstrip() + "\n", story, list(changes(story.records))


def changes(records: list[Record]) -> Iterator[tuple[Status, Kind, Status]]:
    """Which kind of record brought the run from which status to which."""
    run = Run(records[0].run_id)
    for record in records:
        before = run.status
        apply(run, record)
        yield before, record.kind, run.status
