"""What the demo's supervisor and its worker have agreed on.

Law: the supervisor takes nothing else from the worker's side, so that the command line defines no task: it could be one that a store needs.
"""

from __future__ import annotations

#: Names the file outside the engine that steps write to.
EFFECTS_VARIABLE = "DURABLE_DEMO_EFFECTS"
#: How many batches are measured at once.
AT_ONCE = 2
