"""The command line: `durable runs`, `show`, `events`, `why`, `cancel`, `retry`, `stop`, `resume`, `worker`, `migrate`, `log`, `demo`.

Law: looking changes no run. Only `worker` imports a user's code, and only that, and the demo, run a body.
"""
