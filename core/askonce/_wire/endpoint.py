"""
Where Redis is, and how a connection to it is made: from a URL, a client of the user's, or the embedded server.

One server is an ``Endpoint``.  Of several it is known here whom to ask: ``Cluster`` and ``Sentinels``; see ``topology``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
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
_SCHEMES: Final = (
    "redis://host:6379/0, rediss://, unix:///path, embedded://[folder], redis+cluster://host:6379,host:6379, "
    "redis+sentinel://host:26379,host:26379/service/0"
)
#: Host and port, as they stand in a URL.
_ADDRESS: Final = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?")
_SEVERAL: Final = re.compile(
    r"(rediss?)\+(cluster|sentinel)://(?:([^/?#]*)@)?([^@/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?"
)
_CLUSTER_PATH: Final = re.compile(r"(/0?)?")
_SENTINEL_PATH: Final = re.compile(r"/([\w.%-]+)(?:/(\d{0,5}))?")

#: What an application talks to Redis with for itself.
Client: TypeAlias = redis.Redis
#: Host and port.
Address: TypeAlias = tuple[str, int]

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
    #: The user's own client, if it is not plain: then it is asked instead, see ``borrowed``.
    own: Any = field(default=None, repr=False)

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

    def client(self, timeout: float) -> Client:
        """Return a client of redis-py with connections of its own, which waits *timeout* seconds for a reply."""
        pool = self.sync_pool(timeout, timeout)
        if self.prepare is not None:
            pool.connection_class = _prepared(self.connection_class, self.prepare)
        return redis.Redis(connection_pool=pool)

    def at(self, host: str, port: int) -> Endpoint:
        """Return a server that is reached in the same way, at another address."""
        options = {name: value for name, value in self.options.items() if name not in {"host", "port"}}
        scheme = "rediss" if issubclass(self.connection_class, redis.SSLConnection) else "redis"
        label = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        return Endpoint(self.connection_class, {**options, "host": host, "port": port}, label)

    def _common(self, connect_timeout: float) -> dict[str, Any]:
        # RESP2 everywhere: the replies of one version of the protocol, and no HELLO on connecting.
        return {
            **self.options,
            "socket_connect_timeout": connect_timeout,
            "protocol": 2,
            "max_connections": _UNLIMITED,
        }


def _prepared(kind: Any, prepare: Callable[[], object]) -> type:
    """Return a class of connections that have the server prepared whenever they connect, or connect anew."""

    class Prepared(kind):  # type: ignore[misc]  # whichever it is
        def connect(self) -> None:
            if getattr(self, "_sock", None) is None:
                prepare()
            super().connect()

    return Prepared


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Redis Cluster: each of its nodes knows which has which slots.  ``node`` says how they are reached."""

    node: Endpoint
    seeds: tuple[Address, ...]
    label: str
    #: The user's: where a node is that announces itself at an address which is not reachable from here.
    remap: Callable[[Address], Address] | None = None


@dataclass(frozen=True, slots=True)
class Sentinels:
    """A master that Sentinels watch: they know where it is now.  ``node`` says how it is reached."""

    node: Endpoint
    seeds: tuple[Endpoint, ...]  # they may have credentials of their own
    service: str
    label: str


Place: TypeAlias = Endpoint | Cluster | Sentinels


def from_environment() -> str:
    """Return the URL that the environment gives, else the embedded server's."""
    return os.environ.get("ASKONCE_URL") or os.environ.get("REDIS_URL") or "embedded://"


def from_url(url: str) -> Place:
    """Return where *url* leads, or raise ConfigurationError.  Nothing is connected or started."""
    if not isinstance(url, str):
        raise ConfigurationError(f"url is {type(url).__name__}; give text such as {_SCHEMES}, or client=")
    match = _SEVERAL.fullmatch(url)
    return _several(url, match) if match else _server(url)


def _server(url: str) -> Endpoint:
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


def _several(url: str, match: re.Match[str]) -> Cluster | Sentinels:
    """Return the cluster or the Sentinels of a URL with several addresses."""
    tls, kind, user, hosts, path, query = match.groups()
    default = 6379 if kind == "cluster" else 26379
    addresses = [_ADDRESS.fullmatch(host) for host in hosts.split(",")]
    where = (_CLUSTER_PATH if kind == "cluster" else _SENTINEL_PATH).fullmatch(path)
    if where is None or not all(addresses):
        raise ConfigurationError(
            f"url {redacted(url)!r} cannot be read; give one of {_SCHEMES}, special characters of a password escaped"
        )
    seeds = tuple((one[1].strip("[]"), int(one[2] or default)) for one in addresses if one)
    credentials, words = f"{user}@" if user else "", f"?{query}" if query else ""
    if kind == "cluster":
        node = _server(f"{tls}://{credentials}{hosts.split(',')[0]}{words}")
        if int(node.options.get("db") or 0):
            raise ConfigurationError(
                f"url {redacted(url)!r} names a database; a cluster has one only: leave it out"
            )
        return Cluster(node, seeds, redacted(url))
    node = _server(f"{tls}://{credentials}{hosts.split(',')[0]}/{where[2] or 0}{words}")
    own = parse_qs(query or "")
    sentinel = Endpoint(node.connection_class, _of_sentinel(node.options, own), "")
    return Sentinels(node, tuple(sentinel.at(*seed) for seed in seeds), unquote(where[1]), redacted(url))


