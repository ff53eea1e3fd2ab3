"""`cromicle serve`: builds an app from its options and serves it in the foreground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import click

from cromicle_sdk import AsyncClient, ConfigurationError, Timeout
from cromicle_sdk._core.secrets import DEFAULT_TOKEN, Secret

from .errors import errors_for_the_shell
from .log import log_to_stderr
from .output import report

__all__ = [
    "ALL_OPTIONS",
    "FLAGS",
    "Network",
    "Service",
    "check_combination",
    "load_server",
    "serve_in_foreground",
]

# The flags, by the names of the SDK's options.
FLAGS = {
    "allow_options": "--allow-options",
    "allow_origins": "--allow-origin",
    "allowed_hosts": "--allowed-host",
    "api_key": "--upstream-key",
    "base_url": "--upstream",
    "extra_body": "--body",
    "forwarded_allow_ips": "--forwarded-allow-ips",
    "headers": "--upstream-header",
    "host": "--host",
    "max_buffered_bytes": "--max-buffered-bytes",
    "max_concurrent_per_token": "--max-concurrent-per-token",
    "max_connections": "--max-connections",
    "max_tokens": "--max-tokens",
    "max_waiting": "--max-waiting",
    "model": "--model",
    "models": "--model",
    "seed": "--seed",
    "stop": "--stop",
    "system": "--system",
    "temperature": "--temperature",
    "token": "--token",
    "tokens": "--tokens-file",
    "top_p": "--top-p",
}

# The same, for the client of a Cromicle endpoint.
_CLIENT_FLAGS = {**FLAGS, "base_url": "--cromicle", "token": "--upstream-key"}

# The flags that require --upstream, by the names of their parameters.
_UPSTREAM_FLAGS = {
    "models": "--model",
    "upstream_key": "--upstream-key",
    "upstream_headers": "--upstream-header",
    "upstream_timeout": "--upstream-timeout",
    "system": "--system",
    "parse_roles": "--parse-roles",
    "temperature": "--temperature",
    "max_tokens": "--max-tokens",
    "top_p": "--top-p",
    "seed": "--seed",
    "stop": "--stop",
    "extra_body": "--body",
    "allow_options": "--allow-options",
}

# The parameters of these that also apply to --cromicle.
_CROMICLE_PARAMETERS = frozenset(
    {"allow_options", "extra_body", "models"}
    | {"upstream_headers", "upstream_key", "upstream_timeout"}
)

# The value of --allow-options without names.
ALL_OPTIONS = "all"

# The minimum of the total timeout, in seconds: the clients' default.
_TOTAL_SECONDS = 600.0

# How many models of the model server are listed on stderr.
_MAX_NAMES = 20

# The codes of errors after which requesting the list of models again would not help.
_WITHOUT_LIST = frozenset(
    {"upstream_denied", "upstream_invalid", "upstream_redirected", "upstream_refused"}
)

_WARNING = "Warning: "
_FORGERY = (
    "with --parse-roles, a caller's text can forge messages of any role: a line that begins with"
    ' "Assistant: " becomes a message. It is not needed for callers that send messages with roles.'
)


@dataclass(frozen=True, kw_only=True)
class Service:
    """The options of `cromicle serve` for the app, which are None if not given."""

    token: Secret | None
    tokens_file: str | None
    upstream: str | None
    cromicle: str | None
    models: Sequence[str]
    upstream_key: Secret | None
    upstream_headers: Mapping[str, Secret]
    upstream_timeout: float | None
    system: str | None
    parse_roles: bool
    temperature: float | None
    max_tokens: int | None
    top_p: float | None
    seed: int | None
    stop: Sequence[str]
    extra_body: Mapping[str, Any] = field(repr=False)
    allow_options: str | None
    delay: float
    max_concurrent: int | None
    max_concurrent_per_token: int | None
    max_waiting: int | None
    max_request_bytes: int
    max_buffered_bytes: int | None
    metrics: bool
    page: bool
    allowed_hosts: Sequence[str]
    allow_origins: Sequence[str]

    @property
    def required_token(self) -> str | None:
        """A description of the token that clients need, or None for the well-known one."""
        if self.tokens_file is not None:
            return f"one of the tokens in {self.tokens_file}, as $CROMICLE_TOKEN or --token."
        if self.token is not None and self.token.reveal() != DEFAULT_TOKEN:
            return "the same token, as $CROMICLE_TOKEN or --token."
        return None

    def build_backend(self, server: ModuleType) -> Any:
        """Return the backend, or None with --cromicle. `server` is `cromicle_sdk.server`.

        Raises `ConfigurationError`, as `build_app` does.
        """
        if self.cromicle is not None:
            return None
        if self.upstream is None:
            return server.echo_backend(delay=self.delay)
        return server.openai_backend(
            self.upstream,
            self.models or None,
            api_key=None if self.upstream_key is None else self.upstream_key.reveal(),
            headers={name: value.reveal() for name, value in self.upstream_headers.items()},
            timeout=_build_timeout(self.upstream_timeout),
            system=self.system or None,
            parse_roles=self.parse_roles,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            top_p=self.top_p,
            seed=self.seed,
            stop=self.stop or None,
            extra_body=self.extra_body,
            allow_options=_parse_names(self.allow_options),
        )

    def build_app(self, server: ModuleType, backend: Any) -> Any:
        """Return the app with this backend, or the app of OpenAI's API with --cromicle."""
        shared = {
            **self._choose_tokens(server),
            "max_request_bytes": self.max_request_bytes,
            "max_buffered_bytes": self.max_buffered_bytes,
            "max_concurrent": self.max_concurrent,
            "max_concurrent_per_token": self.max_concurrent_per_token,
            "max_waiting": self.max_waiting,
            "metrics": self.metrics,
            "allowed_hosts": self.allowed_hosts,
            "allow_origins": self.allow_origins,
        }
        if self.cromicle is None:
            return server.create_app(backend, page=self.page, **shared)
        return server.create_openai_app(
            self._build_client(self.cromicle),
            models=self.models or None,
            allow_options=self.allow_options is None or _parse_names(self.allow_options),
            **shared,
        )

    def describe_address(self, base_url: str) -> list[tuple[str, str]]:
        """Return labels and lines that describe how clients connect to the server."""
        token = self.required_token
        if self.cromicle is not None:
            base_url = f"{base_url}/v1"
            key = DEFAULT_TOKEN if token is None else "a token of this server"
            variables = f"OPENAI_BASE_URL={base_url}, and {key} as OPENAI_API_KEY."
            return [("Serving at ", base_url), ("OpenAI's clients need ", variables)]
        example = f'cromicle ask --base-url {base_url} "Hello, how are you?"'
        needs = [] if token is None else [("Clients need ", token)]
        advice = "Try it in a browser, or with " if self.page else "Try it with "
        return [("Serving at ", base_url), (advice, example), *needs]

    def _build_client(self, base_url: str) -> AsyncClient:
        key = Secret(DEFAULT_TOKEN) if self.upstream_key is None else self.upstream_key
        with errors_for_the_shell(_CLIENT_FLAGS):
            return AsyncClient(
                base_url=base_url,
                token=key.reveal(),
                headers={name: value.reveal() for name, value in self.upstream_headers.items()},
                timeout=_build_timeout(self.upstream_timeout),
                extra_body=self.extra_body,
            )

    def _choose_tokens(self, server: ModuleType) -> dict[str, Any]:
        if self.tokens_file is not None:
            return {"tokens": server.TokenFile(self.tokens_file)}
        return {} if self.token is None else {"token": self.token.reveal()}


