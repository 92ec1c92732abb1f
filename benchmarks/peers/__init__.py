"""Peers of `durable` by the same stop-watch: one module each, all with the shape of `benchmarks.workloads.Peer`."""
