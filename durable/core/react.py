"""`REACTIONS`: what follows from a record, once it is durable.

Law: nothing acts on a record except by an effect listed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, unique
from types import MappingProxyType

from durable.core.records import Kind


@unique
class Effect(Enum):
    """What the engine has to do."""

    SCHEDULE = "find the run a slot, at its time"
    EXECUTE = "run the body"
    DELIVER = "hand the result to the call that waits for it"
    RECEIVE = "hand a signal to a call that waits for it"
    INTERRUPT = "stop the body"
    SETTLE = "tell those who wait for the end, and cancel the children that belong to the run"
    ROUSE = "go on with a run that is asleep"
    PAUSE = "let others have the slot of a body that waits for long"
    REST = "let go of the body: the run goes on from its record"


REACTIONS: Mapping[Kind, tuple[Effect, ...]] = MappingProxyType(
    {
        Kind.CREATED: (Effect.SCHEDULE,),
        Kind.STARTED: (Effect.EXECUTE,),
        Kind.RETRYING: (Effect.SCHEDULE,),
        Kind.RECOVERED: (Effect.EXECUTE,),
        Kind.WAITING: (Effect.PAUSE,),
        Kind.SUSPENDED: (Effect.INTERRUPT,),
        Kind.RESUMED: (Effect.SCHEDULE,),
        Kind.COMPLETED: (Effect.SETTLE,),
        Kind.FAILED: (Effect.SETTLE,),
        Kind.TIMED_OUT: (Effect.SETTLE,),
        Kind.CANCELLED: (Effect.INTERRUPT, Effect.SETTLE),
        Kind.CHILDREN_STARTED: (),
        Kind.CHILDREN_FAILED: (Effect.SETTLE,),
        Kind.EVENT: (Effect.DELIVER,),
        Kind.STEP_COMPLETED: (Effect.DELIVER,),
        Kind.STEP_FAILED: (Effect.DELIVER,),
        Kind.STEP_CANCELLED: (),
        Kind.STEP_RETRYING: (),
        Kind.TIMER_SET: (Effect.PAUSE,),
        Kind.CHILD_STARTED: (),
        Kind.SIGNAL: (Effect.RECEIVE,),
        Kind.CHILD_ENDED: (Effect.ROUSE,),
        Kind.RELEASED: (),
        Kind.ASLEEP: (Effect.REST,),
        Kind.DISCARDED: (),
        Kind.AWAKE: (Effect.EXECUTE,),
        Kind.COORDINATING: (Effect.EXECUTE,),
        Kind.CLOSED: (),
        Kind.WATCHED: (),
    }
)
