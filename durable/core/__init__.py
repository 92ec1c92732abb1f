"""The pure machine: what a run is, what may happen to it, and what follows.

Law: no I/O, no clock, no randomness, no asyncio. Time and entropy come in as arguments, records go out as values.
"""
