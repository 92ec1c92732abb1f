"""What the statements have in common."""

from __future__ import annotations

import itertools
import re

import psycopg
import pytest

from durable.store import PostgresStore
from durable.store.postgres.columns import escape, unescape
from durable.store.postgres.statements import Statements, Variant

from .parcels import begun, parcel, step


def test_whoever_changes_a_run_or_adds_a_record_says_under_which_epoch() -> None:
    """Each INSERT and UPDATE of these tables mentions it: fenced by it, or raising it."""
    statements = Statements("some")
    texts = [text.decode() for text in vars(statements).values() if isinstance(text, bytes)]
    texts += [
        statements.write(Variant(*flags)).decode()
        for flags in itertools.product((False, True), repeat=len(Variant._fields))
    ]
    changes = []
    for text in texts:
        for part in re.split(r"(?=\b(?:INSERT INTO|UPDATE|DELETE FROM) )", text):
            if re.match(r'(INSERT INTO|UPDATE|DELETE FROM) "some"\.(runs|records)\b', part):
                changes.append(part)
                assert "epoch" in part, part
    assert len(changes) > 100


@pytest.mark.parametrize("text", ["", "a", "\\", "\\u0000", "\x00", "é\ud800\\\udfff", "\\\\u", "\u200b\n", "😀"])
def test_every_text_can_be_stored(text: str) -> None:
    """And no two become one."""
    escaped = escape(text)
    assert unescape(escaped) == text
    assert "\x00" not in escaped and escaped.encode() is not None
    assert escape(escaped) == escaped or "\\" in escaped


async def test_a_step_touches_no_index_of_the_runs(
    store: PostgresStore, postgres_url: str, postgres_schema: str
) -> None:
    """Where the page has room, a run that goes on is changed in place."""
    await store.write([parcel(*begun(1))])
    for seq in range(3, 53):
        await store.write([parcel(step(1, seq), epochs={1: 1})])
    await store.close()  # its session reports what it has done
    query = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = %s AND relname = 'runs'"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        while (counted := connection.execute(query, (postgres_schema,)).fetchone()) is None or not counted[0]:
            pass
    assert counted[0] == 50
    assert counted[1] >= 45
