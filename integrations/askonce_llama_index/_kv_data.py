"""
Collections that are data: document stores, index stores, and whatever else nobody can compute again.

Nothing expires, and nothing is evicted by askonce; what Redis itself does when it is full is its operator's choice
(``maxmemory-policy noeviction``).  A failure of Redis is raised: a write that is lost in silence is corruption.  A
collection is one hash tag, ``T = ao:{<namespace>:kv/<collection>}:``.

    T v:<digest>    STRING    the key and the value, JSON
    T i             ZSET      the digests, which list the collection
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

import redis

from askonce import BackendUnavailable, ConfigurationError

from ._kv_pairs import Value, batches, digest, to_json

T = TypeVar("T")
P = ParamSpec("P")

#: Values in one reply.
_READ: Final = 1000
#: Async calls under way at the same time; each has a connection.
_THREADS: Final = 16


class Data:
    """
    Reads and writes data collections of one namespace, through redis-py's client.

    The async methods use it in threads: any number of event loops share its connections, and none is left behind by
    a loop that has ended.  That costs a call 0.05 to 0.1 ms.
    """

    def __init__(self, client: redis.Redis | None, namespace: str) -> None:
        self._client: Any = client  # redis-py annotates both colours in one
        self._namespace = namespace
        self._threads: tuple[int, ThreadPoolExecutor] | None = None

    def put_all(self, pairs: Sequence[tuple[str, Value]], collection: str) -> None:
        """Write all pairs, of a key given twice the last; none if one is not JSON.  A batch is written whole or not."""
        prefix = self._prefix(collection)
        items = {digest(key): to_json(key, value) for key, value in pairs}
        with self._raising("write", collection) as client:
            for batch in batches((item, len(item[1])) for item in items.items()):
                with client.pipeline(transaction=True) as pipe:
                    pipe.mset({f"{prefix}v:{name}": text for name, text in batch})
                    pipe.zadd(f"{prefix}i", dict.fromkeys((name for name, _ in batch), 0))
                    pipe.execute()

    def get(self, key: str, collection: str) -> Value | None:
        """Return the value of *key*, or None."""
        name = f"{self._prefix(collection)}v:{digest(key)}"
        with self._raising("read", collection) as client:
            text = client.get(name)
        return None if text is None else _pair(text, name)[1]

    def get_all(self, collection: str) -> dict[str, Value]:
        """Return all values by key, in no order."""
        prefix = self._prefix(collection)
        found: dict[str, Value] = {}
        with self._raising("read", collection) as client:
            digests = [
                one if isinstance(one, str) else one.decode() for one in client.zrange(f"{prefix}i", 0, -1)
            ]
            for start in range(0, len(digests), _READ):
                names = [f"{prefix}v:{one}" for one in digests[start : start + _READ]]
                texts = client.mget(names)
                found.update(
                    _pair(text, name) for name, text in zip(names, texts, strict=True) if text is not None
                )
        return found

    def delete(self, key: str, collection: str) -> bool:
        """Remove the value of *key*; return whether there was one."""
        prefix, name = self._prefix(collection), digest(key)
        with self._raising("write", collection) as client, client.pipeline(transaction=True) as pipe:
            pipe.unlink(f"{prefix}v:{name}")
            pipe.zrem(f"{prefix}i", name)
            return bool(pipe.execute()[0])

    async def aput_all(self, pairs: Sequence[tuple[str, Value]], collection: str) -> None:
        """Do what ``put_all`` does; cancelled, it may have done it."""
        await self._in_thread(self.put_all, pairs, collection)

    async def aget(self, key: str, collection: str) -> Value | None:
        """Return what ``get`` returns."""
        return await self._in_thread(self.get, key, collection)

    async def aget_all(self, collection: str) -> dict[str, Value]:
        """Return what ``get_all`` returns."""
        return await self._in_thread(self.get_all, collection)

    async def adelete(self, key: str, collection: str) -> bool:
        """Do what ``delete`` does."""
        return await self._in_thread(self.delete, key, collection)

    def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        # Not the loop's own threads: they resolve names, for everybody, while a frozen Redis may hold these.
        if self._threads is None or self._threads[0] != os.getpid():  # a forked process has none of them
            self._threads = os.getpid(), ThreadPoolExecutor(_THREADS, "askonce-data")
        work = functools.partial(call, *args, **kwargs)
        return asyncio.get_running_loop().run_in_executor(self._threads[1], work)

    def _prefix(self, collection: str) -> str:
        return f"ao:{{{self._namespace}:kv/{collection}}}:"

    @contextlib.contextmanager
    def _raising(self, what: str, collection: str) -> Iterator[Any]:
        """Give the client; raise what redis-py raises inside as BackendUnavailable."""
        if self._client is None:
            raise ConfigurationError(
                f"the collection {collection!r} is data, which is not kept on a cluster or behind Sentinels: "
                "give the store the redis:// URL of one Redis, a client= of yours, or name the collection "
                "in cache_collections= if it may be lost"
            )
        try:
            yield self._client
        except redis.RedisError as error:
            raise BackendUnavailable(f"could not {what} the collection {collection!r}: {error}") from error


def _pair(text: bytes | str, name: str) -> tuple[str, Value]:
    try:
        key, value = json.loads(text)
    except (TypeError, ValueError):
        raise ValueError(f"what is stored as {name!r} was not written by AskonceKVStore") from None
    return key, value
