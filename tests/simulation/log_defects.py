"""Defects of the log that are planted in more than one simulation: each breaks one promise of the writer or of recovery."""

from __future__ import annotations

from typing import Any

import pytest

from durable.log import log as log_module
from durable.log import writer as writer_module
from durable.log.files import LogFile, write_all
from durable.log.recovery import mend


def acknowledge_before_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(writer_module, "write_batch", write_all)


def retry_the_sync(patch: pytest.MonkeyPatch) -> None:
    def write_batch(file: LogFile, chunk: bytes, offset: int) -> None:
        write_all(file, chunk, offset)
        try:
            file.fdatasync()
        except OSError:
            file.fdatasync()

    patch.setattr(writer_module, "write_batch", write_batch)


def ignore_a_short_write(patch: pytest.MonkeyPatch) -> None:
    def write_batch(file: LogFile, chunk: bytes, offset: int) -> None:
        file.pwrite(chunk, offset)
        file.fdatasync()

    patch.setattr(writer_module, "write_batch", write_batch)


def keep_the_torn_tail(patch: pytest.MonkeyPatch) -> None:
    def keep(files: Any, found: Any) -> Any:
        torn, found.torn = found.torn, None
        cut = mend(files, found)
        if torn is not None and found.segments and torn.segment == found.segments[-1].name:
            found.segments[-1].end = torn.offset + len(torn.remains)
        return cut

    patch.setattr(log_module, "mend", keep)
