"""Benchmarks: what each figure of docs/benchmarks.md is measured with. `make bench` runs them all, one after the other."""
