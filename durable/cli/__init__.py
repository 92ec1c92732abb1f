"""The command line: `durable runs`, `show`, `events`, `cancel`, `retry`, `stop`, `resume`, `log`, `demo`.

Law: looking writes nothing; nothing here runs a body or imports a user's code.
"""
