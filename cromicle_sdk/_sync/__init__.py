"""The blocking client and its connections, generated from `_async`."""
