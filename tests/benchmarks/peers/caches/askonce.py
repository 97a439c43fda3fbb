"""askonce, as an application uses it: every hit from Redis, and with copies in the process."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from askonce import Cache, Near
from tests.benchmarks.payloads import request
from tests.benchmarks.peers.peer import Peer

#: Above all that the benchmark stores: what it costs to evict is measured by ``make bench``.
ROOM: dict[str, Any] = {"max_entries": 1_000_000, "max_bytes": "8gb"}


class Askonce(Peer):
    packages = ("askonce", "redis")
    asked_by = "request"
    note = (
        "fingerprint of the request, books for the bound by least recent use, deadline and breaker included"
    )
    near: ClassVar[Near | None] = None

    def __init__(self, url: str, entries: int = 0) -> None:
        super().__init__(url)
        self._cache = self._made("bounded", max_entries=entries) if entries else self._made("peers", **ROOM)
        self._request = functools.cache(request)

    def _made(self, purpose: str, **bounds: Any) -> Cache:
        return Cache(self.url, namespace=f"{type(self).__name__}-{purpose}", near=self.near, **bounds)

    def store(self, number: int, text: str) -> None:
        self._cache.store(self._request(number), text)

    def hit(self, number: int) -> str | None:
        served = self._cache.lookup(self._request(number))
        return served.value if served else None

    async def astore(self, number: int, text: str) -> None:
        await self._cache.aio.store(self._request(number), text)

    async def ahit(self, number: int) -> str | None:
        served = await self._cache.aio.lookup(self._request(number))
        return served.value if served else None

    def framework(self) -> Callable[[int], object]:
        from askonce_langchain import AskonceCache
        from tests.benchmarks.peers.caches.langchain import chain_on

        return chain_on(AskonceCache(self._made("chain", **ROOM)))

    async def aask(self, name: str, compute: Callable[[], Awaitable[str]]) -> object:
        return await self._cache.aio.get_or_compute({"cold": name}, compute)

    def bounded(self, entries: int) -> Peer:
        return type(self)(self.url, entries)


class AskonceNear(Askonce):
    note = (
        "as askonce; a hit is served from the process, and the server told of it a second later; "
        "a copy outlasts eviction by up to 30 s, which the hit rate shows"
    )
    near = Near()
