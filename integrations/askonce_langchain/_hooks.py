"""
The places where LangChain is hooked into, once per process.

LangChain asks its cache with two strings that say too little, never for a stream, and never tells it of a failure.
Each hook stands in for one method of LangChain's two base classes of models, so that it serves every model class,
those of later imports too, and touches no model object.  It calls the method that it stands in for, and acts only
if the model's cache is an ``AskonceCache`` with hooks.

A method that is gone or takes other arguments than are known here is left as it is, with one warning.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from langchain_core.caches import BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseLanguageModel
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import ChatResult

from ._calls import ModelCall, leave, metadata_of, running
from ._stale import Standing
from ._streams import ChatView, CompletionView
from ._tokens import atell, tell

if TYPE_CHECKING:
    from ._cache import AskonceCache

_log = logging.getLogger("askonce.langchain")
_lock: Final = threading.Lock()


class _Hook(NamedTuple):
    """A method of LangChain, the arguments that it is known to take, and what makes its stand-in."""

    owner: type
    name: str
    parameters: tuple[str, ...]
    make: Callable[[Callable[..., Any]], Callable[..., Any]]


#: What stands in for what: ``{(class, method): (original, stand-in)}``.
_installed: dict[tuple[type, str], tuple[Any, Any]] = {}
_warned: set[tuple[type, str]] = set()
#: The class of the caches that are served: empty while the hooks are not installed.
_served: list[type] = []


def install(kind: type[AskonceCache]) -> None:
    """Install what is not installed yet, for caches of *kind*."""
    with _lock:
        if _served:
            return
        _served.append(kind)
        for hook in _hooks():
            _install(hook)


def uninstall() -> None:
    """Give LangChain its own methods back."""
    with _lock:
        _served.clear()
        while _installed:
            (owner, name), (original, stand_in) = _installed.popitem()
            # Else somebody else stands in for ours, which does nothing any more.
            if owner.__dict__.get(name) is stand_in:
                setattr(owner, name, original)


def _install(hook: _Hook) -> None:
    place = hook.owner, hook.name
    original = hook.owner.__dict__.get(hook.name)
    if original is None or not _takes(original, hook.parameters):
        if place not in _warned:
            _warned.add(place)
            _log.warning(
                "%s.%s is not what this version of askonce knows: what it does goes without the hooks",
                hook.owner.__name__,
                hook.name,
            )
        return
    stand_in = functools.wraps(original)(hook.make(original))
    _installed[place] = original, stand_in
    setattr(hook.owner, hook.name, stand_in)


def _takes(function: Callable[..., Any], parameters: tuple[str, ...]) -> bool:
    try:
        names = tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False
    return names[: len(parameters)] == parameters


def cache_of(model: BaseLanguageModel[Any]) -> AskonceCache | None:
    """Return the cache of *model*, found as LangChain finds it, if the hooks serve it."""
    cache = model.cache
    if cache is False or not _served:
        return None
    found: Any = cache if isinstance(cache, BaseCache) else get_llm_cache()
    if not isinstance(found, _served[0]):
        return None
    served: AskonceCache = found  # type: ignore[assignment]  # _served holds that class
    return served if served.hooks else None


# --- calls that LangChain looks up itself -------------------------------------------------------------------------


def _chat_call(original: Callable[..., Any]) -> Callable[..., Any]:
    def hooked(
        self: BaseChatModel, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Any:
        cache = cache_of(self)
        if cache is None:
            return original(self, messages, stop=stop, run_manager=run_manager, **kwargs)
        call = ModelCall(cache, self, stop, kwargs, (getattr(run_manager, "metadata", None),))
        if cache.stands_in:
            call.listened(run_manager)
        outer = running.set(call)
        try:
            result = original(self, messages, stop=stop, run_manager=run_manager, **kwargs)
        except Exception as error:
            stale = cache._stale(call, error)
            if stale is None:
                raise
            result = _as_hit(self, stale[0], run_manager, kwargs)
        finally:
            leave(outer)
            call.end()
        if call.served:
            tell(self, result, run_manager, kwargs, pieces=cache.replay == "pieces")
        return result

    return hooked


def _async_chat_call(original: Callable[..., Any]) -> Callable[..., Any]:
    async def hooked(
        self: BaseChatModel, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Any:
        cache = cache_of(self)
        if cache is None:
            return await original(self, messages, stop=stop, run_manager=run_manager, **kwargs)
        call = ModelCall(cache, self, stop, kwargs, (getattr(run_manager, "metadata", None),))
        if cache.stands_in:
            call.listened(run_manager)
        outer = running.set(call)
        try:
            result = await original(self, messages, stop=stop, run_manager=run_manager, **kwargs)
        except Exception as error:
            stale = await cache._astale(call, error)
            if stale is None:
                raise
            result = await _aas_hit(self, stale[0], run_manager, kwargs)
        except GeneratorExit:  # collected, its loop gone: nothing can be awaited any more
            call.drop()
            raise
        finally:
            leave(outer)
            await call.aend()
        if call.served:
            await atell(self, result, run_manager, kwargs, pieces=cache.replay == "pieces")
        return result

    return hooked


def _as_hit(model: BaseChatModel, found: Any, run_manager: Any, arguments: Mapping[str, Any]) -> ChatResult:
    """Return what LangChain makes of a hit, as it does."""
    generations = model._convert_cached_generations(found)
    if (replay := getattr(model, "_replay_v2_events_for_cache_hit", None)) is not None:  # langchain-core 1.4
        replay(generations, run_manager=run_manager, **arguments)
    return ChatResult(generations=generations)


async def _aas_hit(
    model: BaseChatModel, found: Any, run_manager: Any, arguments: Mapping[str, Any]
) -> ChatResult:
    """Return what ``_as_hit`` returns."""
    generations = model._convert_cached_generations(found)
    if (replay := getattr(model, "_areplay_v2_events_for_cache_hit", None)) is not None:
        await replay(generations, run_manager=run_manager, **arguments)
    return ChatResult(generations=generations)


def _completion_call(original: Callable[..., Any]) -> Callable[..., Any]:
    def hooked(self: BaseLLM, prompts: Any, stop: Any = None, callbacks: Any = None, **kwargs: Any) -> Any:
        cache = cache_of(self)
        if cache is None or not isinstance(prompts, list):
            return original(self, prompts, stop, callbacks, **kwargs)
        call = ModelCall(cache, self, stop, _bound(kwargs), _metadata_of(self, prompts, callbacks, kwargs))
        outer = running.set(call)
        try:
            model = Standing(self, partial(cache._stale, call), call.listen) if cache.stands_in else self
            return original(model, prompts, stop, callbacks, **kwargs)
        finally:
            leave(outer)
            call.end()

    return hooked


def _async_completion_call(original: Callable[..., Any]) -> Callable[..., Any]:
    async def hooked(
        self: BaseLLM, prompts: Any, stop: Any = None, callbacks: Any = None, **kwargs: Any
    ) -> Any:
        cache = cache_of(self)
        if cache is None or not isinstance(prompts, list):
            return await original(self, prompts, stop, callbacks, **kwargs)
        call = ModelCall(cache, self, stop, _bound(kwargs), _metadata_of(self, prompts, callbacks, kwargs))
        outer = running.set(call)
        try:
            model = Standing(self, partial(cache._astale, call), call.listen) if cache.stands_in else self
            return await original(model, prompts, stop, callbacks, **kwargs)
        except GeneratorExit:  # as above
            call.drop()
            raise
        finally:
            leave(outer)
            await call.aend()

    return hooked


# Event streams: younger than langchain-core 1.3.
_V3: Final = ("_chat_model_stream_v3", "_achat_model_stream_v3")
_OF_THE_RUN: Final = frozenset({"metadata", "run_id", "run_name", "tags"})


def _bound(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are the model's; the others are the run's."""
    return {name: value for name, value in kwargs.items() if name not in _OF_THE_RUN}


