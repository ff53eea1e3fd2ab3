"""How the app is served: in a thread, in the foreground, by uvicorn."""
