"""
LangGraph's cache of nodes over an askonce cache: ``graph.compile(cache=AskonceNodeCache(url))``.

What a node wrote is served where its input has the same key, as its ``CachePolicy`` says.  LangGraph has no ``try``
around its cache: neither reading nor writing raises here, whatever Redis does; a cache made with ``strict=True``
raises ``BackendUnavailable``, for tests and migrations.

Values are written as MessagePack and rebuilt by a fixed table of classes, which ``types=`` extends: nothing is ever
imported by a name found in the data, as LangGraph's own serializer does unless told otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from langgraph.cache.base import BaseCache, FullKey, Namespace, ValueT

from askonce import AskonceError, Cache, Served, Source, Uncacheable
from askonce.keys import Request

from ._given import cache_of
from ._values import ValuesCodec

_KIND: Final = "langgraph"
#: The tag of everything that nodes wrote, of whatever namespace.
_ALL: Final = "langgraph"
_log = logging.getLogger("askonce.langchain")


class AskonceNodeCache(BaseCache[ValueT]):
    """
    Serve what LangGraph's nodes wrote from Redis.

    With a URL, or none, the options are those of ``askonce.Cache``.  A ``Cache`` that is given is used as it is, and
    may hold other things: ``clear`` removes what nodes wrote and nothing else.

    ``version``: of the nodes' code; it is in the key.  LangGraph knows a node by its name alone, and would serve
    what the code of yesterday wrote.  ``types``: your own classes among what nodes write (Pydantic models,
    dataclasses, enums, named tuples).  A write that holds any other class is not stored, and logged once.

    Messages come back without the ids that LangChain and LangGraph made up, so that a thread that asks the same
    again keeps both answers.  Do not cache a node that replaces or removes messages by such ids.
    """

    def __init__(
        self,
        url_or_cache: str | Cache | None = None,
        *,
        version: str = "",
        types: Sequence[type] = (),
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(url_or_cache, Cache):
            cache = cache_of(url_or_cache, options)
            self._cache = cache.scope(version=version) if version else cache
        else:
            self._cache = cache_of(url_or_cache, {**options, "version": version})
        self._codec = ValuesCodec(types)
        self._logged: set[str] = set()

    @property
    def cache(self) -> Cache:
        """The askonce cache behind this one: for ``stats``, ``bump``, ``invalidate_tag``, ``close``."""
        return self._cache

    def get(self, keys: Sequence[FullKey]) -> dict[FullKey, ValueT]:
        """Return what is stored and fresh, new objects, in one round trip; without the keys that miss."""
        if keys:
            with self._spared(self._cache.bypass):
                if len(keys) == 1:  # as nearly always; a shorter way
                    return _fresh(keys, [self._cache.lookup(_request(keys[0]), codec=self._codec)])
                return _fresh(keys, self._cache.get_many(_requests(keys), codec=self._codec))
        return {}

    async def aget(self, keys: Sequence[FullKey]) -> dict[FullKey, ValueT]:
        """Return what ``get`` returns, without a thread."""
        if keys:
            with self._spared(self._cache.bypass):
                if len(keys) == 1:
                    return _fresh(keys, [await self._cache.aio.lookup(_request(keys[0]), codec=self._codec)])
                return _fresh(keys, await self._cache.aio.get_many(_requests(keys), codec=self._codec))
        return {}

    def set(self, pairs: Mapping[FullKey, tuple[ValueT, int | None]]) -> None:
        """Store what nodes wrote, each for its ttl in seconds; for that of the cache's policy where it is None."""
        for key, value, words in _entries(pairs):
            with self._spared(self._cache.reject):
                self._cache.store(key, value, codec=self._codec, **words)

    async def aset(self, pairs: Mapping[FullKey, tuple[ValueT, int | None]]) -> None:
        """Do what ``set`` does, without a thread."""

        async def store(key: Request, value: ValueT, words: Mapping[str, Any]) -> None:
            with self._spared(self._cache.reject):
                await self._cache.aio.store(key, value, codec=self._codec, **words)

        await asyncio.gather(*(store(*entry) for entry in _entries(pairs)))

    def clear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """Make what nodes of exactly these *namespaces* wrote unreachable; of all, if none are given."""
        for tag in _tags(namespaces):
            with self._spared(self._cache.bypass):
                _noted(self._cache.invalidate_tag(tag))

    async def aclear(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """Do what ``clear`` does, without a thread."""
        for tag in _tags(namespaces):
            with self._spared(self._cache.bypass):
                _noted(await self._cache.aio.invalidate_tag(tag))

    @contextlib.contextmanager
    def _spared(self, count: Callable[[str], None]) -> Iterator[None]:
        """Spare the graph what goes wrong in the cache; a strict cache's own errors pass."""
        try:
            yield
        except Uncacheable as error:  # a write, which the core has counted
            self._log_once(f"what a node wrote is not stored: {error}")
        except AskonceError:
            raise
        except Exception as error:  # noqa: BLE001  a defect of this adapter must not fail a graph
            count("error")
            _log.error("%s was kept from a graph, whose node goes uncached", type(error).__qualname__)

    def _log_once(self, text: str) -> None:
        if text not in self._logged and len(self._logged) < 100:
            self._logged.add(text)
            _log.warning("%s", text)


def _requests(keys: Sequence[FullKey]) -> list[Request]:
    return [_request(key) for key in keys]


def _request(key: FullKey) -> Request:
    namespace, name = key
    return Request(_KIND, {"namespace": namespace, "key": name})


def _fresh(keys: Sequence[FullKey], found: Sequence[Served[Any] | None]) -> dict[FullKey, Any]:
    """
    Return the values of the fresh entries.

    A stale one is a miss: LangGraph runs the node before the caller or not at all, so nothing would refresh it.
    """
    return {
        key: served.value
        for key, served in zip(keys, found, strict=True)
        if served is not None and served.source is Source.HIT
    }


def _entries(
    pairs: Mapping[FullKey, tuple[ValueT, int | None]],
) -> Iterator[tuple[Request, ValueT, Mapping[str, Any]]]:
    for key, (value, ttl) in pairs.items():
        if ttl is None or ttl > 0:  # a policy may say that nothing is kept
            yield _request(key), value, {"ttl": ttl, "tags": (_ALL, _tag(key[0]))}


def _tags(namespaces: Sequence[Namespace] | None) -> list[str]:
    return [_ALL] if namespaces is None else [_tag(namespace) for namespace in namespaces]


def _tag(namespace: Namespace) -> str:
    """Return the tag of one namespace: with the length before each part, no other namespace has it."""
    return f"{_ALL}/" + "".join(f"{len(part)}:{part}" for part in namespace)


def _noted(noted: bool) -> None:
    if not noted:
        _log.warning(
            "clear: Redis could not be told; what nodes wrote before is served again when it is back"
        )
