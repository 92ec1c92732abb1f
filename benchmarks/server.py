"""The PostgreSQL server of a benchmark: with fsync, a database for each measurement, and what it uses of the processors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from tests.support.pgserver import PostgresServer, children_of

TICKS = os.sysconf("SC_CLK_TCK")
#: What the server logs of each statement, whether it came by itself or was prepared.
SAID = re.compile(r"LOG:  (?:statement|execute [^:]+): ")


class Server:
    """One server with its settings as they come, but for what tests/support/pgserver.py sets; everything is synced."""

    def __init__(self) -> None:
        self._server = PostgresServer(durable=True)
        self._numbers = count(1)

    def __enter__(self) -> Server:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.remove()

    @property
    def version(self) -> str:
        return str(self._server.sql("SHOW server_version")[0][0]).split()[0]

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new database; what was written before is on disk, and nothing is left of it afterwards."""
        name = f"bench_{next(self._numbers)}"
        self._server.sql(f"CREATE DATABASE {name}")
        self._server.sql("CHECKPOINT")
        try:
            yield self._server.url_for(dbname=name)
        finally:
            self._server.sql(f"DROP DATABASE {name} WITH (FORCE)")

    def cpu_seconds(self) -> float:
        """What all processes of this server have used so far, those that have ended included."""
        assert self._server._process is not None
        pid = self._server._process.pid
        fields = _stat(pid)
        own = sum(map(int, fields[11:15])) if fields else 0
        return (own / TICKS) + sum(map(cpu_seconds_of, children_of(pid)))

    def log_statements(self, url: str) -> None:
        """Log what is said in this database in sessions that begin from now on."""
        name = url.partition("?")[0].rpartition("/")[2]
        self._server.sql(f"ALTER DATABASE {name} SET log_statement = 'all'")

    def statements(self) -> int:
        """How many statements have been logged so far."""
        return len(SAID.findall(self._server.log))


def cpu_seconds_of(pid: int) -> float:
    """What this process alone has used so far; 0 where it has ended."""
    fields = _stat(pid)
    return sum(map(int, fields[11:13])) / TICKS if fields else 0.0


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
