"""
What a hit shows: the events, spans and callbacks of the method that it answers, as if the model had been called.

LlamaIndex's own decorators produce them, over a function that returns the stored answer.  They are given a stand-in for
the model whose rate limiter asks for nothing.  Every event and span of a hit carries the tag ``askonce.cache``, which
says where the answer came from; in a stream the tag is set around each step and never over one, where it would leak into
its consumer.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms.callbacks import dispatcher as _events
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import active_instrument_tags, instrument_tags
from llama_index_instrumentation.event_handlers import NullEventHandler
from llama_index_instrumentation.span_handlers import NullSpanHandler

#: Where an answer came from, as events and spans show it: ``hit``, ``stale``, ``coalesced``, ``refresh`` ...
TAG: Final = "askonce.cache"


class Method(NamedTuple):
    """One of the public methods in which every call of a language model ends."""

    name: str
    kind: str
    streams: bool
    awaits: bool


METHODS: Final = (
    Method("chat", "chat", streams=False, awaits=False),
    Method("achat", "chat", streams=False, awaits=True),
    Method("stream_chat", "chat", streams=True, awaits=False),
    Method("astream_chat", "chat", streams=True, awaits=True),
    Method("complete", "complete", streams=False, awaits=False),
    Method("acomplete", "complete", streams=False, awaits=True),
    Method("stream_complete", "complete", streams=True, awaits=False),
    Method("astream_complete", "complete", streams=True, awaits=True),
)


def tagged(source: str) -> AbstractContextManager[Any]:
    """Tag what is shown inside with where the answer came from."""
    tags: AbstractContextManager[Any] = instrument_tags({**active_instrument_tags.get(), TAG: source})
    return tags


class _Shim:
    """Stands in for the model inside LlamaIndex's decorators: same payloads, no rate limiter, nothing written to it."""

    rate_limiter = None

    def __init__(self, model: BaseLLM, value: Callable[[], Any]) -> None:
        manager = getattr(model, "callback_manager", None)
        manager = manager if isinstance(manager, CallbackManager) else CallbackManager()
        if not getattr(type(model), "__askonce_counts_tokens__", True):
            manager = copy.copy(manager)  # it shares the map of traces
            manager.handlers = [h for h in manager.handlers if not isinstance(h, TokenCountingHandler)]
        self._model, self.value, self.callback_manager = model, value, manager

    def __getattr__(self, name: str) -> Any:  # to_payload
        return getattr(self._model, name)


#: The shim of the hit that is being shown.  Not an argument: handlers of spans serialise those.
_showing: ContextVar[_Shim] = ContextVar("askonce_llama_index_showing")


# Each is decorated once, and without functools.wraps: LlamaIndex takes a function with __wrapped__ for a decorated one.
@llm_chat_callback()
def _chat(self: _Shim, messages: Any, **kwargs: Any) -> Any:  # noqa: ARG001  for the decorator
    return self.value()


@llm_chat_callback()
async def _achat(self: _Shim, messages: Any, **kwargs: Any) -> Any:  # noqa: ARG001  as above
    return self.value()


