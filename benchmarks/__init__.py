"""What the SDK costs beside what its users would take instead: `python -m benchmarks`."""
