"""Benchmarks: commands to run from a checkout, on any number of ranks."""
