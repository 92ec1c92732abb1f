"""A PostgreSQL store with very many runs that have ended: copies of one, made by the server itself, since starting them would take long."""

from __future__ import annotations

from time import perf_counter

import psycopg
from psycopg import sql

from benchmarks.place import Place

TABLES = ("runs", "records")
COLUMNS = "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position"
DIGITS = 12  # of the id, which the copies count up in


async def copy(place: Place, run_id: str, count: int) -> float:
    """Put `count` copies of one run, with its records, into the store; return the seconds that it took."""
    schema = str(place.settings["schema"])
    async with await psycopg.AsyncConnection.connect(place.url) as connection:
        began = perf_counter()
        for table in TABLES:
            names = [name for (name,) in await (await connection.execute(COLUMNS, (schema, table))).fetchall()]
            copied = sql.SQL("left(run_id, {0}) || lpad(to_hex(number), {1}, '0')").format(-DIGITS, DIGITS)
            insert = sql.SQL(
                "INSERT INTO {0} ({1}) SELECT {2} FROM {0}, generate_series(1, %s) AS number WHERE run_id = %s"
            ).format(
                sql.Identifier(schema, table),
                sql.SQL(", ").join(map(sql.Identifier, names)),
                sql.SQL(", ").join(copied if name == "run_id" else sql.Identifier(name) for name in names),
            )
            await connection.execute(insert, (count, run_id))
        await connection.commit()
        took = perf_counter() - began
        await connection.set_autocommit(True)
        for table in TABLES:  # what the server does by itself some time after so much was written
            await connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.Identifier(schema, table)))
        await connection.execute("CHECKPOINT")
    return took
