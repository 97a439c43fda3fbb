"""
One call of a language model through the cache.

It is looked up, led or followed by askonce's core; the provider's side of it runs as LlamaIndex has it, under the guard
by which calls that it makes itself, and adapters below, pass.  Nothing that goes wrong here reaches the caller: such a
call passes uncached, and is counted with its reason.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from llama_index.core.base.llms.base import BaseLLM

from askonce import (
    Cache,
    NotCached,
    Request,
    Served,
    Source,
    Uncacheable,
    in_upstream,
    upstream,
)
from askonce.control import current

from ._admission import check
from ._codec import CODEC, Entry
from ._hits import Method, is_watched, show, tagged
from ._keys import chat_request, completion_request
from ._raw import finish_reason, for_call

KIND: Final = "llm"

_log = logging.getLogger("askonce.llama_index")


def is_off() -> bool:
    """Return whether the block around this call asks for no cache at all."""
    control = current()
    return not control.read and not control.write and not control.only_if_cached


def passed(cache: Cache, error: Exception) -> None:
    """
    Count a call that passes uncached because its request could not be made.

    Besides what cannot be told apart it may be a file that cannot be read, or a function of the application's that
    fails: the provider is to say so.  Raises NotCached to a caller who allows no call of the model (RFC 9111, 5.2.1.7).
    """
    cache.bypass("uncacheable" if isinstance(error, Uncacheable) else "error")
    if not isinstance(error, Uncacheable):
        _log.debug("a call passed uncached: %s while its key was made", type(error).__qualname__)
    if current().only_if_cached:
        raise NotCached("only_if_cached: this call of the model cannot be told from others, or is not cached")


class ModelCall:
    """A call of one of the eight methods: who is asked what, and how the parent's method answers it."""

    def __init__(
        self,
        cache: Cache,
        model: BaseLLM,
        method: Method,
        parent_of: Callable[[BaseLLM, str], Callable[..., Any]],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.cache, self.model, self.method = cache, model, method
        self._parent_of, self._args, self._kwargs = parent_of, args, kwargs

    def request(self) -> Request | None:
        """Return the request; None if this call is to pass uncached."""
        if in_upstream(KIND) or is_off():
            return None
        try:
            return self._made()
        except Exception as error:  # noqa: BLE001  see `passed`
            passed(self.cache, error)
            return None

    def _made(self) -> Request:
        make = chat_request if self.method.kind == "chat" else completion_request
        return make(self.model, self._args, self._kwargs)

    def parent(self) -> Any:
        """Call the method as LlamaIndex has it."""
        return self._parent_of(self.model, self.method.name)(*self._args, **self._kwargs)

    def snapshot(self) -> ModelCall:
        """Return this call with arguments of its own, for later."""
        args, kwargs = copy.deepcopy((self._args, dict(self._kwargs)))
        return ModelCall(self.cache, self.model, self.method, self._parent_of, args, kwargs)

    def verify(self, request: Request) -> None:
        """Raise if this call is not what *request* says: the caller has changed a message, or the model."""
        if self.cache.fingerprint(self._made()) != self.cache.fingerprint(request):
            raise RuntimeError("the call was changed since")

    def admit(self, entry: Entry) -> None:
        """Raise Refused for an answer that is not to be stored."""
        check(entry, self.model, self._kwargs)

    def shown(self, value: Callable[[], Any], source: str) -> Any:
        """Return what *value* returns, shown as a hit to whoever watches; of an async method an awaitable."""
        if not is_watched(self.model, self.method):
            return _aready(value) if self.method.awaits else value()
        return show(self.model, self.method, value, source, self._args, self._kwargs)


async def _aready(value: Callable[[], Any]) -> Any:
    return value()


def _is_hit(asked: ModelCall, served: Served[Entry]) -> bool | None:
    """Return whether the answer is that of another call; None if it is, and of no use to this caller."""
    if served.source in {Source.COMPUTED, Source.BYPASSED}:
        return False
    if served.value.read:
        return True
    asked.cache.bypass("shared")  # it could not be written down: the leader's caller has this very object
    return None


def call(asked: ModelCall) -> Any:
    """Answer a call that blocks."""
    request = asked.request()
    if request is None:
        return asked.parent()
    home, own = threading.current_thread(), False

    def compute() -> Entry:
        nonlocal own
        if threading.current_thread() is not home:
            return _refreshed(asked, request)
        own = True
        return _ask(asked)

    try:
        served = asked.cache.serve(request, compute, codec=CODEC, admit=asked.admit, share_errors=False)
    except Uncacheable as error:
        if own:
            raise
        passed(asked.cache, error)
        return asked.parent()
    is_hit = _is_hit(asked, served)
    if is_hit:
        return asked.shown(lambda: for_call(served.value), served.source.value)
    return _ask(asked).answer if is_hit is None else served.value.answer


def _ask(asked: ModelCall) -> Entry:
    with upstream(KIND):
        answer = asked.parent()
    return _entry(answer)


def _entry(answer: Any) -> Entry:
    # A model of the application's may return anything: what is no answer is refused when it is to be stored.
    with suppress(Exception):
        return Entry(answer, finish_reason(answer))
    return Entry(answer)


def _refreshed(asked: ModelCall, request: Request) -> Entry:
    """Ask behind the caller, who may change what was asked meanwhile."""
    later = asked.snapshot()
    with tagged("refresh"):
        entry = _ask(later)
    later.verify(request)
    return entry


async def acall(asked: ModelCall) -> Any:
    """Answer a call that is awaited."""
    request = asked.request()
    if request is None:
        return await asked.parent()
    home, own = asyncio.current_task(), False

    async def compute() -> Entry:
        nonlocal own
        if asyncio.current_task() is not home:
            return await _arefreshed(asked, request)
        own = True
        return await _aask(asked)

    try:
        served = await asked.cache.aio.serve(
            request, compute, codec=CODEC, admit=asked.admit, share_errors=False
        )
    except Uncacheable as error:
        if own:
            raise
        passed(asked.cache, error)
        return await asked.parent()
    is_hit = _is_hit(asked, served)
    if is_hit:
        return await asked.shown(lambda: for_call(served.value), served.source.value)
    return (await _aask(asked)).answer if is_hit is None else served.value.answer


async def _aask(asked: ModelCall) -> Entry:
    with upstream(KIND):
        answer = await asked.parent()
    return _entry(answer)


async def _arefreshed(asked: ModelCall, request: Request) -> Entry:
    later = asked.snapshot()
    with tagged("refresh"):
        entry = await _aask(later)
    later.verify(request)
    return entry
