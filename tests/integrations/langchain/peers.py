"""
Shows the faults of ``test_peers`` on those who have them: run in the environment of ``make bench-langchain``.

Prints a JSON object: the name of each fault, and what was seen of it.
"""

from __future__ import annotations

import asyncio
import datetime
import importlib.metadata
import json
import sys
from collections.abc import Callable
from typing import Any

import redis
import redis.asyncio
from langchain_community.cache import AsyncRedisCache
from langchain_community.cache import RedisCache as CommunityCache
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation
from langchain_redis import RedisCache

X = [Generation(text="x")]


def outcome(do: Callable[[], Any]) -> Any:
    """Return what *do* returns, or what it raises."""
    try:
        return do()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:60]}"


def of_langchain_redis(url: str) -> dict[str, Any]:
    """Return what is seen of langchain-redis on a server without modules."""
    return {
        "plain server": outcome(lambda: RedisCache(redis_url=url).lookup("p", "l")),
        "server away": outcome(lambda: RedisCache(redis_url="redis://127.0.0.1:1")),
    }


def of_langchain_community(url: str) -> dict[str, Any]:
    """Return what is seen of langchain-community."""
    client = redis.Redis.from_url(url)
    cache = CommunityCache(client, ttl=60)
    cache.update("ab", "c", X)
    seen: dict[str, Any] = {"one key for two questions": cache.lookup("a", "bc") == X}

    many = [Generation(text=str(number)) for number in range(600)]
    cache.update("n", "l", many)
    seen["order lost"] = [one.text for one in cache.lookup("n", "l") or ()] != [one.text for one in many]
    cache.update("f", "l", [Generation(text="a"), Generation(text="b")])
    cache.update("f", "l", [Generation(text="c")])
    seen["old generations stay"] = len(cache.lookup("f", "l") or ())

    dated = ChatGeneration(message=AIMessage("x", response_metadata={"t": datetime.datetime.min}))
    cache.update("d", "l", [dated])
    seen["a blob as text"] = (cache.lookup("d", "l") or X)[0].text[:8]

    client.set("of somebody else", "x")
    cache.clear()
    seen["empties the database"] = not client.exists("of somebody else")

    shared = AsyncRedisCache(redis.asyncio.Redis.from_url(url), ttl=60)
    asyncio.run(shared.aupdate("p", "l", X))
    seen["another loop misses"] = [asyncio.run(shared.alookup("p", "l")) == X for _ in range(4)]
    return seen


if __name__ == "__main__":
    names = ("langchain-redis", "langchain-community")
    versions = {name: importlib.metadata.version(name) for name in names}
    print(json.dumps(versions | of_langchain_redis(sys.argv[1]) | of_langchain_community(sys.argv[1])))
