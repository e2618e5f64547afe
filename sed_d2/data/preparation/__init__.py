"""Preparation of the benchmarks: from their original annotations to label files."""
