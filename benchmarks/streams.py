"""`python -m benchmarks.streams`: many emitters, each with a reader, and a kill in the middle: none misses an event or sees one twice.

Prints how many events were seen and how fast; raises `AssertionError` where a reader missed one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.acceptance.streams import many_emitters


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streams", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000, help="events of all emitters (%(default)s)")
    parser.add_argument("--emitters", type=int, default=64, help="emitters (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3_600.0, help="longest time for one life (%(default)g)")
    given = parser.parse_args()
    events = -(-given.events // given.emitters)
    with tempfile.TemporaryDirectory() as folder:
        told = many_emitters(Path(folder), given.emitters, events, given.seconds)
    print(
        f"{given.emitters} emitters, {told.events:,} events, killed when {told.at_kill:,} had been seen: "
        f"0 gaps, 0 doubles, 0 missing; {told.seconds:,.1f} s, {told.events / told.seconds:,.0f} events/s"
    )


if __name__ == "__main__":
    main()
