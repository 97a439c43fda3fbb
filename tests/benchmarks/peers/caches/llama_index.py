"""LlamaIndex's RedisKVStore: a store that its users cache in; it has no cache of models' answers."""

from __future__ import annotations

from llama_index.storage.kvstore.redis import RedisKVStore

from tests.benchmarks.peers.peer import Peer


class LlamaIndex(Peer):
    packages = ("llama-index-storage-kvstore-redis", "llama-index-core", "redis")
    note = "a field of one hash, JSON; no lifetimes, no accounting"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._store = RedisKVStore(redis_uri=url)

    def store(self, number: int, text: str) -> None:
        self._store.put(f"llama_index:{number}", {"text": text})

    def hit(self, number: int) -> str | None:
        found = self._store.get(f"llama_index:{number}")
        return found["text"] if found else None

    async def astore(self, number: int, text: str) -> None:
        await self._store.aput(f"llama_index:{number}", {"text": text})

    async def ahit(self, number: int) -> str | None:
        found = await self._store.aget(f"llama_index:{number}")
        return found["text"] if found else None
