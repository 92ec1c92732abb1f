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
from durable.engine.closing import Closing
from durable.engine.committing import commit_to, write_to
from durable.engine.control import Control
from durable.engine.divergence import known_call
from durable.engine.entry import Entry
from durable.engine.invoke import Invoker
from durable.engine.kinship import Kinship
from durable.engine.lifecycle import Lifecycle
from durable.engine.observing import Observing
from durable.engine.pipeline import Pipeline
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
    hub: Hub = field(default_factory=Hub)
    on_step: Callable[[str, Call], None] | None = None

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
        scheduler = self.scheduler = Scheduler(
            given.clock, given.limits.max_running if given.execute else 0, lifecycle.begin, residence.crowded
        )
        lifecycle.scheduler = kinship.scheduler = residence.scheduler = scheduler
        self.services = lifecycle.services = Services(
            host=calls.host, families=kinship, residence=residence, store=store, pipeline=pipeline, hub=given.hub,
            turns=Turns(asyncio.get_running_loop()), invoker=Invoker(settings.thread_workers, settings.process_workers),
            codec=given.codec, codecs=given.codec_of, clock=given.clock, entropy=given.entropy, settings=settings,
            has_step=known_call, closing=asyncio.Event(), on_step=given.observing.stepping(given.on_step),
            observing=given.observing, around=given.observing.around, replayed=given.observing.replayed,
        )  # fmt: skip
        self.control = Control(table, pipeline, lifecycle, revival, sharing, calls.check_open)
        self.starter = kinship.starter = Starter(
            table, store=store, pipeline=pipeline, scheduler=scheduler,
            codec=given.codec, clock=given.clock, entropy=given.entropy,
        )  # fmt: skip

    def task_defined(self, name: str) -> None:
        """A task was defined: its runs can go on."""
        self.lifecycle.task_defined(name)
        if self.sharing is not None:
            self.sharing.task_defined()


def _share(given: Given) -> Sharing | None:
    if is_shared(given.store):
        observed = given.observing.scanned
        return Sharing(given.store, given.hub, given.clock, given.entropy, execute=given.execute, scanned=observed)
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
