"""
LangChain's ``ByteStore`` over an askonce cache, for ``CacheBackedEmbeddings`` and whatever else keeps bytes by key.

Nothing that LangChain builds on a store catches its errors, so while Redis is away what is read is missing and what
is written is lost; a cache made with ``strict=True`` raises.  It is a cache, no archive: entries expire, and the least
recently used make room.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from typing import Any, Final

from langchain_core.stores import BaseStore

from askonce import Cache, EntryInfo, Served
from askonce.keys import Request

from ._given import cache_of

_KIND: Final = "langchain.bytes"
# Bytes of a key that an entry can be listed by; keys in use are digests.
_LONGEST_LISTED: Final = 4096


class AskonceByteStore(BaseStore[str, bytes]):
    """
    Keep bytes in Redis: ``CacheBackedEmbeddings.from_bytes_store(model, AskonceByteStore("redis://localhost:6379"))``.

    With a URL, or none, the options are those of ``askonce.Cache``: ``policy=Policy(ttl="30d")`` says how long a value
    is kept.  A ``Cache`` that is given is used as it is; stores of different namespaces, versions or scopes are apart.
    """

    def __init__(self, url_or_cache: str | Cache | None = None, **options: Any) -> None:
        self._cache = cache_of(url_or_cache, options)

    @property
    def cache(self) -> Cache:
        """The askonce cache behind this store: for ``stats``, ``bump``, ``invalidate_tag``, ``close``."""
        return self._cache

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the value of each key, in order; None where there is none."""
        return [_value(served) for served in self._cache.get_many(_requests(keys))]

    async def amget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return what ``mget`` returns, without a thread."""
        return [_value(served) for served in await self._cache.aio.get_many(_requests(keys))]

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Store the values, of a key that is given twice the last.  Raises TypeError for what is not bytes."""
        values = _checked(key_value_pairs)
        self._cache.store_many(_requests(values), list(values.values()), labels=_labels(values))

    async def amset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Do what ``mset`` does, without a thread."""
        values = _checked(key_value_pairs)
        await self._cache.aio.store_many(_requests(values), list(values.values()), labels=_labels(values))

    def mdelete(self, keys: Sequence[str]) -> None:
        """Remove the values of these keys, those that are there."""
        self._cache.invalidate_many(_requests(keys))

    async def amdelete(self, keys: Sequence[str]) -> None:
        """Do what ``mdelete`` does, without a thread."""
        await self._cache.aio.invalidate_many(_requests(keys))

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """
        Iterate over the keys that begin with *prefix*, in no order.

        Reads through the whole namespace, so give a store that is listed a namespace of its own.  Keys of more than
        4 KB, and those that are not valid Unicode, are stored but not listed.
        """
        for entry in self._cache.entries(prefix=prefix or ""):
            if (key := self._key(entry)) is not None:
                yield key

    # The base is such a generator too; its annotation, a union, hides that from pyright.
    async def ayield_keys(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, prefix: str | None = None
    ) -> AsyncIterator[str]:
        """Iterate over what ``yield_keys`` iterates over, without a thread."""
        async for entry in self._cache.aio.entries(prefix=prefix or ""):
            if (key := self._key(entry)) is not None:
                yield key

    def _key(self, entry: EntryInfo) -> str | None:
        """Return the key of an entry, None if it is not this store's."""
        key = entry.label
        if key is None or entry.digest != self._cache.fingerprint(Request(_KIND, key)):
            return None
        return key


def _requests(keys: Collection[str]) -> list[Request]:
    for key in keys:
        if not isinstance(key, str):
            raise TypeError(f"the key {key!r} is {type(key).__qualname__}: give text")
    return [Request(_KIND, key) for key in keys]


def _checked(pairs: Sequence[tuple[str, bytes]]) -> dict[str, bytes]:
    for key, value in pairs:
        if not isinstance(value, bytes):
            raise TypeError(f"the value of {key!r} is {type(value).__qualname__}: give bytes")
    return dict(pairs)


def _labels(keys: Iterable[str]) -> list[str | None]:
    return [key if _listable(key) else None for key in keys]


def _listable(key: str) -> bool:
    try:
        return len(key.encode()) <= _LONGEST_LISTED
    except UnicodeEncodeError:
        return False


def _value(served: Served[Any] | None) -> bytes | None:
    return served.value if served is not None and isinstance(served.value, bytes) else None
