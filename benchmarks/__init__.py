"""Benchmarks: this library beside what one could use instead, on the same work, in one process and one run."""
