"""`RunLogFilter`: the run in every log record that a body writes.

Law: it adds ids and names only, never an input, a result or a user.
"""

from __future__ import annotations

import logging

from durable.tasks.host import current_scope


class RunLogFilter(logging.Filter):
    """Put it on a handler: each record that passes gets `run_id`, `task_name` and `attempt` of the run in whose body or step it was logged.

    They are None for what is logged elsewhere; a `run_id` that the record brings along stays.

    Arguments:
        once: keep back what a body logs while it repeats what it did before a crash, a wait or a retry.
    """

    def __init__(self, *, once: bool = False) -> None:
        super().__init__()
        self._once = once

    def filter(self, record: logging.LogRecord) -> bool:
        """Add to the record; False where it is a repetition that is not wanted."""
        scope = current_scope.get()
        if scope is None:
            for name in ("run_id", "task_name", "attempt"):
                if not hasattr(record, name):
                    setattr(record, name, None)
            return True
        record.run_id, record.task_name, record.attempt = scope.run_id, scope.task_name, scope.attempt
        return not (self._once and scope.replaying)
