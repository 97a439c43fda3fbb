"""Who is compared: the name in the tables, the environment that it runs in, its class."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from tests.benchmarks.peers.peer import Peer


@dataclass(frozen=True)
class Entry:
    """
    One row.

    ``environment`` names a file of requirements/peers; without one it is the project's own.  ``needs``: what it asks
    of a server beyond Redis's own commands.
    """

    name: str
    place: str
    environment: str | None = None
    needs: str = ""

    def load(self) -> type[Peer]:
        """Import the peer, in its environment."""
        module, _, cls = self.place.partition(":")
        kind: type[Peer] = getattr(importlib.import_module(f"tests.benchmarks.peers.caches.{module}"), cls)
        return kind


#: What all are divided by; and the same call of the older client, which some peers ask for.
BASE = "redis-py"
BARE = (BASE, "redis-py 5")

#: The project's own rows.
OURS = ("askonce", "askonce, near")

ROSTER = {
    entry.name: entry
    for entry in (
        Entry(BASE, "redis_py:RedisPy"),
        Entry(BARE[1], "redis_py:RedisPy", "llama-index"),
        Entry(OURS[0], "askonce:Askonce"),
        Entry(OURS[1], "askonce:AskonceNear"),
        Entry("langchain-community", "langchain:Community", "langchain"),
        Entry("langchain-redis", "langchain:LangchainRedis", "langchain", needs="RedisJSON"),
        Entry("LiteLLM", "litellm:Litellm", "litellm"),
        Entry("cashews", "cashews:Cashews", "cashews"),
        Entry("cashews, client side", "cashews:CashewsClientSide", "cashews"),
        Entry("aiocache", "aiocache:Aiocache", "aiocache"),
        Entry("dogpile.cache", "dogpile:Dogpile", "dogpile"),
        Entry("BetterDB agent-cache", "betterdb:Betterdb", "betterdb"),
        Entry("LlamaIndex RedisKVStore", "llama_index:LlamaIndex", "llama-index"),
        Entry("GPTCache, map", "gptcache:Gptcache", "gptcache"),
        Entry("GPTCache, Redis", "gptcache:GptcacheRedis", "gptcache", needs="RedisJSON and RediSearch"),
    )
}
