"""What the scripts that prepare the benchmarks share."""
