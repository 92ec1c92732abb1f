"""The repositories that need no server, each against the one suite."""

from __future__ import annotations

from pathlib import Path

from durable.repository import Repository, SqliteRepository
from durable.testing.repository import MemoryRepository
from durable.testing.repository_conformance import RepositoryConformance


class TestSqliteRepository(RepositoryConformance):
    async def make_repository(self, tmp_path: Path) -> Repository:
        repository = SqliteRepository(tmp_path / "repository.db")
        await repository.initialize()
        await repository.adopt("s" * 32)
        return repository


class TestMemoryRepository(RepositoryConformance):
    async def make_repository(self, tmp_path: Path) -> Repository:
        repository = MemoryRepository()
        await repository.adopt("s" * 32)
        return repository
