"""The baseline: a bare GET."""

from __future__ import annotations

import redis
import redis.asyncio

from tests.benchmarks.peers.peer import TTL_S, Peer


class RedisPy(Peer):
    packages = ("redis", "hiredis")
    note = "one GET, nothing decoded"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._client = redis.Redis.from_url(url)
        self._aclient = redis.asyncio.Redis.from_url(url, max_connections=100)

    def store(self, number: int, text: str) -> None:
        self._client.set(f"bare:{number}", text, ex=TTL_S)

    def hit(self, number: int) -> bytes | None:
        return self._client.get(f"bare:{number}")

    async def astore(self, number: int, text: str) -> None:
        await self._aclient.set(f"bare:{number}", text, ex=TTL_S)

    async def ahit(self, number: int) -> bytes | None:
        return await self._aclient.get(f"bare:{number}")
