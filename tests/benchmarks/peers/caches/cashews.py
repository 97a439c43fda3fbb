"""cashews: on Redis, and with copies in the process that the server invalidates."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cashews import Cache

from tests.benchmarks.peers.peer import TTL_S, Peer


class Cashews(Peer):
    packages = ("cashews", "redis")
    note = "pickle; no accounting; the stampede with lock=True"
    client_side = False

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._cache = Cache()
        self._cache.setup(url, client_side=self.client_side)

    def _key(self, number: int) -> str:
        return f"{type(self).__name__}:{number}"

    async def astore(self, number: int, text: str) -> None:
        await self._cache.set(self._key(number), text, expire=TTL_S)

    async def ahit(self, number: int) -> str | None:
        return await self._cache.get(self._key(number))

    async def aask(self, name: str, compute: Callable[[], Awaitable[str]]) -> object:
        async def question() -> str:
            return await compute()

        return await self._cache(ttl=TTL_S, key=f"cold:{name}", lock=True)(question)()


class CashewsClientSide(Cashews):
    note = "as cashews; a hit is served from the process and asks the server nothing"
    client_side = True
