"""How executors share a server: runs that clients have left there, and the time until as many executors as are asked for have ended them.

Law: what is counted is in the store before the first executor goes on, and every executor has opened it by then.
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from time import perf_counter, sleep

import psycopg

from benchmarks.effects import STEPS
from benchmarks.measuring import Background, child
from benchmarks.place import Place
from benchmarks.server import Server, cpu_seconds_of
from benchmarks.workloads import Figures

POLL_SECONDS = 0.02
SECONDS_MAX = 600.0
OPEN = "SELECT EXISTS (SELECT FROM durable_store.runs WHERE open)"
ENDED = "SELECT count(*) FROM durable_store.runs WHERE status = 'completed'"


def measure(places: dict[Server, Place], executors: int, count: int) -> Figures:
    """Arguments:
    places: a database on each server.
    executors: how many each of them has.
    count: runs of one step in all; there are a fifth as many of ten.
    """
    took, server, bodies = work(places, executors, "one", count)
    steps_took, *_ = work(places, executors, "ten", count // 5)
    return {
        "runs/s": count / took,
        "steps/s": count // 5 * STEPS / steps_took,
        "server, ms a run": server / count * 1e3,
        "executors, ms a run": bodies / count * 1e3,
        "server, processors": server / took,
        "executors, processors": bodies / took,
    }


def work(places: dict[Server, Place], executors: int, body: str, count: int) -> tuple[float, float, float]:
    """Leave runs of this body in the stores, execute them; return the seconds, and what servers and executors used of the processors."""
    with ExitStack() as stack:
        starting = [Background("durable", "executor", place) for place in places.values() for _ in range(executors)]
        workers = [stack.enter_context(worker) for worker in starting]
        for worker in workers:
            worker.line("OPEN")
            os.kill(worker.pid, signal.SIGSTOP)
        looks = [stack.enter_context(psycopg.connect(place.url, autocommit=True)) for place in places.values()]
        before = sum(look.execute(ENDED).fetchone()[0] for look in looks)  # type: ignore[index]
        for place in places.values():
            child("durable", f"fill-{body}", place, count // len(places))
        cpu = [server.cpu_seconds() for server in places], [cpu_seconds_of(worker.pid) for worker in workers]
        began = perf_counter()
        for worker in workers:
            os.kill(worker.pid, signal.SIGCONT)
        while any(look.execute(OPEN).fetchone()[0] for look in looks):  # type: ignore[index]
            assert perf_counter() - began < SECONDS_MAX, "runs do not end"
            sleep(POLL_SECONDS)
        took = perf_counter() - began
        used = [server.cpu_seconds() for server in places], [cpu_seconds_of(worker.pid) for worker in workers]
        ended = sum(look.execute(ENDED).fetchone()[0] for look in looks) - before  # type: ignore[index]
        assert ended == count // len(places) * len(places), ended
        return took, sum(used[0]) - sum(cpu[0]), sum(used[1]) - sum(cpu[1])
