"""Stores in lockstep: each is told and asked the same, and what they answer is compared."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from durable.core.records import Record
from durable.errors import DurableError
from durable.store import Store

#: What a store answered: a value, or the type of an error.
Outcome = tuple[str, Any]


class DifferenceError(AssertionError):
    """Two stores answered the same question differently."""


def pattern(records: Sequence[Record]) -> tuple[list[Record], list[int]]:
    """Records without the numbers of their batches, which are each store's own, and which of them share one, in which order."""
    numbers = sorted({record.batch for record in records})
    return [replace(record, batch=0) for record in records], [numbers.index(record.batch) for record in records]


class Lockstep:
    """Several stores; the first one is right until shown otherwise.

    Arguments:
        stores: by their names, open.
        reopen: closes a store and returns an open one on the same ground.
    """

    def __init__(self, stores: dict[str, Store], reopen: dict[str, Callable[[Store], Awaitable[Store]]]) -> None:
        self.stores = stores
        self._reopen = reopen
        self._ids = {name: store.store_id for name, store in stores.items()}
        self._batches: dict[tuple[str, str], int] = {}

    async def ask(
        self,
        what: str,
        question: Callable[[Store], Awaitable[Any]],
        shape: Callable[[Any], Any] = lambda answer: answer,
    ) -> Outcome:
        """Ask all; the outcome, which is the same for all. Raises `DifferenceError`."""

        async def one(name: str, store: Store) -> Outcome:
            try:
                return "answer", shape(await question(store))
            except (DurableError, ValueError) as error:
                return "error", type(error).__name__

        outcomes = await asyncio.gather(*(one(name, store) for name, store in self.stores.items()))
        for name, outcome in zip(self.stores, outcomes, strict=True):
            if outcome != outcomes[0]:
                first = next(iter(self.stores))
                raise DifferenceError(f"{what}:\n  {first}: {outcomes[0]}\n  {name}: {outcome}")
        return outcomes[0]

    async def commit(self, what: str, units: Sequence[Sequence[Record]]) -> Outcome:
        """Commit copies of these units to all."""
        copies = {id(store): [[replace(record) for record in unit] for unit in units] for store in self.stores.values()}
        outcome = await self.ask(what, lambda store: store.commit(copies[id(store)]))
        if outcome[0] == "answer":
            for name, store in self.stores.items():
                for unit in copies[id(store)]:
                    self._check_batches(what, name, unit)
        return outcome

    def _check_batches(self, what: str, name: str, unit: Sequence[Record]) -> None:
        new = [record for record in unit if record.batch]
        if len({record.batch for record in new}) > 1:
            raise DifferenceError(
                f"{what}: {name} gave the records of one unit the batches {[each.batch for each in new]}"
            )
        for record in new:
            before = self._batches.get((name, record.run_id), 0)
            if record.batch < before:
                raise DifferenceError(f"{what}: {name} gave {record} a batch below {before}")
            self._batches[name, record.run_id] = record.batch

    async def reopen(self) -> None:
        """Close all, and open them again."""
        for name, store in self.stores.items():
            self.stores[name] = await self._reopen[name](store)
        assert self._ids == {name: store.store_id for name, store in self.stores.items()}

    async def close(self) -> None:
        for store in self.stores.values():
            await store.close()
