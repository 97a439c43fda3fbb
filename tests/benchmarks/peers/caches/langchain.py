"""LangChain's own caches on Redis, asked directly and through a chain."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import redis
import redis.asyncio
from langchain_core.caches import BaseCache
from langchain_core.globals import set_llm_cache
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult, Generation
from pydantic import PrivateAttr

from tests.benchmarks.chain import Canned, chain_of
from tests.benchmarks.payloads import LLM_STRING, prompt
from tests.benchmarks.peers.peer import TTL_S, Peer


class Counted(Canned):
    """Counts how often it is asked; answers when a function has, if it was given one."""

    _asked: int = PrivateAttr(default=0)
    _compute: Any = PrivateAttr(default=None)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self._asked += 1
        return super()._generate(messages)

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        await self._compute()
        return super()._generate(messages)


def chain_on(cache: BaseCache) -> Callable[[int], object]:
    """Return a call of the chain, with *cache* as the cache of every model; it returns None if the model was asked."""
    set_llm_cache(cache)
    model = Counted()
    chain = chain_of(model)

    def call(number: int) -> str | None:
        before = model._asked
        text = chain.invoke({"number": number})
        return text if model._asked == before else None

    return call


class Langchain(Peer):
    """What the two have in common: they are caches of LangChain."""

    asked_by = "prompt and model"
    _cache: BaseCache

    def store(self, number: int, text: str) -> None:
        self._cache.update(prompt(number), LLM_STRING, [Generation(text=text)])

    def hit(self, number: int) -> str | None:
        found = self._cache.lookup(prompt(number), LLM_STRING)
        return found[0].text if found else None

    def framework(self) -> Callable[[int], object]:
        return chain_on(self._cache)

    async def _aask(self, cache: BaseCache, name: str, compute: Callable[[], Awaitable[str]]) -> object:
        model = Counted(cache=cache)
        model._compute = compute
        return (await model.ainvoke(name)).content


class Community(Langchain):
    packages = ("langchain-community", "langchain-core", "redis")
    note = "MD5 of the prompt, JSON of LangChain's objects; no accounting"

    def __init__(self, url: str) -> None:
        from langchain_community.cache import AsyncRedisCache, RedisCache

        super().__init__(url)
        self._cache = RedisCache(redis.Redis.from_url(url), ttl=TTL_S)
        self._acache = AsyncRedisCache(redis.asyncio.Redis.from_url(url), ttl=TTL_S)

    async def astore(self, number: int, text: str) -> None:
        await self._acache.aupdate(prompt(number), LLM_STRING, [Generation(text=text)])

    async def ahit(self, number: int) -> str | None:
        found = await self._acache.alookup(prompt(number), LLM_STRING)
        return found[0].text if found else None

    async def aask(self, name: str, compute: Callable[[], Awaitable[str]]) -> object:
        return await self._aask(self._acache, name, compute)


class LangchainRedis(Langchain):
    packages = ("langchain-redis", "langchain-core", "redis")
    note = "RedisJSON documents; asyncio through threads; no accounting"

    def __init__(self, url: str) -> None:
        from langchain_redis import RedisCache

        super().__init__(url)
        self._cache = RedisCache(url, ttl=TTL_S)

    async def astore(self, number: int, text: str) -> None:
        await asyncio.to_thread(self.store, number, text)

    async def ahit(self, number: int) -> str | None:
        found = await self._cache.alookup(prompt(number), LLM_STRING)
        return found[0].text if found else None

    async def aask(self, name: str, compute: Callable[[], Awaitable[str]]) -> object:
        return await self._aask(self._cache, name, compute)
