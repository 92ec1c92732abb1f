"""The pipeline alone: which records become durable together."""

from __future__ import annotations

import asyncio

from durable.clock import SYSTEM_CLOCK
from durable.core.commands import Cancel, Create, Send
from durable.core.run import Run
from durable.engine.committing import commit_to
from durable.engine.entry import Entry
from durable.engine.lanes import UNIT_BYTES_MAX
from durable.engine.pipeline import Pipeline
from durable.store.memory import MemoryStore


async def a_pipeline() -> Pipeline:
    """A pipeline on a store of its own, which nobody acts on."""
    store = MemoryStore()
    await store.open()
    pipeline = Pipeline(
        commit_to(store), SYSTEM_CLOCK, 1000,
        publish=lambda unit: None, entailed=lambda entry, record: (), on_failure=lambda error: None,
    )  # fmt: skip
    pipeline.open()
    return pipeline


async def test_a_command_that_changes_nothing_joins_no_commit() -> None:
    """Else the run would wait for ever for a commit that holds nothing of it."""
    pipeline = await a_pipeline()
    ended, other = Entry(Run("a" * 32)), Entry(Run("b" * 32))
    pipeline.stage(ended, Create("t", b"{}"))
    pipeline.stage(ended, Cancel())
    await pipeline.durable(ended)
    assert pipeline.stage(ended, Cancel()) == []
    pipeline.stage(other, Create("t", b"{}"), (ended, Cancel()))
    await pipeline.durable(other)
    assert pipeline.is_durable(ended)
    await pipeline.close()


async def test_a_run_joins_the_second_of_two_large_commits() -> None:
    """The records of each run stay in their order."""
    pipeline = await a_pipeline()
    large = b"x" * (UNIT_BYTES_MAX - 1000)
    child, parent = Entry(Run("a" * 32)), Entry(Run("b" * 32))
    pipeline.stage(child, Create("t", b"{}"))
    pipeline.stage(parent, Create("t", large))
    pipeline.stage(parent, Send("s", large, 10))
    pipeline.stage(parent, Send("s", b"1", 10), (child, Cancel()))
    assert child.unit is parent.unit
    await asyncio.gather(pipeline.durable(child), pipeline.durable(parent))
    await pipeline.close()
    assert pipeline.failure is None
