"""The memory of this process, sampled while it works."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from types import TracebackType

MB = 1e6
SAMPLE_SECONDS = 0.01
_STATM = Path("/proc/self/statm")


def resident_mb() -> float:
    """The resident set of this process, in MB."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / MB
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(os.getpid())])) * 1024 / MB


class Peak:
    """In this block a thread samples the resident set; afterwards `above_mb` is how far it rose at most."""

    def __init__(self) -> None:
        self.above_mb = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Peak:
        self._before = resident_mb()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.above_mb = max(self.above_mb, resident_mb() - self._before)
            if self._done.wait(SAMPLE_SECONDS):
                return
