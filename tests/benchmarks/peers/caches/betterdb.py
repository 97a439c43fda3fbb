"""BetterDB's agent cache: its tier for answers of models."""

from __future__ import annotations

import functools
import os

os.environ["BETTERDB_TELEMETRY"] = "false"  # on by default: a benchmark reports to nobody

import valkey.asyncio
from betterdb_agent_cache import AgentCache
from betterdb_agent_cache.types import AgentCacheOptions

from tests.benchmarks.payloads import request
from tests.benchmarks.peers.peer import TTL_S, Peer


class Betterdb(Peer):
    packages = ("betterdb-agent-cache", "valkey")
    asked_by = "request"
    note = "SHA-256 of the parameters that it knows, JSON; counts each hit, in a round trip of its own; telemetry off"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._cache = AgentCache(
            AgentCacheOptions(client=valkey.asyncio.Valkey.from_url(url), default_ttl=TTL_S)
        )
        self._request = functools.cache(request)

    async def astore(self, number: int, text: str) -> None:
        await self._cache.llm.store(self._request(number), text)

    async def ahit(self, number: int) -> str | None:
        return (await self._cache.llm.check(self._request(number))).response
