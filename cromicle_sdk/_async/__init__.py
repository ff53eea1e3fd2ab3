"""The client for asyncio and trio, and its connections."""
