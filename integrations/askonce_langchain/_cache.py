"""
LangChain's ``BaseCache`` over an askonce cache.

LangChain has no ``try`` around its cache: a ``lookup`` that raises fails the call, an ``update`` that raises loses
an answer that is paid already.  So neither raises, whatever Redis does.  What passes uncached is counted with its
reason: requests in ``stats().bypassed``, answers in ``stats().rejected``.  A cache made with ``strict=True`` raises
askonce's own errors, for tests and migrations; ``control(only_if_cached=True)`` makes a miss raise ``NotCached``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.outputs import Generation

from askonce import AskonceError, Cache, NotCached, Served, Uncacheable
from askonce.control import current

from ._admission import refusal
from ._codec import GenerationsCodec, mark
from ._keys import request
from ._shape import as_invoked

_CODEC = GenerationsCodec()
_log = logging.getLogger("askonce.langchain")


class AskonceCache(BaseCache):
    """
    Serve LangChain's model calls from Redis: ``set_llm_cache(AskonceCache("redis://localhost:6379"))``.

    With a URL, or none, the options are those of ``askonce.Cache``.  A ``Cache`` that is given is used as it is.
    ``usage_on_hit="zero"`` reports no tokens for an answer that cost none.

    An API key is not part of what LangChain tells a cache: tenants that must not share answers need namespaces.
    """

    def __init__(
        self,
        url_or_cache: str | Cache | None = None,
        *,
        usage_on_hit: Literal["keep", "zero"] = "keep",
        **options: Any,
    ) -> None:
        if usage_on_hit not in {"keep", "zero"}:
            raise ValueError(f"usage_on_hit={usage_on_hit!r} is not allowed: give 'keep' or 'zero'")
        if isinstance(url_or_cache, Cache):
            if options:
                given = ", ".join(f"{name}=" for name in options)
                raise TypeError(f"{given} given with a Cache: options belong to the Cache itself")
            self._cache = url_or_cache
        elif url_or_cache is None or isinstance(url_or_cache, str):
            self._cache = Cache(url_or_cache, **options)
        else:
            kind = type(url_or_cache).__qualname__
            raise TypeError(
                f"a {kind} was given: give a URL, an askonce.Cache (it serves both colours), or nothing"
            )
        self._keep_usage = usage_on_hit == "keep"

    @property
    def cache(self) -> Cache:
        """The askonce cache behind this one: for ``stats``, ``bump``, ``invalidate_tag``, ``close``."""
        return self._cache

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Return the stored generations, new objects in a list that is never empty; None if there are none."""
        with _Spared(self._cache.bypass, "uncacheable"):
            served = self._cache.lookup(request(prompt, llm_string), codec=_CODEC)
            if served is not None:
                return self._hit(served)
        _check_the_miss()
        return None

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Return what ``lookup`` returns, without a thread."""
        with _Spared(self._cache.bypass, "uncacheable"):
            served = await self._cache.aio.lookup(request(prompt, llm_string), codec=_CODEC)
            if served is not None:
                return self._hit(served)
        _check_the_miss()
        return None

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Store the generations, unless they are not worth keeping or would not come back as they are."""
        with _Spared(self._cache.reject):
            asked = request(prompt, llm_string)
            if (kept := self._kept(return_val, llm_string)) is not None:
                self._cache.store(asked, kept, codec=_CODEC)

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Do what ``update`` does, without a thread."""
        with _Spared(self._cache.reject):
            asked = request(prompt, llm_string)
            if (kept := self._kept(return_val, llm_string)) is not None:
                await self._cache.aio.store(asked, kept, codec=_CODEC)

    def clear(self, **kwargs: Any) -> None:  # noqa: ARG002  other caches of LangChain take some; here all goes
        """Remove every entry of the namespace, and nothing else from the database."""
        with _Spared(self._cache.bypass):
            self._cache.clear()

    async def aclear(self, **kwargs: Any) -> None:  # noqa: ARG002  as above
        """Do what ``clear`` does, without a thread."""
        with _Spared(self._cache.bypass):
            await self._cache.aio.clear()

    def _hit(self, served: Served[list[Generation]]) -> list[Generation]:
        mark(served.value, served.source.value, served.age, keep_usage=self._keep_usage)
        return served.value

    def _kept(self, generations: RETURN_VAL_TYPE, llm_string: str) -> Sequence[Generation] | None:
        why = refusal(generations)
        kept = None if why else as_invoked(generations, llm_string)
        if kept is None:
            self._cache.reject(why or "shape")
        return kept


def _check_the_miss() -> None:
    """Raise for a caller who allows no call of the model (RFC 9111, 5.2.1.7)."""
    if current().only_if_cached:
        raise NotCached("only_if_cached: nothing servable is stored for this call of the model")


class _Spared:
    """
    Spare the caller what goes wrong in the cache, and count it; a strict cache's own errors pass.

    An update has no reason for ``Uncacheable``: of its request the lookup has counted it, of its answer the core.
    """

    __slots__ = ("_count", "_uncacheable")

    def __init__(self, count: Callable[[str], None], uncacheable: str | None = None) -> None:
        self._count = count
        self._uncacheable = uncacheable

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, Uncacheable):
            if self._uncacheable is not None:
                self._count(self._uncacheable)
            return True
        if isinstance(error, AskonceError) or not isinstance(error, Exception):
            return False  # also a cancellation: it is the caller's
        # A defect of this adapter must not cost an answer.  Its text is left out: it may quote what was asked.
        self._count("error")
        _log.error("%s was kept from a model's caller, who went uncached", type(error).__qualname__)
        return True
