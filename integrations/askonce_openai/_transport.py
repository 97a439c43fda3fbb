"""The transports that ``wrap`` puts around those of a client, for httpx and for httpx2 from one source."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from ._asyncio import Asyncio
from ._library import Library
from ._options import Options
from ._threads import Threads


class Transports(NamedTuple):
    """The two classes of one HTTP library; each is made from a transport and what it does with requests."""

    sync: Any
    asynchronous: Any


@functools.cache
def build(library: Library) -> Transports:
    """Return the transports for *library*."""
    lib = library.module

    class CacheTransport(lib.BaseTransport):  # type: ignore[misc, name-defined]
        """Serves what is stored, and passes the rest on to the transport that it wraps."""

        def __init__(self, inner: Any, threads: Threads) -> None:
            self.askonce, self._inner = threads, inner

        def handle_request(self, request: Any) -> Any:
            return self.askonce.handle(request, self._inner.handle_request)

        def close(self) -> None:
            self._inner.close()

    class AsyncCacheTransport(lib.AsyncBaseTransport):  # type: ignore[misc, name-defined]
        """Does what ``CacheTransport`` does, for asyncio."""

        def __init__(self, inner: Any, tasks: Asyncio) -> None:
            self.askonce, self._inner = tasks, inner

        async def handle_async_request(self, request: Any) -> Any:
            return await self.askonce.handle(request, self._inner.handle_async_request)

        async def aclose(self) -> None:
            await self._inner.aclose()

    return Transports(CacheTransport, AsyncCacheTransport)


def put_around(library: Library, http: Any, options: Options) -> Options | None:
    """
    Put the cache around each transport of the client *http*, in place.

    Return None, or, with nothing changed, the options of the cache that is there already.
    """
    sync, asynchronous = build(library)
    present = http._transport  # no public name: the only place that keeps proxies, TLS, limits and backends
    if isinstance(present, sync | asynchronous):
        there: Options = present.askonce.options
        return there
    wrapped: Callable[[Any], Any]
    if isinstance(http, library.module.AsyncClient):
        wrapped = functools.partial(asynchronous, tasks=Asyncio(library, options))
    else:
        wrapped = functools.partial(sync, threads=Threads(library, options))
    http._transport = wrapped(present)
    http._mounts = {
        pattern: None if inner is None else wrapped(inner) for pattern, inner in http._mounts.items()
    }
    return None
