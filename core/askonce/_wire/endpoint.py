"""Where Redis is, and how a connection to it is made: from a URL, a client of the user's, or the embedded server."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from ..errors import ConfigurationError

#: What tells where the server is and who we are.  Everything else that a client carries (pools, retries, health
#: checks, decoding, timeouts) is askonce's own decision.
_KEPT: Final = frozenset(
    {
        "host", "port", "db", "path", "username", "password", "credential_provider", "client_name",
        "socket_keepalive", "socket_keepalive_options", "socket_type", "redis_connect_func",
    }
)  # fmt: skip

#: A pool counts what it made, not what is open; threads and loops come and go.
_UNLIMITED: Final = 2**31

_DATABASE: Final = re.compile(r"/?\d{0,5}")
_SCHEMES: Final = "redis://host:6379/0, rediss://, unix:///path, embedded://[folder]"

_ASYNC_TWIN: Final[Mapping[type, type]] = {
    redis.Connection: redis.asyncio.Connection,
    redis.SSLConnection: redis.asyncio.SSLConnection,
    redis.UnixDomainSocketConnection: redis.asyncio.UnixDomainSocketConnection,
}
_SYNC_TWIN: Final = {twin: plain for plain, twin in _ASYNC_TWIN.items()}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    One server, reached by threads and by event loops alike.

    ``prepare`` is to be called before connecting; it may take seconds (the embedded server starts).
    """

    connection_class: type
    options: Mapping[str, Any] = field(repr=False)  # credentials too
    label: str  # for messages: no credentials
    prepare: Callable[[], object] | None = None

    def sync_pool(
        self, timeout: float | None, connect_timeout: float, **options: Any
    ) -> redis.ConnectionPool:
        """Return a pool that makes connections for threads; it is never asked to keep one."""
        return redis.ConnectionPool(
            connection_class=self.connection_class,
            **self._common(connect_timeout),
            socket_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            **options,
        )

    def async_pool(self, connect_timeout: float) -> redis.asyncio.ConnectionPool:
        """Return a pool that makes connections for one event loop; without a timer a read: the burst has one."""
        return redis.asyncio.ConnectionPool(
            connection_class=_ASYNC_TWIN[self.connection_class],
            **self._common(connect_timeout),
            socket_timeout=None,
            retry=AsyncRetry(NoBackoff(), 0),
        )

    def _common(self, connect_timeout: float) -> dict[str, Any]:
        # RESP2 everywhere: the replies of one version of the protocol, and no HELLO on connecting.
        return {
            **self.options,
            "socket_connect_timeout": connect_timeout,
            "protocol": 2,
            "max_connections": _UNLIMITED,
        }


def from_environment() -> str:
    """Return the URL that the environment gives, else the embedded server's."""
    return os.environ.get("ASKONCE_URL") or os.environ.get("REDIS_URL") or "embedded://"


def from_url(url: str) -> Endpoint:
    """Return the endpoint of *url*, or raise ConfigurationError.  Nothing is connected or started."""
    if not isinstance(url, str):
        raise ConfigurationError(f"url is {type(url).__name__}; give text such as {_SCHEMES}, or client=")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError(f"url cannot be read; give one of {_SCHEMES}") from None
    if parts.scheme == "embedded":
        from . import embedded  # noqa: PLC0415  it needs fcntl, which not every platform has

        server = embedded.resolve(unquote(parts.netloc + parts.path) or None)
        options = {"path": str(server.socket)}
        return Endpoint(
            redis.UnixDomainSocketConnection, options, f"embedded://{server.folder}", server.ensure
        )
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise ConfigurationError(f"url {redacted(url)!r} is not understood; give one of {_SCHEMES}")
    try:
        options = dict(parse_url(url))  # type: ignore[no-untyped-call]
    except ValueError:  # its text may quote the password
        raise ConfigurationError(
            f"url {redacted(url)!r} cannot be read; give one of {_SCHEMES}, special characters of a password escaped"
        ) from None
    kind: Any = options.pop("connection_class", redis.Connection)
    return Endpoint(kind, _kept(options), redacted(url))


def from_client(client: object) -> Endpoint:
    """Return the endpoint that a plain redis-py client talks to; its pool is left alone."""
    pool = getattr(client, "connection_pool", None)
    kind: Any = getattr(pool, "connection_class", None)
    kind = _SYNC_TWIN.get(kind, kind)
    if pool is None or kind not in _ASYNC_TWIN:
        raise ConfigurationError(
            f"client={type(client).__name__} is not supported; give a plain redis.Redis or redis.asyncio.Redis "
            f"(TCP, TLS or unix socket), or a URL: {_SCHEMES}"
        )
    options = _kept(pool.connection_kwargs)
    where = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return Endpoint(kind, options, f"client of {where}")


def redacted(url: str) -> str:
    """
    Return *url* as it may be shown: scheme, host, port and path, never user, password or options.

    Where a slash or an @ is missing or too much, a password may stand anywhere: then nothing of it is shown.
    """
    try:
        parts = urlsplit(url)
        host, port, path = parts.hostname or "", parts.port, parts.path
    except ValueError:
        return "(unreadable)"
    astray = "@" in path or ("@" in url and not parts.netloc)
    if not parts.scheme or astray or (parts.scheme in {"redis", "rediss"} and not _DATABASE.fullmatch(path)):
        return (
            f"{parts.scheme}://(unreadable)"
            if parts.scheme in {"redis", "rediss", "unix"}
            else "(unreadable)"
        )
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{path}"


def _kept(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in _KEPT or name.startswith("ssl_")}
