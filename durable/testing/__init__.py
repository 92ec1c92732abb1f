"""For tests: crashes in the place of luck, and the worlds in which they happen.

`plugin` (needs pytest-asyncio, and is there for every project that has durable installed) brings the fixtures `durable_app` and
`durable_clock`; `conformance` (needs pytest) is the suite for stores, `crash` crashes a run at each commit, `simulate` runs the real
engine on a virtual loop, clock and disk.
"""

from durable.testing.crash import CrashingStore, CrashReport, crash_everywhere

__all__ = ["CrashReport", "CrashingStore", "crash_everywhere"]
