"""An executor on several shards, in a process of its own: `executors_worker`, with `urls` in place of `url`."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from durable.config import PostgresSettings
from durable.store import PostgresStore
from tests.acceptance import executors_worker


def store_of_all(urls: Sequence[str], schema: str, lease: float = 1.5, poll: float = 0.5, **_: Any) -> PostgresStore:
    """The store whose shards these are."""
    times = PostgresSettings(schema=schema, lease_seconds=lease, poll_seconds=poll, connect_seconds=2.0)
    return PostgresStore(settings=times, urls=urls)


def main(text: str) -> None:
    """See the module."""
    options = json.loads(text)
    executors_worker.SIDE = options.pop("side")
    store = store_of_all(options.pop("urls"), **options)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(executors_worker.work(store, **options))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1])
