"""GPTCache: its exact match, which is in the process, and its storage on Redis."""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from gptcache import Cache
from gptcache.adapter.api import get, put
from gptcache.manager import CacheBase, get_data_manager
from gptcache.manager.scalar_data.base import CacheData
from gptcache.processor.pre import get_prompt

from tests.benchmarks.payloads import prompt
from tests.benchmarks.peers.peer import Lacks, Peer

#: It reads its dictionary from a file when it begins, and writes it when the process ends in good order.
NOWHERE = str(Path(tempfile.gettempdir()) / "askonce-no-such-folder" / "map")


class Gptcache(Peer):
    packages = ("gptcache",)
    asked_by = "prompt"
    on_server = False
    note = "a dictionary of the process, written to a file when it ends: no other process has it"

    def __init__(self, url: str, entries: int = 100_000) -> None:
        super().__init__(url)
        self._cache = Cache()
        self._cache.init(
            pre_embedding_func=get_prompt,
            data_manager=get_data_manager(data_path=NOWHERE, max_size=entries),
        )

    def store(self, number: int, text: str) -> None:
        put(prompt(number), text, cache_obj=self._cache)

    def hit(self, number: int) -> str | None:
        return get(prompt(number), cache_obj=self._cache)

    def bounded(self, entries: int) -> Peer:
        return Gptcache(self.url, entries)


class GptcacheRedis(Peer):
    """Its storage of answers on Redis.  It finds them by vectors, so that no exact hit can be timed."""

    packages = ("gptcache", "redis-om", "redis")

    def __init__(self, url: str) -> None:
        super().__init__(url)
        parts = urlsplit(url)
        storage = CacheBase("redis", redis_host=parts.hostname, redis_port=parts.port)
        storage.batch_insert([CacheData(question="", answers="")])

    def store(self, number: int, text: str) -> None:
        raise Lacks("by vectors only")

    async def astore(self, number: int, text: str) -> None:
        raise Lacks("by vectors only")
