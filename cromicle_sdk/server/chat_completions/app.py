"""The ASGI app that serves OpenAI's chat completions from a Cromicle endpoint."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cromicle_sdk._async.client import AsyncClient
from cromicle_sdk._core.errors import ConfigurationError
from cromicle_sdk._core.messages import join_messages
from cromicle_sdk.server.backends import BackendRequest
from cromicle_sdk.server.middleware import get_request_id
from cromicle_sdk.server.openai.options import check_allowed, check_models
from cromicle_sdk.server.options import DEFAULT_MAX_REQUEST_BYTES
from cromicle_sdk.server.protections import Protections
from cromicle_sdk.server.response import StreamedReply
from cromicle_sdk.server.routing import ExactRoute
from cromicle_sdk.server.tokens import TokenFile, hide_tokens

from .backend import CromicleBackend
from .forms import EventStream, WholeCompletion, build_error
from .request import check_authorization, receive_completion_request

__all__ = ["create_openai_app"]

# The only entry in the list of models if the operator names none.
_DEFAULT_MODEL = "cromicle"


def create_openai_app(
    client: AsyncClient,
    *,
    models: str | Sequence[str] | None = None,
    token: str | None = None,
    tokens: Iterable[str] | TokenFile | None = None,
    allow_options: bool | Iterable[str] = True,
    max_request_bytes: int = DEFAULT_MAX_REQUEST_BYTES,
    max_buffered_bytes: int | None = None,
    max_concurrent: int | None = None,
    max_concurrent_per_token: int | None = None,
    max_waiting: int | None = None,
    metrics: bool = True,
    allowed_hosts: Iterable[str] = (),
    allow_origins: Iterable[str] = (),
) -> Starlette:
    """Create an ASGI app that serves OpenAI's API with the replies of a Cromicle endpoint.

    ```python
    app = create_openai_app(AsyncClient(base_url="https://chat.example"), token="a-token-of-mine")
    ```

    `POST /v1/chat/completions` returns a completion as one JSON object or as server-sent events,
    and `GET /v1/models` lists the models. Both require `Authorization: Bearer TOKEN` with a token
    of this app, not that of `client`. Messages are sent with their roles (`send_messages`).

    - `client`: an `AsyncClient` for the endpoint. The app does not close it. Its `retry` applies: a
      completion in one object is retried even if its reply is truncated, a stream only before its
      first chunk.
    - `models`: the names of the models. A request must choose one of them, which is sent to the
      endpoint as the field `model`. If None, the default, a request may name any model, no `model`
      is sent, and the list contains the name `cromicle`.
    - `allow_options`: the fields of a request that are passed on: True for all of `temperature`,
      `top_p`, `max_tokens` (also as `max_completion_tokens`), `stop`, `seed`, `presence_penalty`,
      `frequency_penalty` and `reasoning_effort`; False for none; or some of these names. An
      endpoint that does not accept a field responds with a 400 that names it.
    - All other options are those of `create_app`, which also documents `/health`, `/metrics`, the
      log and the checks. Here, the token is checked before the body.

    Requests for features that the protocol lacks are rejected with a 400 that names the field:
    tools, more than one choice, `response_format`, log probabilities, images. The numbers of
    `usage` are 0, because tokens are not counted; a stream has no `usage`.

    An error is `{"error": {"message": …, "type": …, "param": …, "code": …}}`. The status is 502 if
    the endpoint fails, and 504 if it does not respond in time; its 400, 413, 422, 429, 503 and 504
    are passed on. A truncated stream ends with an error event and without `[DONE]`, and the
    connection is closed without completing the body. The `finish_reason` is that of the endpoint,
    or `stop` if it sends none.

    Raises `ConfigurationError`, which names the invalid option.
    """
    given = hide_tokens(token, tokens)
    del token, tokens
    if not isinstance(cast("object", client), AsyncClient):
        kind = type(client).__name__
        raise ConfigurationError(f"expected an AsyncClient, not {kind}", option="client")
    names = check_models(models, option="models")
    allowed = check_allowed(allow_options)
    protections = Protections.build(
        given,
        max_request_bytes=max_request_bytes,
        max_buffered_bytes=max_buffered_bytes,
        max_concurrent=max_concurrent,
        max_concurrent_per_token=max_concurrent_per_token,
        max_waiting=max_waiting,
        metrics=metrics,
        allowed_hosts=allowed_hosts,
        allow_origins=allow_origins,
    )
    backend = CromicleBackend(client)
    created = int(time.time())

    async def complete(request: Request) -> StreamedReply:
        received = await receive_completion_request(
            request, protections, models=names, allow_options=allowed
        )
        request_id = get_request_id(request.scope)
        build_form = EventStream if received.is_streamed else WholeCompletion
        chosen = {"model": received.model} if names else {}
        return StreamedReply(
            backend.stream if received.is_streamed else backend.whole,
            join_messages(received.messages),
            BackendRequest(
                id=request_id,
                messages=received.messages,
                options={**received.options, **chosen},
            ),
            protections.concurrency,
            build_form(request_id, received.model),
        )

    async def list_models(request: Request) -> Response:
        check_authorization(request, protections)
        data = [
            {"id": name, "object": "model", "created": created, "owned_by": "cromicle"}
            for name in names or (_DEFAULT_MODEL,)
        ]
        return JSONResponse({"object": "list", "data": data})

    return protections.build_app(
        [
            ExactRoute("/v1/chat/completions", complete, methods=["POST"]),
            ExactRoute("/v1/models", list_models),
        ],
        chat_path="/v1/chat/completions",
        # In browsers, clients of OpenAI's API send a dozen headers of their own.
        allow_headers=["*"],
        error_form=build_error,
    )
