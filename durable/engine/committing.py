"""Committing: how the pipeline hands its units to a store.

Law: a store of one process takes a batch whole, or fails. One that is shared answers for each unit by itself, and is handed the same
parcel again where it is not known what became of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from durable.clock import Entropy
from durable.engine.entry import Unit
from durable.engine.pipeline import Commit
from durable.errors import DurableError
from durable.store.base import Store
from durable.store.shared import Parcel, SharedStore, make_token


def commit_to(store: Store) -> Commit:
    """How to commit to a store that one process has for itself."""

    async def commit(units: Sequence[Unit]) -> Sequence[DurableError | None]:
        await store.commit([[record for _, record in unit.items] for unit in units])
        return [None] * len(units)

    return commit


def write_to(store: SharedStore, entropy: Entropy) -> Commit:
    """How to commit to a store that several processes share."""

    async def commit(units: Sequence[Unit]) -> Sequence[DurableError | None]:
        outcomes: list[DurableError | None] = []
        # A unit with a transaction of its own may stand between others that build on one another.
        for _, group in groupby(units, key=lambda unit: id(unit.connection) if unit.connection is not None else None):
            parcels = []
            for unit in group:
                if unit.parcel is None:
                    unit.parcel = _parcel(unit, make_token(entropy))
                parcels.append(unit.parcel)
            outcomes += await store.write(parcels)
        return outcomes

    return commit


def _parcel(unit: Unit, token: int) -> Parcel:
    return Parcel(
        [record for _, record in unit.items],
        token,
        {entry.run.run_id: entry.epoch for entry in unit.entries},
        unit.messages,
        [answer for _, answer in unit.answers],
        unit.connection,
    )