def _metadata_of(
    model: BaseLLM, prompts: Sequence[str], callbacks: Any, kwargs: Mapping[str, Any]
) -> list[Mapping[str, Any] | None]:
    """Return the metadata of each prompt's run."""
    given = kwargs.get("metadata")
    several = given if isinstance(given, list) else [given] * len(prompts)
    listeners = callbacks if isinstance(callbacks, list) and len(callbacks) == len(prompts) else None
    return [
        metadata_of(model, metadata, listeners[number] if listeners else callbacks)
        for number, metadata in enumerate(several)
    ]


# --- streams --------------------------------------------------------------------------------------------------------


def _chat_stream(original: Callable[..., Any]) -> Callable[..., Any]:
    def hooked(self: BaseChatModel, input: Any, config: Any = None, **kwargs: Any) -> Any:  # noqa: A002  LangChain's name
        cache = None if isinstance(self, ChatView) else cache_of(self)
        return original(self if cache is None else ChatView(self, cache, config), input, config, **kwargs)

    return hooked


def _completion_stream(original: Callable[..., Any]) -> Callable[..., Any]:
    def hooked(self: BaseLLM, input: Any, config: Any = None, **kwargs: Any) -> Any:  # noqa: A002  as above
        kind: type[Any] = type(self)
        streams = kind._stream is not BaseLLM._stream or (
            original.__name__ == "astream" and kind._astream is not BaseLLM._astream
        )
        # The others stream what `invoke` returns.
        cache = cache_of(self) if streams and not isinstance(self, CompletionView) else None
        return original(
            self if cache is None else CompletionView(self, cache, config), input, config, **kwargs
        )

    return hooked


def _hooks() -> tuple[_Hook, ...]:
    chat = ("self", "messages", "stop", "run_manager")
    completion = ("self", "prompts", "stop", "callbacks")
    stream = ("self", "input", "config")
    return (
        _Hook(BaseChatModel, "_generate_with_cache", chat, _chat_call),
        _Hook(BaseChatModel, "_agenerate_with_cache", chat, _async_chat_call),
        _Hook(BaseLLM, "generate", completion, _completion_call),
        _Hook(BaseLLM, "agenerate", completion, _async_completion_call),
        _Hook(BaseChatModel, "stream", stream, _chat_stream),
        _Hook(BaseChatModel, "astream", stream, _chat_stream),
        *(_Hook(BaseChatModel, name, stream, _chat_stream) for name in _V3 if hasattr(BaseChatModel, name)),
        _Hook(BaseLLM, "stream", stream, _completion_stream),
        _Hook(BaseLLM, "astream", stream, _completion_stream),
    )
