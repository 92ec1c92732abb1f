"""The parts of an engine that is open, and how they are joined.

Law: parts are made here and nowhere else, each with what it needs; only what goes round (a part that needs one made later) is set after.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from durable.clock import Clock, Entropy
from durable.codec import Codec, Pickled, TaggedJson
from durable.config import Config, Limits
from durable.core.records import Call
from durable.engine.admission import SharedAdmission
from durable.engine.closing import Closing
from durable.engine.committing import commit_to, write_to
from durable.engine.control import Control
from durable.engine.divergence import known_call
from durable.engine.entrance import Entrance
from durable.engine.entry import Entry
from durable.engine.invoke import Invoker
from durable.engine.keeping import Keeper
from durable.engine.kinship import Kinship
from durable.engine.lifecycle import Lifecycle
from durable.engine.observing import Observing
from durable.engine.pipeline import Pipeline
from durable.engine.recoveries import Recoveries
from durable.engine.residence import Residence
from durable.engine.revival import Revival
from durable.engine.scheduler import Scheduler
from durable.engine.services import Services
from durable.engine.sharing import Sharing
from durable.engine.starting import Starter
from durable.engine.table import Table
from durable.engine.turns import Turns
from durable.errors import StorageError
from durable.events.hub import Hub
from durable.guard.admission import LocalAdmission
from durable.guard.gate import Gate
from durable.guard.places import LocalPlaces
from durable.store.base import Store
from durable.store.shared import is_shared
from durable.tasks.host import Host


@dataclass(slots=True, kw_only=True)
class Given:
    """What an engine is given, once, before it is opened.

    Arguments:
        execute: whether it executes runs, or only starts and watches them.
        on_step: see `Services.on_step`.
    """

    store: Store
    config: Config
    limits: Limits
    clock: Clock
    entropy: Entropy
    codec: TaggedJson
    execute: bool
    observing: Observing
    on_step: Callable[[str, Call], None] | None = None
    hub: Hub = field(init=False)

    def __post_init__(self) -> None:
        self.hub = Hub(self.config.stream, shared=is_shared(self.store))

    @property
    def slots(self) -> int:
        """How many runs this process executes at once."""
        if not self.execute:
            return 0
        own, everywhere = self.config.engine.concurrency, self.limits.max_running
        return everywhere if own is None else min(own, everywhere)

    def codec_of(self, name: str | None) -> Codec:
        """The codec that a task or step names."""
        return self.codec if name in (None, "json") else Pickled(self.config.payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """What the parts call of the engine.

    Arguments:
        host: answers bodies, contexts and handles.
        check_open: raises where the application takes no work.
        on_failure: called once, when the store takes nothing more.
        read: called with a run that was read from the store.
    """

    host: Host
    check_open: Callable[[], None]
    on_failure: Callable[[StorageError], None]
    read: Callable[[Entry], None]


class Parts:
    """The parts of an engine that is open."""

    def __init__(self, given: Given, calls: Calls) -> None:
        settings, store = given.config.engine, given.store
        sharing = self.sharing = _share(given)
        lifecycle = self.lifecycle = Lifecycle()
        self.table = lifecycle.table = Table(store, calls.read) if sharing is None else sharing.table
        table = self.table
        kinship = self.kinship = lifecycle.kinship = Kinship(table, store, given.codec, settings)
        closing = self.closing = lifecycle.closing = Closing(table, store)
        kinship.let_go = closing.let_go = lifecycle.let_go
        revival = Revival(kinship, closing)
        kinship.go_on, kinship.revive_awaited = lifecycle.go_on, revival.revive_awaited
        residence = self.residence = lifecycle.residence = (
            Residence(table, store, given.clock, settings) if sharing is None else sharing.residence(settings)
        )
        pipeline = self.pipeline = _pipeline(given, calls, self)
        kinship.pipeline = closing.pipeline = residence.pipeline = pipeline
        self._given = given
        places = self._places = LocalPlaces(given.limits) if sharing is None else sharing.places
        scheduler = self.scheduler = Scheduler(
            given.clock, given.slots, places, lifecycle.begin, residence.crowded,
            Recoveries(settings.max_concurrent_recoveries),
        )  # fmt: skip
        self.gate = _gate(given, scheduler)
        self.gate.on_refused = given.observing.refused
        lifecycle.scheduler = kinship.scheduler = residence.scheduler = scheduler
        self.services = lifecycle.services = Services(
            host=calls.host, families=kinship, residence=residence, store=store, pipeline=pipeline, hub=given.hub,
            turns=Turns(asyncio.get_running_loop()), invoker=Invoker(settings.thread_workers, settings.process_workers),
            codec=given.codec, codecs=given.codec_of, clock=given.clock, entropy=given.entropy, settings=settings,
            has_step=known_call, closing=asyncio.Event(), on_step=given.observing.stepping(given.on_step),
            caught_up=scheduler.caught_up, observing=given.observing, around=given.observing.around, replayed=given.observing.replayed,
        )  # fmt: skip
        self.control = Control(table, pipeline, lifecycle, revival, sharing, calls.check_open)
        self.keeper = Keeper(
            store, given.config.retention, lambda: given.limits, given.clock, command=self.control.command,
            entropy=None if sharing is None else given.entropy, alone=revival.lock if sharing is None else None,
        )  # fmt: skip
        lifecycle.ended.append(self.keeper.ended)
        self.starter = kinship.starter = Starter(
            table, store=store, pipeline=pipeline, scheduler=scheduler,
            entrance=Entrance(self.gate, scheduler, store, calls.host, given.clock),
            codec=given.codec, clock=given.clock, entropy=given.entropy, timeout=settings.default_timeout_seconds,
        )  # fmt: skip

    def limits_changed(self) -> None:
        """The limits that it was given are others now."""
        limits = self._given.limits
        self.gate.change(limits)
        self._places.change(limits)
        self.scheduler.change(self._given.slots)

    def task_defined(self, name: str) -> None:
        """A task was defined: its runs can go on."""
        self.lifecycle.task_defined(name)
        if self.sharing is not None:
            self.sharing.task_defined()


def _gate(given: Given, scheduler: Scheduler) -> Gate:
    if is_shared(given.store):
        return Gate(given.limits, SharedAdmission(given.store, given.clock.monotonic))
    admission = LocalAdmission(given.clock, lambda: scheduler.starts_waiting, scheduler.pace.seconds)
    return Gate(given.limits, admission, admission.amend)


def _share(given: Given) -> Sharing | None:
    if is_shared(given.store):
        return Sharing(
            given.store, given.hub, given.clock, given.entropy, given.limits,
            execute=given.execute, scanned=given.observing.scanned,
        )  # fmt: skip
    return None


def _pipeline(given: Given, calls: Calls, parts: Parts) -> Pipeline:
    sharing, observing, entailed = parts.sharing, given.observing, parts.kinship.entailed
    records_max = given.config.engine.history_records_max
    if sharing is None:
        return Pipeline(
            observing.measured(commit_to(given.store)), given.clock, records_max,
            publish=observing.told(parts.lifecycle.publish), entailed=entailed, on_failure=calls.on_failure,
            on_lost=observing.dropped, decide=observing.decide,
        )  # fmt: skip
    return Pipeline(
        observing.measured(write_to(sharing.store, given.entropy)), given.clock, records_max,
        publish=observing.told(sharing.publish), entailed=entailed, on_failure=calls.on_failure,
        on_refused=sharing.refused, on_lost=observing.dropped, decide=observing.decide,
        check_lease=sharing.check_lease, patience_seconds=sharing.store.lease_seconds,
        lanes=len(sharing.store.shards), lane_of=sharing.store.shard_of if len(sharing.store.shards) > 1 else None,
    )  # fmt: skip
