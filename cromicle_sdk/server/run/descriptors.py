"""The limit of file descriptors, and the number of connections that it allows."""

from __future__ import annotations

import contextlib
import sys

from cromicle_sdk._core.errors import ConfigurationError

__all__ = ["choose_max_connections", "raise_descriptor_limit"]

# For the listener, the event loop, stderr, name servers, a tokens file, and connections that are
# accepted before those that they replace are closed.
RESERVE = 64

# An idle connection takes about 10 KiB, so strangers can use 100 MiB. For more clients than this,
# run several servers behind a proxy, which also use several cores.
MAX_CONNECTIONS = 10_000

# A system that reports no limit still rejects numbers that are too large.
_ENOUGH = 65_536


def raise_descriptor_limit() -> int | None:
    """Raise the soft limit of this process to the hard limit, and return it.

    Returns None if the system has no limit. The soft limit is low, often 1,024, because of programs
    that use `select`, which asyncio does not.
    """
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = max(soft, _ENOUGH) if hard == resource.RLIM_INFINITY else hard
    # macOS has a second limit, and raises ValueError above it.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def choose_max_connections(value: int | None, descriptors: int | None) -> int:
    """Return the limit of connections: `value`, or half of the number that `descriptors` allow.

    The other half is for the connections to a model server, one for each reply in progress.

    Raises `ConfigurationError` if `descriptors` do not allow `value`.
    """
    allowed = 2 * MAX_CONNECTIONS if descriptors is None else max(descriptors - RESERVE, 1)
    if value is None:
        return min(MAX_CONNECTIONS, (allowed + 1) // 2)
    if descriptors is not None and value > allowed:
        raise ConfigurationError(
            f"{value} is more than {allowed}, the number that {descriptors} file descriptors allow",
            option="max_connections",
            hint="raise the limit of file descriptors, with LimitNOFILE= of systemd or ulimit -n",
        )
    return value
