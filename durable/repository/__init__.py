"""Tables behind the log: the protocol, the projection of runs to rows, and SQLite."""

from durable.repository.base import RecordRefusedError, Repository, RepositoryState
from durable.repository.projection import RecordRow, RunRow
from durable.repository.sqlite import SqliteRepository

__all__ = ["RecordRefusedError", "RecordRow", "Repository", "RepositoryState", "RunRow", "SqliteRepository"]
