"""
LangChain's ``BaseCache`` over an askonce cache.

LangChain has no ``try`` around its cache: a ``lookup`` that raises fails the call, an ``update`` that raises loses
an answer that is paid already.  So neither raises, whatever Redis does.  What passes uncached is counted with its
reason: requests in ``stats().bypassed``, answers in ``stats().rejected``.  A cache made with ``strict=True`` raises
askonce's own errors, for tests and migrations; ``control(only_if_cached=True)`` makes a miss raise ``NotCached``.

A lookup made by a call that the hooks see (``_hooks``) leads or waits: of all who ask the same at the same time one
calls the model.  One made by anybody else just looks, for nothing would tell that its call has failed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Literal

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.outputs import Generation

from askonce import AskonceError, AsyncLease, Cache, Lease, NotCached, Source, Uncacheable
from askonce.control import current
from askonce.served import AnyServed

from . import _hooks
from ._admission import refusal
from ._calls import Call, ModelCall, call_of_task, running
from ._codec import GenerationsCodec, copied, mark
from ._given import cache_of
from ._keys import request
from ._live import several_answers
from ._shape import as_invoked

_CODEC: Final = GenerationsCodec()
_log = logging.getLogger("askonce.langchain")


class AskonceCache(BaseCache):
    """
    Serve LangChain's model calls from Redis: ``set_llm_cache(AskonceCache("redis://localhost:6379"))``.

    With a URL, or none, the options are those of ``askonce.Cache``.  A ``Cache`` that is given is used as it is.

    ``hooks``: install the hooks (once per process) by which streams are cached too, one caller calls the model for
    all who ask the same, what is stored stands in for a model that fails (``Policy.stale_if_error``), and config
    metadata control the cache.  ``live_parameters``: put into the key what a model says of itself at each call,
    instead of what LangChain wrote down of it at the first.  ``usage_on_hit="zero"`` reports no tokens for an answer
    that cost none.  ``replay="pieces"`` gives a stored answer to ``stream`` in the pieces in which it came, not whole.

    An API key is not part of what LangChain tells a cache: tenants that must not share answers need namespaces.
    """

    def __init__(
        self,
        url_or_cache: str | Cache | None = None,
        *,
        hooks: bool = True,
        live_parameters: bool = True,
        usage_on_hit: Literal["keep", "zero"] = "keep",
        replay: Literal["whole", "pieces"] = "whole",
        **options: Any,
    ) -> None:
        _check_word("usage_on_hit", usage_on_hit, "keep", "zero")
        _check_word("replay", replay, "whole", "pieces")
        self._cache = cache_of(url_or_cache, options)
        self._keep_usage = usage_on_hit == "keep"
        policy = self._cache.policy
        #: Whether an answer past its freshness may be served in place of a model's error.
        self.stands_in = bool(policy.stale_if_error or policy.stale_while_revalidate)
        self.live_parameters = live_parameters
        self.hooks = hooks
        self.replay = replay
        if hooks:
            _hooks.install(AskonceCache)

    @property
    def cache(self) -> Cache:
        """The askonce cache behind this one: for ``stats``, ``bump``, ``invalidate_tag``, ``close``."""
        return self._cache

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Return the stored generations, new objects in a list that is never empty; None if there are none."""
        call = self._call_of_lookup(prompt)
        if call is not None:
            with call.words():
                return self._begin(call, prompt, llm_string)
        with Spared(self._cache.bypass, "uncacheable"):
            served = self._cache.lookup(request(prompt, llm_string), codec=_CODEC)
            if served is not None:
                return self._hit(served)
        _check_the_miss()
        return None

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Return what ``lookup`` returns, without a thread."""
        call = self._call_of_lookup(prompt, call_of_task)
        if call is not None:
            with call.words():
                return await self._abegin(call, prompt, llm_string)
        with Spared(self._cache.bypass, "uncacheable"):
            served = await self._cache.aio.lookup(request(prompt, llm_string), codec=_CODEC)
            if served is not None:
                return self._hit(served)
        _check_the_miss()
        return None

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Store the generations, unless they are not worth keeping or would not come back as they are."""
        if (call := self._call_of_update(prompt)) is not None:
            self._finish(call, prompt, llm_string, return_val)
            return
        with Spared(self._cache.reject):
            asked = request(prompt, llm_string)
            if (kept := self._kept(return_val, llm_string)) is not None:
                self._cache.store(asked, kept, codec=_CODEC)

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Do what ``update`` does, without a thread."""
        if (call := self._call_of_update(prompt, call_of_task)) is not None:
            await self._afinish(call, prompt, llm_string, return_val)
            return
        with Spared(self._cache.reject):
            asked = request(prompt, llm_string)
            if (kept := self._kept(return_val, llm_string)) is not None:
                await self._cache.aio.store(asked, kept, codec=_CODEC)

    def clear(self, **kwargs: Any) -> None:  # noqa: ARG002  other caches of LangChain take some; here all goes
        """Remove every entry of the namespace, and nothing else from the database."""
        with Spared(self._cache.bypass):
            self._cache.clear()

    async def aclear(self, **kwargs: Any) -> None:  # noqa: ARG002  as above
        """Do what ``clear`` does, without a thread."""
        with Spared(self._cache.bypass):
            await self._cache.aio.clear()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Be the same cache in another process, hooks included."""
        vars(self).update(state)
        if self.hooks:
            _hooks.install(AskonceCache)

    # --- for a call that the hooks see ------------------------------------------------------------------------

    def _asked(self, call: Call, prompt: str, llm_string: str) -> object:
        """Return the request of *call*; raise Uncacheable if it cannot be told."""
        return request(prompt, llm_string, call.live() if self.live_parameters else None)

    def _request(self, call: ModelCall, prompt: str, llm_string: str) -> object | None:
        """Return the request of a stream; None, counted, if it is to pass uncached."""
        with Spared(self._cache.bypass, "uncacheable"):
            if is_off():
                return None
            if not several_answers(call.model, call.arguments):
                return self._asked(call, prompt, llm_string)
            self._cache.bypass("several answers")  # a stream of those is none of any
        _check_the_miss()
        return None

    def _begin(self, call: Call, prompt: str, llm_string: str) -> list[Generation] | None:
        """Return what is stored, or what another caller computes now; None if *call* is to compute it."""
        with Spared(self._cache.bypass, "uncacheable"):
            if is_off():
                return None
            asked = self._asked(call, prompt, llm_string)
            outcome = self._cache.begin(asked, share_errors=False, codec=call.codec)
            if not isinstance(outcome, Lease):
                hit = self._hit(outcome)
                call.served = hit is not None
                return hit
            call.lead(prompt, outcome)
            return None
        _check_the_miss()
        return None

    async def _abegin(self, call: Call, prompt: str, llm_string: str) -> list[Generation] | None:
        """Return what ``begin`` returns."""
        with Spared(self._cache.bypass, "uncacheable"):
            if is_off():
                return None
            asked = self._asked(call, prompt, llm_string)
            outcome = await self._cache.aio.begin(asked, share_errors=False, codec=call.codec)
            if not isinstance(outcome, AsyncLease):
                hit = self._hit(outcome)
                call.served = hit is not None
                return hit
            call.lead(prompt, outcome)
            return None
        _check_the_miss()
        return None

    def _stale(
        self, call: Call, error: Exception, prompts: Sequence[str] | None = None
    ) -> list[list[Generation]] | None:
        """Return what is stored for each of *prompts*, or all that *call* leads; None if *error* is to be raised."""
        found = []
        for lease in self._failed(call, error, prompts):
            hit = None
            # The model's own error is the one to be seen.
            with contextlib.suppress(AskonceError), Spared(self._cache.bypass):
                served = lease.fail(error) if isinstance(lease, Lease) else None
                hit = None if served is None else self._hit(served)
            if hit is None:
                return None
            found.append(hit)
        call.served = bool(found)
        return found or None

    async def _astale(
        self, call: Call, error: Exception, prompts: Sequence[str] | None = None
    ) -> list[list[Generation]] | None:
        """Do what ``_stale`` does."""
        found = []
        for lease in self._failed(call, error, prompts):
            hit = None
            with contextlib.suppress(AskonceError), Spared(self._cache.bypass):  # as above
                served = await lease.fail(error) if isinstance(lease, AsyncLease) else None
                hit = None if served is None else self._hit(served)
            if hit is None:
                return None
            found.append(hit)
        call.served = bool(found)
        return found or None

    def _failed(
        self, call: Call, error: Exception, prompts: Sequence[str] | None
    ) -> list[Lease | AsyncLease]:
        """Return the leases that *call* has for *prompts*, in their order; none if *error* is to be raised."""
        if not self.stands_in or not call.may_stand_in(error):
            return []
        leads = call.leads()
        if prompts is not None and [led.prompt for led in leads] != list(prompts):
            return []  # not all of them went through the cache
        return [led.lease for led in leads]

    def _finish(self, call: Call, prompt: str, llm_string: str, generations: Sequence[Generation]) -> None:
        """Store the answer that *call* computed, and serve those who wait for it."""
        lease = call.led(prompt)
        if not isinstance(lease, Lease):
            return  # it passed uncached
        with Spared(self._cache.reject), lease:
            if (shaped := self._shaped(call.shaped(generations, llm_string))) is not None:
                lease.finish(shaped)

    async def _afinish(
        self, call: Call, prompt: str, llm_string: str, generations: Sequence[Generation]
    ) -> None:
        """Do what ``finish`` does."""
        lease = call.led(prompt)
        if not isinstance(lease, AsyncLease):
            return
        with Spared(self._cache.reject):
            async with lease:
                if (shaped := self._shaped(call.shaped(generations, llm_string))) is not None:
                    await lease.finish(shaped)

    def _marked(self, generations: list[Generation], source: str, age: float) -> list[Generation]:
        """Return the generations of a hit, marked as one."""
        mark(generations, source, age, keep_usage=self._keep_usage)
        return generations

    def _call_of_lookup(
        self, prompt: str, unseen: Callable[[object], Call | None] = lambda _: None
    ) -> Call | None:
        """Return the call that this lookup is made by, if it is seen to end."""
        call = running.get() or unseen(self)
        return call if call is not None and call.cache is self and call.looks_up(prompt) else None

    def _call_of_update(
        self, prompt: str, unseen: Callable[[object], Call | None] = lambda _: None
    ) -> Call | None:
        """Return the call that has looked up what is updated now."""
        call = running.get() or unseen(self)
        return call if call is not None and call.cache is self and call.looked_up(prompt) else None

    def _hit(self, served: AnyServed) -> list[Generation] | None:
        value = served.value
        if served.source is Source.COALESCED:  # it may be the leader's own, which the leader's caller has too
            value = copied(value)
            if value is None:
                return None
        return self._marked(value, served.source.value, served.age)

    def _shaped(self, shaped: Sequence[Generation] | None) -> Sequence[Generation] | None:
        if shaped is None:
            self._cache.reject("shape")
        return shaped

    def _kept(self, generations: RETURN_VAL_TYPE, llm_string: str) -> Sequence[Generation] | None:
        if why := refusal(generations):
            self._cache.reject(why)
            return None
        return self._shaped(as_invoked(generations, llm_string))


