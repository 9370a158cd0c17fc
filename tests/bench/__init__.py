"""Benchmarks: what each figure of docs/benchmarks.md is measured with; `make bench` runs them in turn."""
