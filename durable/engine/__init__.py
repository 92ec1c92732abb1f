"""The imperative shell around the pure machine: commits records, runs bodies, tells those who wait.

Law: nothing is done about a record before it is durable; what is done about it is in `core.react`.
"""
