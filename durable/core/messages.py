"""Messages: commands for a run that another executor may hold, as bytes.

Law: a message is durable with the records of the run that sends it, and is gone with the records by which its run obeys it: it counts once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from durable.core.commands import Cancel, ChildEnded, Command, Discard, Resume, Send, Suspend, Watch
from durable.core.status import Status
from durable.errors import DecodeError

#: Commands that may be sent, by the name under which they are stored.
_TYPES: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Cancel, ChildEnded, Discard, Resume, Send, Suspend, Watch)
}
#: What of a command is bytes, and is kept apart.
_PAYLOADS: dict[type[Any], str] = {ChildEnded: "result", Send: "payload"}


@dataclass(slots=True)
class Message:
    """A command for a run.

    Arguments:
        run_id: the run.
        command: what it is asked to do.
        answer_to: the token under which who asks waits for the answer; empty where nobody waits.
        message_id: its number in the store; messages of a run are obeyed in this order. 0 before it is stored.
    """

    run_id: str
    command: Command
    answer_to: str = ""
    message_id: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a message that was obeyed, or refused.

    Arguments:
        message: the message.
        code: the code of the error by which it was refused; empty where it was obeyed.
        text: the error's message.
    """

    message: Message
    code: str = ""
    text: str = ""


def encode_command(command: Command) -> tuple[bytes, bytes | None]:
    """A command as (JSON, payload)."""
    kind = type(command)
    payload = _PAYLOADS.get(kind)
    values = ((name, getattr(command, name)) for name in kind.__slots__ if name != payload)
    # What is None is so by default: an older executor need not know of it.
    fields: dict[str, Any] = {name: value for name, value in values if value is not None}
    text = json.dumps({"command": kind.__name__, **fields}, separators=(",", ":"))
    return text.encode(), None if payload is None else getattr(command, payload)


def decode_command(body: bytes, payload: bytes | None) -> Command:
    """The counterpart of `encode_command`. Raises `DecodeError` for what is no command that may be sent."""
    try:
        fields: dict[str, Any] = json.loads(body)
        kind: Callable[..., Command] = _TYPES[fields.pop("command")]
        if kind in _PAYLOADS:
            fields[_PAYLOADS[kind]] = payload
        command = kind(**fields)
        if isinstance(command, ChildEnded):
            command.status = Status(command.status)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DecodeError(f"these {len(body)} bytes are no message of this version of durable: {error!r}") from error
    return command
