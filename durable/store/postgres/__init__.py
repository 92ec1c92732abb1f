"""The store in PostgreSQL. Importing this needs the extra `durable[postgres]`; nothing imports it but who asks for it."""

from durable.store.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