def is_off() -> bool:
    """Return whether the block around this call asks for no cache at all."""
    control = current()
    return not control.read and not control.write and not control.only_if_cached


def _check_word(name: str, given: object, *allowed: str) -> None:
    if given not in allowed:
        words = " or ".join(map(repr, allowed))
        raise ValueError(f"{name}={given!r} is not allowed: give {words}")


def _check_the_miss() -> None:
    """Raise for a caller who allows no call of the model (RFC 9111, 5.2.1.7)."""
    if current().only_if_cached:
        raise NotCached("only_if_cached: nothing servable is stored for this call of the model")


class Spared:
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


def install(url_or_cache: str | Cache | AskonceCache | None = None, **options: Any) -> AskonceCache:
    """Make the cache, hooks included, and make it LangChain's global one; return it.  ``uninstall`` undoes all."""
    if not isinstance(url_or_cache, AskonceCache):
        url_or_cache = AskonceCache(url_or_cache, **options)
    elif options:
        given = ", ".join(f"{name}=" for name in options)
        raise TypeError(f"{given} given with an AskonceCache: options belong to its own constructor")
    if url_or_cache.hooks:
        _hooks.install(AskonceCache)
    set_llm_cache(url_or_cache)
    return url_or_cache


def uninstall() -> None:
    """Give LangChain its own methods back, and have no global cache any more if it is an ``AskonceCache``."""
    _hooks.uninstall()
    if isinstance(get_llm_cache(), AskonceCache):
        set_llm_cache(None)
