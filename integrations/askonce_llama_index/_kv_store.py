"""
LlamaIndex's ``BaseKVStore`` on Redis: for ``IngestionCache``, ``embeddings_cache``, and document and index stores.

A collection is a cache or it is data, by its name.  What is a cache may lose what it holds, to its bounds, its
lifetime or an outage, and never makes a call fail; what is data loses nothing, and raises.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Final

import redis
from llama_index.core.storage.kvstore.types import DEFAULT_BATCH_SIZE, DEFAULT_COLLECTION, BaseKVStore
from redis.backoff import NoBackoff
from redis.retry import Retry

from askonce import Cache, ConfigurationError, Duration, Policy

from ._kv_cache import Cached
from ._kv_data import Data
from ._kv_pairs import Value

#: What LlamaIndex names its caches: of ingestion; of embeddings, by the names of today and those proposed for queries
#: and texts apart (run-llama/llama_index, PR #23181).
CACHE_COLLECTIONS: Final = ("llama_cache", "embeddings", "query_embeddings", "text_embeddings")

#: Seconds that one exchange about data may take; ``?socket_timeout=`` in the URL says otherwise.
_PATIENCE: Final = 10.0
_LONGEST_NAME: Final = 1000
#: Schemes of URLs that data is kept at; redis-py reads them.
_FOR_DATA: Final = frozenset(("redis", "rediss", "unix"))


class AskonceKVStore(BaseKVStore):
    """
    Keep what LlamaIndex keeps by key: ``IngestionCache(cache=AskonceKVStore("redis://localhost:6379"))``.

    ``cache_collections``: the collections that are a cache; each entry lives for ``ttl``.  Name a collection of your
    own here (``IngestionCache(collection=...)``), or it is data: nothing expires, nothing is evicted, and a failure of
    Redis raises BackendUnavailable.

    ``url`` and the ``options`` are those of ``askonce.Cache`` (``namespace=``, ``version=``, ``max_entries=``, ...);
    bounds, ``deadline``, ``version`` and ``strict`` are for the cache collections alone.  ``deadline`` is longer than
    an answer's: all nodes of a transformation are one value.  ``client=`` takes a ``redis.Redis`` of yours, used as it
    is for data, with its own timeouts and retries; a store made from it cannot be sent to the workers of a pipeline,
    one made from a URL can.

    Threads and any number of event loops may share it.  LlamaIndex's keys of embeddings hold no model: give each
    model a namespace, and ``max_entries=`` where it has more than 10,000 texts.
    """

    # No __len__: BaseEmbedding asks for the truth of its cache, and would pass over an empty one.  No __repr__:
    # a pipeline takes its default form out of the hash of a transformation, and no other.  No MutableMappingKVStore:
    # the workers of a pipeline would send back all that a collection holds.

    def __init__(
        self,
        url: str | None = None,
        *,
        ttl: Duration = "24h",
        cache_collections: Iterable[str] = CACHE_COLLECTIONS,
        deadline: Duration = 1.0,
        client: redis.Redis | None = None,
        **options: Any,
    ) -> None:
        if "policy" in options:
            raise ConfigurationError("policy= given: a key-value store has one lifetime; give ttl=")
        if url is None and client is None:
            url = os.environ.get("ASKONCE_URL") or os.environ.get("REDIS_URL") or "embedded://"
        collections = _checked(cache_collections)
        cache = Cache(url, client=client, policy=Policy(ttl=ttl), deadline=deadline, **options)
        if client is not None and not isinstance(client, redis.Redis):
            kind = f"{type(client).__module__}.{type(client).__qualname__}"
            raise ConfigurationError(f"client= is {kind}; give a redis.Redis: it serves every event loop")
        self._open(cache, url, collections, client)

    def _open(
        self, cache: Cache, url: str | None, collections: frozenset[str], client: redis.Redis | None = None
    ) -> None:
        self._cache, self._url, self._collections = cache, url, collections
        if url is not None and url.partition("://")[0] in _FOR_DATA:
            client = redis.Redis.from_url(
                url,
                socket_timeout=_PATIENCE,
                socket_connect_timeout=_PATIENCE,
                retry=Retry(NoBackoff(), 0),  # what redis-py does by itself depends on its version
            )
        elif url is not None and url.startswith("embedded:"):
            client = cache.client(timeout=_PATIENCE)
        self._cached, self._data = Cached(cache), Data(client, cache.namespace)

    @property
    def cache(self) -> Cache:
        """The askonce cache behind the cache collections: for ``stats``, ``usage``, ``bump``, ``close``."""
        return self._cache

    def put(self, key: str, val: Value, collection: str = DEFAULT_COLLECTION) -> None:
        """Write one value.  Raises TypeError for a key that is no text, and for data that is not JSON."""
        self._side(collection).put_all([(key, val)], collection)

    async def aput(self, key: str, val: Value, collection: str = DEFAULT_COLLECTION) -> None:
        """Do what ``put`` does."""
        await self._side(collection).aput_all([(key, val)], collection)

    def put_all(
        self,
        kv_pairs: Sequence[tuple[str, Value]],
        collection: str = DEFAULT_COLLECTION,
        batch_size: int = DEFAULT_BATCH_SIZE,  # noqa: ARG002  stores of LlamaIndex leave it at 1
    ) -> None:
        """Write all values, in a round trip for each 500 or 4 MB whatever *batch_size* says; see ``put``."""
        self._side(collection).put_all(kv_pairs, collection)

    async def aput_all(
        self,
        kv_pairs: Sequence[tuple[str, Value]],
        collection: str = DEFAULT_COLLECTION,
        batch_size: int = DEFAULT_BATCH_SIZE,  # noqa: ARG002  as above
    ) -> None:
        """Do what ``put_all`` does."""
        await self._side(collection).aput_all(kv_pairs, collection)

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> Value | None:
        """Return the value of *key*, a new object, or None."""
        return self._side(collection).get(key, collection)

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> Value | None:
        """Return what ``get`` returns."""
        return await self._side(collection).aget(key, collection)

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, Value]:
        """Return all values of the collection by key, in no order."""
        return self._side(collection).get_all(collection)

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, Value]:
        """Return what ``get_all`` returns."""
        return await self._side(collection).aget_all(collection)

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Remove the value of *key*; return whether there was one."""
        return self._side(collection).delete(key, collection)

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Do what ``delete`` does."""
        return await self._side(collection).adelete(key, collection)

    def __getstate__(self) -> tuple[Cache, str | None, frozenset[str]]:
        """Pickle as the configuration, for the workers of a pipeline: they connect for themselves."""
        return self._cache, self._url, self._collections

    def __setstate__(self, state: tuple[Cache, str | None, frozenset[str]]) -> None:
        """Be the same store in another process."""
        self._open(*state)

    def _side(self, collection: str) -> Cached | Data:
        return self._cached if collection in self._collections else self._data


def _checked(names: Iterable[str]) -> frozenset[str]:
    if isinstance(names, str):
        raise ConfigurationError(f"cache_collections={names!r} is one text; give a list of names")
    given = list(names) if isinstance(names, Iterable) else [names]
    for name in given:
        if not isinstance(name, str) or not name or len(name) > _LONGEST_NAME or not _is_utf8(name):
            raise ConfigurationError(
                f"cache_collections: {name!r} is no name; give text of 1 to {_LONGEST_NAME} characters"
            )
    return frozenset(given)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
