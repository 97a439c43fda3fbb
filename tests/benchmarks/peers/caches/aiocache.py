"""aiocache's RedisCache, and its decorator against stampedes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiocache import RedisCache
from aiocache.decorators import cached_stampede

from tests.benchmarks.peers.peer import TTL_S, Peer


class Aiocache(Peer):
    packages = ("aiocache", "redis")
    note = "JSON; no accounting; the stampede with cached_stampede"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        parts = urlsplit(url)
        self._place = {"endpoint": parts.hostname, "port": parts.port}
        self._cache = RedisCache(**self._place)

    async def astore(self, number: int, text: str) -> None:
        await self._cache.set(f"aiocache:{number}", text, ttl=TTL_S)

    async def ahit(self, number: int) -> str | None:
        return await self._cache.get(f"aiocache:{number}")

    async def aask(self, name: str, compute: Callable[[], Awaitable[str]]) -> object:
        protected = cached_stampede(lease=2, ttl=TTL_S, cache=RedisCache, key=f"cold:{name}", **self._place)(
            compute
        )
        return await protected()
