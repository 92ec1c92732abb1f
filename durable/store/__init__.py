"""Stores: where runs are kept. `base` is the engine's one seam to durability; each other module is one way to provide it.

Law: the store in PostgreSQL, and psycopg with it, is imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from durable.store.base import RunFilter, Store, StoreHealth, Unit
from durable.store.local import LocalStore
from durable.store.memory import MemoryStore

if TYPE_CHECKING:
    from durable.store.postgres import PostgresStore

__all__ = ["LocalStore", "MemoryStore", "PostgresStore", "RunFilter", "Store", "StoreHealth", "Unit"]


def __getattr__(name: str) -> Any:
    if name == "PostgresStore":
        from durable.store.postgres import PostgresStore

        return PostgresStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
