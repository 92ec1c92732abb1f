"""A proxy before a PostgreSQL server: it swallows answers, cuts, delays and freezes what passes through it.

async with Proxy(server.url) as proxy:
    Durable(proxy.url)
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self

from psycopg.conninfo import conninfo_to_dict

CHUNK = 1 << 20


class Proxy:
    """Connect to `proxy.url`, by TCP; it leads to where `url` leads, by TCP or by a socket.

    Only what a client sends and what the server answers is told apart: a statement that was prepared before passes by the values in it.
    """

    def __init__(self, url: str) -> None:
        given = conninfo_to_dict(url)
        self._host, self._there = str(given["host"]), int(given.get("port") or 5432)
        self._given = given
        self._writers: set[asyncio.StreamWriter] = set()
        self._links: set[asyncio.Task[None]] = set()
        self._pattern: bytes | None = None
        self._cuts = True
        self._flows = asyncio.Event()
        self._flows.set()
        #: Seconds by which everything comes later, each way.
        self.delay = 0.0
        #: Set once an answer was swallowed.
        self.swallowed = asyncio.Event()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.thaw()
        self.cut()
        if self._links:
            await asyncio.wait(self._links)

    @property
    def url(self) -> str:
        """The server's address with this proxy in place of it."""
        return f"postgresql://{self._given['user']}@127.0.0.1:{self.port}/{self._given['dbname']}"

    def swallow(self, pattern: bytes, *, cut: bool = True) -> None:
        """Swallow the answer to the next message in which this occurs: it is carried out.

        Arguments:
            cut: end that connection then, towards both sides; else it stays open, and nothing more comes.
        """
        self._pattern, self._cuts = pattern, cut
        self.swallowed.clear()

    def cut(self) -> None:
        """End all connections at once; new ones are let through."""
        for writer in list(self._writers):
            writer.transport.abort()

    def freeze(self) -> None:
        """Let nothing through in either direction, of new connections neither, until `thaw`; what comes is kept."""
        self._flows.clear()

    def thaw(self) -> None:
        """Let through what was kept, and what comes."""
        self._flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        self._writers.add(writer)
        ends = {writer}
        with suppress(OSError):
            if self._host.startswith("/"):
                there, forth = await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._there}")
            else:
                there, forth = await asyncio.open_connection(self._host, self._there)
            ends.add(forth)
            self._writers.add(forth)
            mute = asyncio.Event()
            back = asyncio.ensure_future(self._answers(there, writer, mute))
            try:
                await self._questions(reader, forth, mute)
            finally:
                forth.close()
                await back
        for end in ends:
            end.close()
        self._writers -= ends

    async def _pass(self, sent: bytes, to: asyncio.StreamWriter) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
        await self._flows.wait()
        to.write(sent)
        await to.drain()

    async def _questions(self, reader: asyncio.StreamReader, forth: asyncio.StreamWriter, mute: asyncio.Event) -> None:
        with suppress(OSError):
            while sent := await reader.read(CHUNK):
                if self._pattern is not None and self._pattern in sent:
                    self._pattern = None
                    mute.set()
                await self._pass(sent, forth)

    async def _answers(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter, mute: asyncio.Event) -> None:
        with suppress(OSError):
            while answer := await there.read(CHUNK):
                if not mute.is_set():
                    await self._pass(answer, writer)
                    continue
                self.swallowed.set()
                if self._cuts:
                    break
        writer.close()
