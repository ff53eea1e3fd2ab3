"""Adapters for other projects, one module each."""