@dataclass(frozen=True, kw_only=True)
class Network:
    """The options of `cromicle serve` for its connections, by the names of the SDK's `serve`."""

    host: str
    port: int
    grace: float
    max_connections: int | None
    max_connections_per_address: int | None
    forwarded_allow_ips: str


def check_combination(context: click.Context) -> None:
    """Raise `click.UsageError` for options that cannot be used together."""
    typed = {
        name
        for name in context.params
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    if "upstream" in typed and "delay" in typed:
        raise click.UsageError("--delay applies to the echo only: omit it with --upstream.")
    if "cromicle" in typed:
        excluded = {"upstream", "delay"} | ({"page"} if context.params["page"] else set[str]())
        for name in typed & excluded:
            raise click.UsageError(f"--cromicle and --{name} cannot be used together.")
    allowed = _CROMICLE_PARAMETERS if "cromicle" in typed else frozenset[str]()
    if "upstream" not in typed:
        for name in (name for name in _UPSTREAM_FLAGS if name in typed - allowed):
            raise click.UsageError(
                f"{_UPSTREAM_FLAGS[name]} requires a model server: also pass its --upstream URL."
            )
    if "tokens_file" in typed and "token" in typed:
        raise click.UsageError("--token and --tokens-file cannot be used together.")


def serve_in_foreground(service: Service, network: Network, *, access_log: bool) -> None:
    """Serve until Ctrl-C, with the server's log on stderr.

    Raises `ConfigurationError`, and `ClickException` if the extra is not installed or the address
    is not available.
    """
    server = load_server()
    # Entered first, because building the app may log a warning.
    with log_to_stderr(access=access_log):
        backend = service.build_backend(server)
        app = service.build_app(server, backend)
        lines = [] if service.upstream is None else _describe_upstream(server, backend)
        if service.parse_roles:
            lines.append((_WARNING, _FORGERY))

        def report_address(base_url: str) -> None:
            for label, line in service.describe_address(base_url) + lines:
                report(line, label=label, style="bold yellow" if label == _WARNING else "bold")

        try:
            server.serve(app, **vars(network), on_ready=report_address)
        except OSError as error:
            raise click.ClickException(
                f"The server cannot listen on {network.host} port {network.port}: "
                f"{_describe(error)}. Choose another --port, or another --host."
            ) from None


def _describe_upstream(server: ModuleType, backend: Any) -> list[tuple[str, str]]:
    """Return labels and lines about the model server and its list of models.

    Raises `ConfigurationError` if no model is given and the list does not have exactly one. If the
    model server is not ready, the list is requested again with the first prompt.
    """
    import anyio

    upstream = ("Upstream ", backend.base_url)
    try:
        names: list[str] = anyio.run(backend.find_models)
    except server.BackendError as error:
        warning = (_WARNING, f"the list of models is not available: {error.detail}")
        if backend.models:
            return [upstream, _name_models(backend), warning]
        if error.code in _WITHOUT_LIST:
            raise _build_model_error(
                f"the model server does not list its models: {error.detail}"
            ) from None
        return [upstream, ("Model ", "chosen at the first request"), warning]
    known = _join_names(names) if names else "none"
    if not backend.models:
        raise _build_model_error(f"the model server does not have exactly one; it has {known}")
    lines = [upstream, _name_models(backend)]
    unlisted = backend.find_unlisted(names)
    listed = [model for model in backend.models if model not in unlisted]
    if listed:
        lines.append(("The model server has ", ", ".join(listed)))
    lines += [
        (_WARNING, f"the model server does not list {model}; it has {known}") for model in unlisted
    ]
    return lines


def _name_models(backend: Any) -> tuple[str, str]:
    return "Model " if len(backend.models) == 1 else "Models ", ", ".join(backend.models)


def _build_model_error(problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"it is not set, and {problem}", option="model", hint="pass the name of one"
    )


def _join_names(names: Sequence[str]) -> str:
    shown = [name[:100] for name in names[:_MAX_NAMES]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _parse_names(value: str | None) -> bool | list[str]:
    """Convert the value of --allow-options for the SDK."""
    if value is None or value == ALL_OPTIONS:
        return value is not None
    return [name.strip() for name in value.split(",")]


def load_server() -> ModuleType:
    """Import `cromicle_sdk.server`. Raises `ClickException` if its extra is not installed."""
    # Imported here because it takes as long as all other imports, and `ask` rarely needs it.
    try:
        from cromicle_sdk import server
    except ImportError as error:
        raise click.ClickException(str(error)) from None
    return server


def _describe(error: OSError) -> str:
    # `socket.create_server` appends the address as a Python tuple.
    return str(error.strerror).partition(" (while attempting")[0]


def _build_timeout(seconds: float | None) -> Timeout:
    if seconds is None:
        return Timeout()
    total = max(seconds, _TOTAL_SECONDS)
    return Timeout(connect=seconds, first_byte=seconds, stall=seconds, total=total)
