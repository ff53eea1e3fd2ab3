"""Comparisons of the SDK with the libraries that it replaces: `python -m benchmarks`."""
