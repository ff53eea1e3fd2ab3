"""Doors to other projects, one file per neighbour."""
