"""Placing: which shard has a family.

Law: it follows from the family's digits and the ids of the shards alone, whatever order these are named in. With one shard more, only
what the new one gets would change its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from durable.core.ids import FAMILY_DIGITS

FAMILIES = 16**FAMILY_DIGITS


class Placing:
    """See the module.

    Arguments:
        store_ids: of all shards.
    """

    def __init__(self, store_ids: Sequence[str]) -> None:
        self._store_ids = store_ids
        self._places: dict[str, int] = {}

    def place(self, family: str) -> int:
        """The shard of the family: that which weighs most for it, as a place in `store_ids`."""
        found = self._places.get(family)
        if found is None:
            weights = [
                sha256(f"{store_id} {family}".encode("utf-8", "surrogatepass")).digest() for store_id in self._store_ids
            ]
            found = max(range(len(weights)), key=weights.__getitem__)
            if len(self._places) < FAMILIES:
                self._places[family] = found
        return found
