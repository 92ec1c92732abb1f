"""Benchmarks of `durable` beside its limits and its peers: `python -m benchmarks`, or `make bench`.

Law: a figure is measured beside what it is compared with, in the same run, and is never typed by hand; results are
asserted, times never.
"""
