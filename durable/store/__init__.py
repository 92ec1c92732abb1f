"""Stores: where runs are kept. `base` is the engine's one seam to durability; each other module is one way to provide it."""

from durable.store.base import RunFilter, Store, StoreHealth, Unit
from durable.store.local import LocalStore
from durable.store.memory import MemoryStore

__all__ = ["LocalStore", "MemoryStore", "RunFilter", "Store", "StoreHealth", "Unit"]
