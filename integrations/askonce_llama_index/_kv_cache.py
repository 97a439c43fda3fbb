"""
Collections that are a cache: entries of the core, with its lifetimes, bounds and deadline.

They expire, the least recently used make room, and while Redis is away what is read is missing and what is written
is lost; a cache made with ``strict=True`` raises.  What cannot be stored (no JSON) is counted in
``stats().rejected``, logged once and forgiven too: the answer is there, and only the next run computes it again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from askonce import Cache, EntryInfo, Uncacheable
from askonce.keys import Request
from askonce.served import AnyServed

from ._kv_pairs import Value, batches, digest, pack, unpack

_KIND: Final = "llama_index.kv"
_DIGEST: Final = 40
_log = logging.getLogger("askonce.llama_index")


class Cached:
    """
    Reads and writes cache collections of one core cache.

    An entry is asked for, and labelled, by its collection and the digest of its key: keys are whole texts.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._logged: set[str] = set()

    def put_all(self, pairs: Sequence[tuple[str, Value]], collection: str) -> None:
        """Store all pairs, of a key given twice the last."""
        for names, values in self._writes(pairs, collection):
            self._cache.store_many(_requests(names, collection), values, labels=_labels(names, collection))

    async def aput_all(self, pairs: Sequence[tuple[str, Value]], collection: str) -> None:
        """Do what ``put_all`` does."""
        for names, values in self._writes(pairs, collection):
            await self._cache.aio.store_many(
                _requests(names, collection), values, labels=_labels(names, collection)
            )

    def get(self, key: str, collection: str) -> Value | None:
        """Return the value of *key*, or None."""
        return dict(_pairs([self._cache.lookup(_request(digest(key), collection))])).get(key)

    async def aget(self, key: str, collection: str) -> Value | None:
        """Return what ``get`` returns."""
        return dict(_pairs([await self._cache.aio.lookup(_request(digest(key), collection))])).get(key)

    def get_all(self, collection: str) -> dict[str, Value]:
        """Return all values by key, in no order; reads through the labels of the whole namespace."""
        found: dict[str, Value] = {}
        for requests in _reads(self._cache.entries(prefix=f"{collection}/"), collection):
            found.update(_pairs(self._cache.get_many(requests)))
        return found

    async def aget_all(self, collection: str) -> dict[str, Value]:
        """Return what ``get_all`` returns."""
        found: dict[str, Value] = {}
        entries = [entry async for entry in self._cache.aio.entries(prefix=f"{collection}/")]
        for requests in _reads(entries, collection):
            found.update(_pairs(await self._cache.aio.get_many(requests)))
        return found

    def delete(self, key: str, collection: str) -> bool:
        """Remove the value of *key*; return whether there was one, as far as Redis could say."""
        return self._cache.invalidate(_request(digest(key), collection))

    async def adelete(self, key: str, collection: str) -> bool:
        """Do what ``delete`` does."""
        return await self._cache.aio.invalidate(_request(digest(key), collection))

    def _writes(
        self, pairs: Sequence[tuple[str, Value]], collection: str
    ) -> Iterator[tuple[list[str], list[bytes]]]:
        """Yield, for each round trip, digests and what is stored under them."""
        packed: dict[str, bytes] = {}
        for key, value in pairs:
            try:
                packed[digest(key)] = pack(key, value)
            except Uncacheable as error:
                self._cache.reject("uncacheable")
                self._log_once(f"{collection}: {error}; it is not stored")
        for batch in batches((item, len(item[1])) for item in packed.items()):
            yield [name for name, _ in batch], [data for _, data in batch]

    def _log_once(self, text: str) -> None:
        if text not in self._logged and len(self._logged) < 100:
            self._logged.add(text)
            _log.warning("%s", text)


def _request(name: str, collection: str) -> Request:
    return Request(_KIND, {"collection": collection, "key": name})


def _requests(names: Iterable[str], collection: str) -> list[Request]:
    return [_request(name, collection) for name in names]


def _labels(names: Iterable[str], collection: str) -> list[str | None]:
    return [f"{collection}/{name}" for name in names]


def _reads(entries: Iterable[EntryInfo], collection: str) -> Iterator[list[Request]]:
    """Yield, for each round trip, what to ask for; of an entry labelled alike that is another's there is nothing."""
    return batches((_request((entry.label or "")[-_DIGEST:], collection), entry.bytes) for entry in entries)


def _pairs(found: Iterable[AnyServed | None]) -> Iterator[tuple[str, Value]]:
    """Yield what is stored; what is not readable is not there."""
    for served in found:
        if served is not None and isinstance(served.value, bytes):
            try:
                yield unpack(served.value)
            except ValueError:
                continue
