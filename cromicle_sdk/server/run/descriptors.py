"""The file descriptors of this process, and how many connections they are enough for."""

from __future__ import annotations

import contextlib
import sys

from cromicle_sdk._core.errors import ConfigurationError

__all__ = ["choose_max_connections", "raise_descriptor_limit"]

# For the listener, the event loop, stderr, name servers, a tokens file, and connections that are
# accepted before those that they replace are closed.
RESERVE = 64

# An idle connection takes some 10 KiB, so strangers can fill 100 MiB. With more callers than this,
# several servers behind a proxy use more than one core as well.
MOST = 10_000

# A system without a limit has one all the same, lower than any number that stands for none.
_ENOUGH = 65_536


def raise_descriptor_limit() -> int | None:
    """Raise the soft limit of this process to the hard one, and return it.

    None where the system has no such limit. The soft limit is low, often 1,024, for programs that
    wait by `select`; asyncio does not.
    """
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, _ENOUGH) if hard == resource.RLIM_INFINITY else hard
    # macOS has another limit as well, and raises ValueError above it.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def choose_max_connections(wanted: int | None, descriptors: int | None) -> int:
    """The limit of connections: `wanted`, or half of what `descriptors` are enough for.

    The other half is for the connections to a model server, one for each reply in progress.

    Raises `ConfigurationError` where there are not enough for `wanted`.
    """
    most = 2 * MOST if descriptors is None else max(descriptors - RESERVE, 1)
    if wanted is None:
        return min(MOST, (most + 1) // 2)
    if descriptors is not None and wanted > most:
        raise ConfigurationError(
            f"{wanted} is more than {most}, for which {descriptors} file descriptors are enough",
            option="max_connections",
            hint="raise the limit of the process, as with LimitNOFILE= of systemd or ulimit -n",
        )
    return wanted
