"""The decisions of a call, as values: no I/O, no clock, no HTTP client."""
