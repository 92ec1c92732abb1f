"""Where one measurement keeps its runs: a directory of its own, and on PostgreSQL also a database of its own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Place:
    """Arguments:
    directory: for the store, or on PostgreSQL for what a measurement notes beside it.
    url: of the database; empty for a store in the directory.
    settings: of `durable` on PostgreSQL, as far as they are not left as they come.
    """

    directory: Path
    url: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def named(self, name: str) -> Place:
        """Another store in the same place: another directory, or another schema of the same database."""
        if self.url:
            return self.having(schema=name)
        return replace(self, directory=self.directory / name)

    def having(self, **settings: Any) -> Place:
        return replace(self, settings=self.settings | settings)
