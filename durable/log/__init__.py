"""The write-ahead log: bytes in, a number back once they are durable. It knows no run.

Law: what `append` acknowledged is read back after any crash, in order; what cannot be read back is never passed over
in silence.
"""

from durable.log.files import DiskFiles, Files, LogFile
from durable.log.log import Log
from durable.log.recovery import Cut
from durable.log.worker import ThreadWorker, Worker, WorkerFactory
from durable.log.writer import Health

__all__ = [
    "Cut",
    "DiskFiles",
    "Files",
    "Health",
    "Log",
    "LogFile",
    "ThreadWorker",
    "Worker",
    "WorkerFactory",
]
