"""
Embeddings, one entry for each text or token array: a batch asks upstream for its missing items only.

Vectors of different models, or of different lengths, are never given together: a model behind its name changes.  And
what cannot be merged is asked for as the caller asked for it, so that no answer is worse than without a cache.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from askonce import AskonceError, AsyncCache, Cache, LeaderFailed, control
from askonce.keys import Request
from askonce.policy import Duration

from .wire import Headers
from .wire.embeddings import CODEC, Batch, Item, Vector, are_alike, item_key, merged, vectors_of
from .wire.entry import kept

__all__ = ["Batch", "Embedded", "Upstream", "aembed", "embed"]

R = TypeVar("R")

_OK: Final = 200


@dataclass(frozen=True, slots=True)
class Upstream(Generic[R]):
    """What upstream said; ``content`` is decoded, ``response`` what the transport gives its caller for it."""

    status: int
    headers: Headers
    content: bytes
    response: R


@dataclass(frozen=True, slots=True)
class Embedded(Generic[R]):
    """
    The answer to a batch: ``passed``, which is to be given as it is, or else a 200 with these headers and this body.

    ``hits`` of its ``items`` were not asked of upstream for this caller.
    """

    passed: R | None
    headers: Mapping[str, str]
    body: bytes
    hits: int
    items: int


def embed(
    cache: Cache,
    batch: Batch,
    ask: Callable[[bytes | None], Upstream[R]],
    *,
    ttl: Duration | None = None,
    tags: Sequence[str] = (),
) -> Embedded[R]:
    """
    Return the answer to a batch, asking upstream at most for what is missing.

    ``ask(content)`` makes the caller's request with another content, or as it is for None.  What it raises passes as
    it is, and so do askonce's own errors (``NotCached``).
    """
    turn, caller = _Turn(batch), threading.get_ident()

    def compute(missing: list[Request]) -> list[Vector]:
        now = (
            turn if threading.get_ident() == caller else _Turn(batch)
        )  # behind it, for what was served stale
        items = now.begin(missing)
        try:
            return now.read(ask(batch.content(items)), items)
        except Exception as error:
            now.error = error
            raise

    try:
        vectors = cache.get_or_compute_many(batch.requests, compute, ttl=ttl, tags=tags, codec=CODEC)
        if not are_alike(vectors):
            with control(read=False):
                vectors = cache.get_or_compute_many(batch.requests, compute, ttl=ttl, tags=tags, codec=CODEC)
        return turn.answer(vectors)
    except Exception as error:
        if isinstance(error, _PassedError) and error is turn.error:
            return turn.passed(error.upstream)
        if not turn.asks_whole_after(error):
            raise
    return turn.passed(ask(None))


async def aembed(
    cache: AsyncCache,
    batch: Batch,
    ask: Callable[[bytes | None], Awaitable[Upstream[R]]],
    *,
    ttl: Duration | None = None,
    tags: Sequence[str] = (),
) -> Embedded[R]:
    """Return what ``embed`` returns, without blocking."""
    turn, caller = _Turn(batch), asyncio.current_task()

    async def compute(missing: list[Request]) -> list[Vector]:
        now = (
            turn if asyncio.current_task() is caller else _Turn(batch)
        )  # behind it, for what was served stale
        items = now.begin(missing)
        try:
            return now.read(await ask(batch.content(items)), items)
        except Exception as error:
            now.error = error
            raise

    try:
        vectors = await cache.get_or_compute_many(batch.requests, compute, ttl=ttl, tags=tags, codec=CODEC)
        if not are_alike(vectors):
            with control(read=False):
                vectors = await cache.get_or_compute_many(
                    batch.requests, compute, ttl=ttl, tags=tags, codec=CODEC
                )
        return turn.answer(vectors)
    except Exception as error:
        if isinstance(error, _PassedError) and error is turn.error:
            return turn.passed(error.upstream)
        if not turn.asks_whole_after(error):
            raise
    return turn.passed(await ask(None))


class _PassedError(Exception, Generic[R]):
    """Upstream's answer is to be given to the caller as it is."""

    def __init__(self, upstream: Upstream[R]) -> None:
        super().__init__(f"upstream answered {upstream.status}")
        self.upstream = upstream


class _UnmergeableError(Exception):
    """Upstream's answer for the missing items cannot be put together with the others."""


class _Turn:
    """What was asked of upstream for one caller's batch, and what it said."""

    def __init__(self, batch: Batch) -> None:
        #: What asking upstream for this batch raised.
        self.error: Exception | None = None
        self._batch = batch
        self._asked: set[Hashable] = set()
        self._said: Mapping[str, Any] = {}
        self._headers: Mapping[str, str] = {}
        self._usage: Mapping[str, Any] = {"prompt_tokens": 0, "total_tokens": 0}

    def begin(self, missing: Sequence[Request]) -> list[Item]:
        """Return the items of the *missing* requests."""
        items = [request.body[1] for request in missing]  # type: ignore[index]  # made in Batch.of
        self._asked.update(map(item_key, items))
        return items

    def read(self, upstream: Upstream[Any], items: Sequence[Item]) -> list[Vector]:
        """Return the vectors that upstream gave for *items*, in their order."""
        if upstream.status != _OK:
            raise _PassedError(upstream)
        found = vectors_of(self._batch, upstream.content, len(items))
        if found is None:
            # An answer to the whole batch needs no merging.
            raise _PassedError(upstream) if self._batch.content(items) is None else _UnmergeableError
        self._said, vectors = found
        self._headers = kept(upstream.headers)
        self._usage = _added(self._usage, self._said.get("usage"))
        return vectors

    def answer(self, vectors: Sequence[Vector]) -> Embedded[Any]:
        """Return the batch's answer in its caller's format; its usage is what was paid for it now."""
        body = merged(self._batch, self._said, vectors, self._usage) if are_alike(vectors) else None
        if body is None:
            raise _UnmergeableError
        headers = {**self._headers, "content-type": "application/json"}
        hits = sum(item_key(item) not in self._asked for item in self._batch.items)
        return Embedded(None, headers, body, hits, len(vectors))

    def passed(self, upstream: Upstream[R]) -> Embedded[R]:
        """Return the answer that is what upstream said."""
        return Embedded(upstream.response, {}, b"", 0, len(self._batch.items))

    def asks_whole_after(self, error: Exception) -> bool:
        """
        Return whether the whole batch is to be asked for: nothing could be merged, or *error* is another caller's.

        That one belongs to the other's credential and connection; this caller is given what upstream says to it.
        """
        if isinstance(error, _UnmergeableError):
            return True
        if isinstance(error, AskonceError):
            return isinstance(error, LeaderFailed)
        return error is not self.error


def _added(usage: Mapping[str, Any], further: object) -> Mapping[str, Any]:
    """Return the sum of two reports of usage: a batch may need two calls."""
    if not isinstance(further, Mapping):
        return usage
    added = {**usage, **further}
    for name in usage.keys() & further.keys():
        if isinstance(usage[name], int) and isinstance(further[name], int):
            added[name] = usage[name] + further[name]
    return added
