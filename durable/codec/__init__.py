"""Codecs: how values become bytes in the store, and bytes become values again.

Law: exact or refused. `TaggedJson` is the default; `Pickled` is opt-in, signed, and nothing falls back to it.
"""

from durable.codec.base import Codec
from durable.codec.pickled import Pickled
from durable.codec.scalars import Encoded
from durable.codec.tagged import TaggedJson

__all__ = ["Codec", "Encoded", "Pickled", "TaggedJson"]
