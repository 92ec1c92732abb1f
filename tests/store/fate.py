"""What may become of runs at random: commands as the core's machine allows them, by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from durable.core.commands import (
    Begin,
    Cancel,
    Close,
    Command,
    Complete,
    Coordinate,
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
from durable.core.records import CALLS, Failure, Kind, Record
from durable.core.run import Run

FAILURE = Failure("builtins.ValueError", "no such \ud800 page\x00", "Traceback ...", b"state")
TEXTS = ("a", "", "é\ud800", "\\u0000\x00", "b" * 50)
SIGNALS_MAX = 5


def text(rng: random.Random) -> str:
    return rng.choice(TEXTS)


def payload(rng: random.Random) -> bytes:
    return rng.choice((b"null", b"", b'"\xc3\xa9"', bytes(range(256)), rng.randbytes(rng.randrange(3_000))))


def call(rng: random.Random) -> tuple[str, bytes, int]:
    return text(rng), rng.choice((b"", b"0123456789abcdef")), rng.randrange(3)


#: Ways of a new run that lead to where others rarely are.
PATHS: tuple[tuple[Command, ...], ...] = (
    (),
    (Begin(),),
    (Begin(), Send("a", b"1", SIGNALS_MAX)),
    (Begin(), Sleep()),
    (Begin(), Suspend("stop")),
    (Begin(), Fail(FAILURE, retryable=False)),
    (Begin(), Fail(FAILURE, retryable=False), Close()),
    (Begin(), Complete(b"1", 0, "function"), Coordinate()),
    (Begin(), Complete(b"1", 1), Cancel("enough"), Close()),
)

Make = Callable[[random.Random, Run, float], Command]
Fits = Callable[[Run, list[Record]], bool]


def has(kind: Kind) -> Fits:
    return lambda run, records: any(record.kind is kind for record in records)


def note(kind: Kind) -> Make:
    def make(rng: random.Random, run: Run, now: float) -> Command:
        head: dict[str, Any] = {"until": now + 5} if kind is Kind.TIMER_SET else {}
        if kind is Kind.CHILD_STARTED:
            head = {"child": "f" * 32, "awaited": True}
        return Note(kind, call(rng), rng.choice((None, payload(rng))), head)

    return make


#: Each: how it is asked for, and what shows that it happened.
COMMANDS: dict[str, tuple[Make, Fits]] = {
    "begin": (lambda rng, run, now: Begin(), has(Kind.STARTED)),
    "complete": (lambda rng, run, now: Complete(payload(rng)), has(Kind.COMPLETED)),
    "fail": (lambda rng, run, now: Fail(FAILURE, retryable=False), has(Kind.FAILED)),
    "fail in a coordinator": (
        lambda rng, run, now: Fail(FAILURE, retryable=False),
        lambda run, records: bool(run.returned_seq) and records[-1].kind is Kind.FAILED,
    ),
    "time out": (lambda rng, run, now: Fail(FAILURE, retryable=False, timed_out=True), has(Kind.TIMED_OUT)),
    "try again": (lambda rng, run, now: Fail(FAILURE, fraction=rng.random()), has(Kind.RETRYING)),
    "recover": (lambda rng, run, now: Recover("crash", 10), has(Kind.RECOVERED)),
    "be lost for good": (lambda rng, run, now: Recover("crash", run.recoveries), has(Kind.FAILED)),
    "sleep": (lambda rng, run, now: Sleep(), has(Kind.ASLEEP)),
    "sleep until": (lambda rng, run, now: Sleep(now + rng.randrange(60)), has(Kind.ASLEEP)),
    "wake": (lambda rng, run, now: Wake(), has(Kind.AWAKE)),
    "release": (lambda rng, run, now: Release(), has(Kind.RELEASED)),
    "suspend": (lambda rng, run, now: Suspend(text(rng)), has(Kind.SUSPENDED)),
    "suspend for a failure": (lambda rng, run, now: Suspend("broken", FAILURE), has(Kind.SUSPENDED)),
    "resume": (lambda rng, run, now: Resume(), has(Kind.RESUMED)),
    "cancel": (lambda rng, run, now: Cancel(text(rng)), has(Kind.CANCELLED)),
    "retry": (lambda rng, run, now: Revive(), lambda run, records: bool(records) and not run.returned_seq),
    "retry with the family": (
        lambda rng, run, now: Revive(children=1, by_parent=True),
        lambda run, records: bool(records) and bool(run.returned_seq),
    ),
    "discard": (lambda rng, run, now: Discard(), has(Kind.DISCARDED)),
    "send": (lambda rng, run, now: Send(text(rng), rng.choice((None, payload(rng))), SIGNALS_MAX), has(Kind.SIGNAL)),
    "receive": (
        lambda rng, run, now: Receive(run.signals[0][1] if run.signals else "none", call(rng), {seq: b"1" for seq, _ in run.signals}),
        has(Kind.STEP_COMPLETED),
    ),
    "watch": (lambda rng, run, now: Watch("e" * 32), has(Kind.WATCHED)),
    "close": (lambda rng, run, now: Close(), has(Kind.CLOSED)),
    **{f"note {kind.name}": (note(kind), has(kind)) for kind in sorted(CALLS)},
}  # fmt: skip
