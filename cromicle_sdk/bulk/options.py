"""Checks of the options of `bulk`, `abulk` and `Ask`, and copies of clients."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace

from cromicle_sdk import AsyncClient, Client, ConfigurationError
from cromicle_sdk._core.options import check_count, check_number, check_seconds

from .pace import Pace

__all__ = [
    "DEFAULT_LIMIT",
    "DEFAULT_PATIENCE",
    "BulkOptions",
    "copy_client",
    "dump_client",
    "leave_busy_to_pace",
    "load_client",
]

DEFAULT_LIMIT = 32

# The default of `Timeout.total`.
DEFAULT_PATIENCE = 600.0


@dataclass(frozen=True)
class BulkOptions:
    """The options common to `bulk`, `abulk` and `Ask`, checked. Raises `ConfigurationError`."""

    limit: int = DEFAULT_LIMIT
    rate: float | None = None
    patience: float = DEFAULT_PATIENCE

    def __post_init__(self) -> None:
        check_count("limit", self.limit)
        if self.rate is not None:
            check_number("rate", self.rate, "calls per second", above_zero=True)
        check_seconds("patience", self.patience, above_zero=True)

    def build_pace(self, client: AsyncClient) -> Pace:
        """Return the pace for the calls of this client."""
        retry = client._options.retry  # pyright: ignore[reportPrivateUsage]
        return Pace(self.limit, rate=self.rate, retry=retry, patience=self.patience)


def copy_client(client: Client | AsyncClient | None) -> tuple[AsyncClient, bool]:
    """Return an `AsyncClient` with the options of `client`, and whether to close it.

    An `AsyncClient` with an `http_client` is returned itself. Raises `ConfigurationError` for a
    `Client` with an `http_client`.
    """
    client = AsyncClient() if client is None else check_client(client)
    options, connections = client._options, client._connection_options  # pyright: ignore[reportPrivateUsage]
    if connections.http_client is not None:
        if isinstance(client, AsyncClient):
            return client, False
        raise ConfigurationError(
            "bulk calls need an AsyncClient, which cannot use the httpx.Client of this Client",
            option="client",
            hint="pass an AsyncClient with an httpx.AsyncClient as its http_client",
        )
    own = AsyncClient.__new__(AsyncClient)
    own.__setstate__((options, connections))
    return own, True


def leave_busy_to_pace(client: AsyncClient) -> AsyncClient:
    """Return a view of the client that does not retry a 429 or 503, because the pace does."""
    retry = client._options.retry  # pyright: ignore[reportPrivateUsage]
    return client.with_options(retry=replace(retry, busy=False))


def check_client(client: object) -> Client | AsyncClient:
    """Raise `ConfigurationError` unless it is an open client."""
    if not isinstance(client, (Client, AsyncClient)):
        raise ConfigurationError(
            f"expected a Client or an AsyncClient, not {type(client).__name__}", option="client"
        )
    if client.is_closed:
        raise ConfigurationError("it is closed", option="client", hint="create a new one")
    return client


def dump_client(client: Client | AsyncClient | None) -> bytes:
    """Serialize the options of a client, including the token, for another process.

    Raises `ConfigurationError` if they cannot be pickled.
    """
    client = AsyncClient() if client is None else check_client(client)
    return pickle.dumps(client.__getstate__())


def load_client(state: bytes) -> AsyncClient:
    """Return a client with the options that `dump_client` serialized."""
    client = AsyncClient.__new__(AsyncClient)
    client.__setstate__(pickle.loads(state))  # noqa: S301 - serialized by `dump_client`
    return client
