"""The roll: which shards belong together, called when they are opened.

Law: a set is opened with all of its shards and no others, and each is known by its id, in whatever order they are named. Where one does not
answer, it is the one that is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Protocol

from durable.errors import DurableError, RepositoryUnavailableError, StoreMismatchError
from durable.store.postgres.shards.membership import Membership


class Member(Protocol):
    """A store that can be one of several, as it is opened."""

    absence: str

    @property
    def store_id(self) -> str:
        """Its identity, once it is open."""
        ...

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        ...

    @property
    def membership(self) -> Membership:
        """What it does as one of several."""
        ...

    async def connect(self) -> None:
        """Open it, whether it is alone or one of several."""
        ...

    async def close(self) -> None:
        """Close it."""
        ...


async def call_roll(shards: Sequence[Member]) -> dict[str, int]:
    """Open the shards of a set; one of them may be away, and then says why in `absence`. Returns their places by their ids.

    Raises `StoreMismatchError` where they are not the shards that belong together, `RepositoryUnavailableError` where it cannot be known
    which is which, and what opening a store raises.
    """
    outcomes = await asyncio.gather(*(shard.connect() for shard in shards), return_exceptions=True)
    try:
        failures = [outcome for outcome in outcomes if outcome is not None]
        for failure in failures:
            if not isinstance(failure, RepositoryUnavailableError):
                raise failure
        present = {place: shard for place, shard in enumerate(shards) if outcomes[place] is None}
        roll = {shard.store_id: place for place, shard in present.items()}
        if len(roll) < len(present):
            raise StoreMismatchError(
                "two of the urls lead to the same store: each shard needs a database, or a schema, of its own"
            )
        if failures:
            roll |= await _absent(shards, present, roll, failures)
        for shard in present.values():
            await shard.membership.join(roll)
    except BaseException:
        for shard in shards:
            with suppress(DurableError):
                await shard.close()
        raise
    return roll


async def _absent(
    shards: Sequence[Member], present: dict[int, Member], roll: dict[str, int], failures: Sequence[BaseException]
) -> dict[str, int]:
    """The id and the place of the one shard that is away."""
    members = await next(iter(present.values())).membership.members() if present else frozenset[str]()
    absent = members - roll.keys()
    if len(members) != len(shards) and members:
        raise StoreMismatchError(
            f"the set has {len(members)} shards, but the urls of {len(shards)} were given: name all of them"
        )
    if len(failures) > 1 or len(absent) != 1:
        why = (
            "at most one may be away when they are opened"
            if members
            else "all have to be there when they are first opened"
        )
        raise RepositoryUnavailableError(
            f"{len(failures)} of {len(shards)} shards cannot be reached, but {why}: {failures[0]}"
        )
    place = next(place for place in range(len(shards)) if place not in present)
    shards[place].absence = str(failures[0])
    return dict.fromkeys(absent, place)


async def come_late(shard: Member, store_id: str, members: Iterable[str]) -> None:
    """Open the shard that was away. Raises `StoreMismatchError` where it is another one than was missing, and as `connect`."""
    await shard.connect()
    try:
        if shard.store_id != store_id:
            raise StoreMismatchError(
                f"the store in {shard.place} is {shard.store_id}, but shard {store_id} was missing"
            )
        await shard.membership.join(members)
    except BaseException as error:
        await shard.close()
        shard.absence = str(error)
        raise