def _of_sentinel(options: Mapping[str, Any], words: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return how Sentinels are reached: like their master, but for credentials, which they have of their own."""
    shared = {name: value for name, value in options.items() if name not in {"db", "username", "password"}}
    own = {
        name: words[f"sentinel_{name}"][-1]
        for name in ("username", "password")
        if f"sentinel_{name}" in words
    }
    return {**shared, **own}


def from_client(client: object) -> Place:
    """Return where a redis-py client talks to; its connections are left alone."""
    if isinstance(client, redis.RedisCluster | redis.asyncio.RedisCluster):
        return _of_cluster(client)
    pool = getattr(client, "connection_pool", None)
    if isinstance(
        pool, redis.sentinel.SentinelConnectionPool | redis.asyncio.sentinel.SentinelConnectionPool
    ):
        return _of_sentinels(pool)
    return _of_server(client)


def _of_cluster(client: redis.RedisCluster | redis.asyncio.RedisCluster) -> Cluster:
    options: dict[str, Any] = dict(client.get_connection_kwargs())
    kind: Any = options.get(
        "connection_class", redis.SSLConnection if options.get("ssl") else redis.Connection
    )
    kind = _SYNC_TWIN.get(kind, kind)
    if kind not in {redis.Connection, redis.SSLConnection}:
        raise ConfigurationError(
            f"client={type(client).__name__} connects by {kind!r}; give one that uses TCP or TLS"
        )
    # Its own redis_connect_func belongs to the client; what the user gave is beside it.
    options["redis_connect_func"] = getattr(client, "user_on_connect_func", None)
    manager: Any = client.nodes_manager
    seeds = tuple((node.host, int(node.port)) for node in manager.startup_nodes.values())
    label = "client of " + ",".join(f"{host}:{port}" for host, port in seeds)
    return Cluster(Endpoint(kind, _set(_kept(options)), label), seeds, label, manager.address_remap)


def _of_sentinels(
    pool: redis.sentinel.SentinelConnectionPool | redis.asyncio.sentinel.SentinelConnectionPool,
) -> Sentinels:
    if not pool.is_master:
        raise ConfigurationError(
            "client= is of a replica, where nothing can be stored; give sentinel.master_for(...)"
        )
    tls = issubclass(pool.connection_class, redis.SSLConnection | redis.asyncio.SSLConnection)
    kind = redis.SSLConnection if tls else redis.Connection
    manager: Any = pool.sentinel_manager
    label = f"client of Sentinel's {pool.service_name!r}"
    seeds = tuple(_of_server(sentinel) for sentinel in manager.sentinels)
    return Sentinels(
        Endpoint(kind, _set(_kept(pool.connection_kwargs)), label), seeds, pool.service_name, label
    )


def _set(options: Mapping[str, Any]) -> dict[str, Any]:
    # An object of no type of its own is redis-py's mark of what was not given.
    return {name: value for name, value in options.items() if value is not None and type(value) is not object}


def _of_server(client: object) -> Endpoint:
    pool = getattr(client, "connection_pool", None)
    kind: Any = getattr(pool, "connection_class", None)
    kind = _SYNC_TWIN.get(kind, kind)
    if pool is None or kind not in _ASYNC_TWIN:
        return _borrowed(client)
    options = _kept(pool.connection_kwargs)
    where = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return Endpoint(kind, options, f"client of {where}")


def _borrowed(client: object) -> Endpoint:
    if not isinstance(client, redis.Redis):
        raise ConfigurationError(
            f"client={type(client).__name__} is not supported; give a redis.Redis, a plain redis.asyncio.Redis "
            f"(TCP, TLS or unix socket), a RedisCluster, Sentinel.master_for(...), or a URL: {_SCHEMES}"
        )
    if str(client.connection_pool.connection_kwargs.get("protocol", 2)) != "2":
        raise ConfigurationError(
            f"client={type(client).__name__} speaks RESP3 over connections of its own; give one made with protocol=2"
        )
    return Endpoint(redis.Connection, {}, f"client {type(client).__name__}", own=client)


def redacted(url: str) -> str:
    """
    Return *url* as it may be shown: scheme, hosts, ports and path, never user, password or options.

    Where a slash or an @ is missing or too much, a password may stand anywhere: then nothing of it is shown.
    """
    if match := _SEVERAL.fullmatch(url):
        tls, kind, user, hosts, path, _ = match.groups()
        allowed = _CLUSTER_PATH if kind == "cluster" else _SENTINEL_PATH
        astray = "@" in url and user is None
        readable = allowed.fullmatch(path) and all(map(_ADDRESS.fullmatch, hosts.split(",")))
        return f"{tls}+{kind}://{hosts}{path}" if readable and not astray else f"{tls}+{kind}://(unreadable)"
    try:
        parts = urlsplit(url)
        host, port, path = parts.hostname or "", parts.port, parts.path
    except ValueError:
        return "(unreadable)"
    astray = "@" in path or ("@" in url and "@" not in parts.netloc)
    if not parts.scheme or astray or (parts.scheme in {"redis", "rediss"} and not _DATABASE.fullmatch(path)):
        return (
            f"{parts.scheme}://(unreadable)"
            if parts.scheme in {"redis", "rediss", "unix"}
            else "(unreadable)"
        )
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{path}"


def _kept(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in _KEPT or name.startswith("ssl_")}
