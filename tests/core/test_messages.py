"""Messages: commands as bytes, and back."""

from __future__ import annotations

import pytest

from durable.core.commands import Cancel, ChildEnded, Command, Discard, Resume, Send, Suspend, Watch
from durable.core.messages import Answer, Message, decode_command, encode_command
from durable.core.status import Status
from durable.errors import DecodeError

FAILURE = {"error_type": "builtins.ValueError", "message": "nö\udfff", "traceback": ""}


@pytest.mark.parametrize(
    "command",
    [
        Cancel(),
        Cancel("because"),
        ChildEnded("a" * 32, "t", Status.COMPLETED, bytes(range(256))),
        ChildEnded("a" * 32, "t", Status.CHILDREN_FAILED, None, FAILURE, "r"),
        Discard(),
        Discard("too old"),
        Resume(),
        Send("go", None, 5),
        Send("go", b"", 5),
        Suspend("why"),
        Watch("b" * 32),
    ],
)
def test_what_is_sent_arrives(command: Command) -> None:
    """Every command that may be sent comes back equal, its bytes apart from its text."""
    text, payload = encode_command(command)
    assert decode_command(text, payload) == command
    assert payload is None or payload not in text or payload == b""


def test_a_status_arrives_as_one() -> None:
    """Not as a text that only looks like it."""
    arrived = decode_command(*encode_command(ChildEnded("a" * 32, "t", Status.FAILED)))
    assert isinstance(arrived, ChildEnded)
    assert type(arrived.status) is Status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"command":"Create"}',
        b'{"command":"Cancel","unknown":1}',
        b'{"command":"ChildEnded","child_id":"a","task":"t","status":"lost"}',
        b"\xff",
    ],
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    """With the one error by which the caller knows that another version wrote it."""
    with pytest.raises(DecodeError, match="no message"):
        decode_command(body, None)


def test_nobody_waits_for_an_answer_unless_it_says_so() -> None:
    """A message by itself is of no run that waits, and not stored yet; an answer by itself is that it was obeyed."""
    message = Message("a" * 32, Resume())
    assert (message.answer_to, message.message_id) == ("", 0)
    assert (Answer(message).code, Answer(message).text) == ("", "")
