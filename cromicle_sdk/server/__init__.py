"""The server side of the protocol: an embedded server for tests, and a gateway to model servers.

```python
from cromicle_sdk import Client
from cromicle_sdk.server import LocalServer

with LocalServer() as server, Client(base_url=server.base_url) as client:
    print(client.chat("Hello!").text)
```

`create_app(openai_backend(...))` is a gateway to an OpenAI-compatible model server.
`create_openai_app(client)` serves OpenAI's API from a Cromicle endpoint. `serve` runs either of
them until Ctrl-C; any other ASGI server can run them, too.

Requires the extra `server`: `pip install "cromicle-sdk[server]"`.
"""

from __future__ import annotations

try:
    from .app import create_app
    from .backends import Backend, BackendError, BackendRequest, echo_backend
    from .chat_completions.app import create_openai_app
    from .openai.backend import openai_backend
    from .run.local import LocalServer
    from .run.serve import serve
    from .tokens import TokenFile
except ImportError as _error:
    raise ImportError(
        "cromicle_sdk.server requires starlette, uvicorn and prometheus-client; "
        'install them with: pip install "cromicle-sdk[server]"'
    ) from _error

__all__ = [
    "Backend",
    "BackendError",
    "BackendRequest",
    "LocalServer",
    "TokenFile",
    "create_app",
    "create_openai_app",
    "echo_backend",
    "openai_backend",
    "serve",
]
