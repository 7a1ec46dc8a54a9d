"""Benchmarks: what things cost, each a module to run."""