@llm_completion_callback()
def _complete(self: _Shim, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG001  as above
    return self.value()


@llm_completion_callback()
async def _acomplete(self: _Shim, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG001  as above
    return self.value()


def _bare(self: _Shim, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG001  as above
    return self.value()


async def _abare(self: _Shim, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG001  as above
    return self.value()


_SHOWN: Final[dict[tuple[str, bool], Callable[..., Any]]] = {
    ("chat", False): _chat,
    ("chat", True): _achat,
    ("complete", False): _complete,
    ("complete", True): _acomplete,
}
#: The code of LlamaIndex's decorators, which take the names of what they decorate but keep their code's.
_DECORATED: Final = frozenset(shown.__code__.co_name for shown in _SHOWN.values())


def span_of(base: type[Any], method: Method) -> Callable[..., Any]:
    """Return a function that opens the span of the method itself: same name, dispatcher and arguments."""
    owners = [cls for cls in base.__mro__ if method.name in cls.__dict__]
    shows = _bare if not method.awaits else _abare
    # A method may leave its events to the one of a parent, which it calls.
    if any(_is_decorated(owner.__dict__[method.name]) for owner in owners):
        shows = _SHOWN[method.kind, method.awaits]

    def bare_span(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG001  the span's instance
        return shows(_showing.get(), *args, **kwargs)

    async def abare_span(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG001  as above
        return await shows(_showing.get(), *args, **kwargs)

    span: Any = abare_span if method.awaits else bare_span
    span.__name__ = method.name
    span.__signature__ = inspect.signature(getattr(base, method.name))
    opened: Callable[..., Any] = get_dispatcher(owners[0].__module__).span(span)
    return opened


def _is_decorated(function: Any) -> bool:
    while function is not None and not isinstance(function, bool):
        if getattr(getattr(function, "__code__", None), "co_name", "") in _DECORATED:
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def is_watched(model: BaseLLM, method: Method) -> bool:
    """Return whether anybody would see what a hit shows; LlamaIndex does its work for handlers that do nothing, too."""
    manager = getattr(model, "callback_manager", None)
    if not isinstance(manager, CallbackManager) or manager.handlers:
        return True
    return _has_handlers(_events) or _has_handlers(_dispatcher(type(model), method.name))


def _dispatcher(cls: Any, name: str) -> Any:
    """Return the dispatcher of the module that defines a method."""
    known = cls.__askonce_dispatchers__
    if name not in known:
        owner = next(base for base in cls.__askonce_base__.__mro__ if name in base.__dict__)
        known[name] = get_dispatcher(owner.__module__)
    return known[name]


#: Handlers that LlamaIndex itself adds where there is none.
_IDLE: Final = frozenset((NullEventHandler, NullSpanHandler))


def _has_handlers(dispatcher: Any) -> bool:
    while dispatcher is not None:
        for handlers in (dispatcher.event_handlers, dispatcher.span_handlers):
            if not _IDLE.issuperset(map(type, handlers)):
                return True
        dispatcher = dispatcher.parent if dispatcher.propagate else None
    return False


def show(
    model: BaseLLM, method: Method, value: Callable[[], Any], source: str, args: Any, kwargs: Any
) -> Any:
    """Return what *value* returns, shown as a call of the method; of an async method an awaitable."""
    if method.awaits:
        return _ashow(model, method, value, source, args, kwargs)
    reset = _showing.set(_Shim(model, value))
    try:
        with tagged(source):
            shown = _bound(model, method)(*args, **kwargs)
    finally:
        _showing.reset(reset)
    return steps(shown, lambda: tagged(source)) if method.streams else shown


async def _ashow(
    model: BaseLLM, method: Method, value: Callable[[], Any], source: str, args: Any, kwargs: Any
) -> Any:
    reset = _showing.set(_Shim(model, value))
    try:
        with tagged(source):
            shown = await _bound(model, method)(*args, **kwargs)
    finally:
        _showing.reset(reset)
    return asteps(shown, lambda: tagged(source)) if method.streams else shown


def _bound(model: BaseLLM, method: Method) -> Callable[..., Any]:
    cls: Any = type(model)
    span = cls.__askonce_spans__.get(method.name)
    if span is None:
        span = cls.__askonce_spans__[method.name] = span_of(cls.__askonce_base__, method)
    bound: Callable[..., Any] = span.__get__(model, cls)
    return bound


def steps(
    chunks: Generator[Any, None, None], context: Callable[[], AbstractContextManager[Any]]
) -> Generator[Any, None, None]:
    """Yield the chunks, each produced inside a *context* of its own, and close their producer at the end."""
    try:
        while True:
            with context():
                try:
                    chunk = next(chunks)
                except StopIteration:
                    return
            yield chunk
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()


async def asteps(
    chunks: AsyncGenerator[Any, None], context: Callable[[], AbstractContextManager[Any]]
) -> AsyncGenerator[Any, None]:
    """Do what `steps` does."""
    try:
        while True:
            with context():
                try:
                    chunk = await anext(chunks)
                except StopAsyncIteration:
                    return
            yield chunk
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
