"""A proxy before a server that swallows answers: what was asked for is done, and who asked does not hear of it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Proxy:
    """`async with Proxy(url) as proxy`: connect to `proxy.url`."""

    def __init__(self, url: str) -> None:
        given = conninfo_to_dict(url)
        self._host, self._port = str(given["host"]), str(given.get("port") or "5432")
        self._folder = Path(tempfile.mkdtemp(prefix="proxy-", dir="/tmp"))
        self.url = make_conninfo(url, host=str(self._folder), port=self._port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._pattern: bytes | None = None
        self.swallowed = asyncio.Event()

    async def __aenter__(self) -> Self:
        path = self._folder / f".s.PGSQL.{self._port}"
        self._server = await asyncio.start_unix_server(self._serve, path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        shutil.rmtree(self._folder, ignore_errors=True)

    def swallow(self, pattern: bytes = b"") -> None:
        """Swallow the answer to the next message in which this occurs, and end that connection."""
        self._pattern = pattern
        self.swallowed.clear()

    def cut(self) -> None:
        """End all connections, without a word to the server."""
        for writer in list(self._writers):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._host.startswith("/"):
            there, answers = await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
        else:
            there, answers = await asyncio.open_connection(self._host, int(self._port))
        self._writers |= {writer, answers}
        mute = asyncio.Event()
        back = asyncio.ensure_future(self._answer(there, writer, mute))
        with suppress(OSError):
            while sent := await reader.read(1 << 20):
                if self._pattern is not None and self._pattern in sent:
                    self._pattern = None
                    mute.set()
                answers.write(sent)
        answers.close()
        await back
        self._writers -= {writer, answers}

    async def _answer(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter, mute: asyncio.Event) -> None:
        with suppress(OSError):
            while answer := await there.read(1 << 20):
                if mute.is_set():
                    self.swallowed.set()
                    break
                writer.write(answer)
        writer.close()
