"""
A model's own class, with its calls cached: a subclass that is put in the class's place.

To the application it is the same class: name, module, fields, dumps and hashes stay, ``isinstance`` holds.  All that is
ours stands on the subclass; a field, or a key in the instance's ``__dict__``, would change ``to_dict()`` and with it the
hash of an ingestion pipeline.  One subclass is made for a class and a cache, and kept: it costs milliseconds.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR

from askonce import Cache, ConfigurationError

from ._calls import ModelCall, acall, call
from ._embedding import EMBEDDING_METHODS, EmbeddingCall, EmbeddingMethod, aembed, embed
from ._hits import METHODS, Method
from ._keys import base_of, note_overwritten
from ._live import astream, stream

M = TypeVar("M", bound=BaseLLM | BaseEmbedding)

_lock: Final = threading.RLock()
_classes: dict[tuple[type[Any], int, bool], type[Any]] = {}
#: The cache of ``install``, for whoever attaches without naming one.
_default: list[Cache] = []


def attach(model: M, cache: Cache | None = None, *, count_tokens_on_hit: bool = True) -> M:
    """
    Cache the calls of *model*, in place, and return it; of a ``StructuredLLM`` those of its inner model.

    Without a *cache* it is the one of ``install``, else ``askonce.Cache()``.  ``count_tokens_on_hit=False`` keeps hits
    from LlamaIndex's ``TokenCountingHandler``.  Raises ConfigurationError for what is no model, or no Cache.
    """
    target = _target(model)
    cache = _cache(cache)
    _swap(target, cached_class(type(target), cache, count_tokens_on_hit=count_tokens_on_hit))
    note_overwritten(target)
    return model


def detach(model: M) -> M:
    """Undo ``attach``, in place, and return the model; one that is not attached stays as it is."""
    target = _target(model)
    _swap(target, base_of(type(target)))
    return model


def wrap(model: M, cache: Cache | None = None, *, count_tokens_on_hit: bool = True) -> M:
    """Return a copy of *model* whose calls are cached, as by ``attach``; the model itself stays as it is."""
    copied = cast("M", model.model_copy())
    structured: Any = copied
    if isinstance(structured, StructuredLLM):
        structured.llm = structured.llm.model_copy()
    return attach(copied, cache, count_tokens_on_hit=count_tokens_on_hit)


def cache_of(model: object) -> Cache | None:
    """Return the cache that *model* is attached to, None if it is to none."""
    cache: Cache | None = getattr(type(model), "__askonce_cache__", None)
    return cache


def cached_class(cls: type[Any], cache: Cache, *, count_tokens_on_hit: bool = True) -> type[Any]:
    """Return the subclass of *cls* that caches in *cache*."""
    cls = base_of(cls)
    with _lock:
        place = cls, id(cache), count_tokens_on_hit
        if place not in _classes:
            _classes[place] = _make(cls, cache, count_tokens_on_hit)
        return _classes[place]


def retire(cache: Cache) -> None:
    """Let the calls of all models that are attached to *cache* pass, wherever they are."""
    with _lock:
        for place in [place for place, cls in _classes.items() if cls.__dict__["__askonce_cache__"] is cache]:
            _classes.pop(place).__askonce_cache__ = None
        if _default == [cache]:
            _default.clear()


def use_by_default(cache: Cache) -> None:
    """Make *cache* the one of whoever attaches without naming one."""
    _default[:] = [cache]


def _cache(given: Cache | None) -> Cache:
    if given is None:
        with _lock:
            if not _default:
                _default.append(Cache())
            return _default[0]
    if not isinstance(given, Cache):
        raise ConfigurationError(
            f"cache={given!r} is no Cache; give askonce.Cache(url), which serves both colours, or leave it out"
        )
    return given


def _target(model: Any) -> Any:
    target = model.llm if isinstance(model, StructuredLLM) else model
    if not isinstance(target, BaseLLM | BaseEmbedding):
        raise ConfigurationError(
            f"a {type(model).__qualname__} was given: give a LlamaIndex LLM or embedding model"
        )
    return target


def _swap(model: Any, cls: type[Any]) -> None:
    object.__setattr__(model, "__class__", cls)


def _make(cls: type[Any], cache: Cache, count_tokens_on_hit: bool) -> type[Any]:
    names: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": _reduce_ex,
        "__askonce_base__": cls,
        "__askonce_cache__": cache,
        "__askonce_counts_tokens__": count_tokens_on_hit,
        "__askonce_spans__": {},
        "__askonce_dispatchers__": {},
    }
    if issubclass(cls, BaseLLM):
        names.update({method.name: _override(method) for method in METHODS})
    else:
        names.update({method.name: _embedding_override(method) for method in EMBEDDING_METHODS})
    metaclass: Any = type(cls)
    made: type[Any] = metaclass(cls.__name__, (cls,), names)
    return made


def _parent(model: Any, name: str) -> Callable[..., Any]:
    """Return a method as the base of our subclass has it, also where the application has subclassed ours."""
    owner = next(cls for cls in type(model).__mro__ if "__askonce_base__" in cls.__dict__)
    method: Callable[..., Any] = getattr(super(owner, model), name)
    return method


def _override(method: Method) -> Callable[..., Any]:
    answer = {(False, False): call, (False, True): acall, (True, False): stream, (True, True): astream}[
        method.streams, method.awaits
    ]

    def override(self: Any, *args: Any, **kwargs: Any) -> Any:
        cache: Cache | None = type(self).__askonce_cache__
        if cache is None:
            return _parent(self, method.name)(*args, **kwargs)
        return answer(ModelCall(cache, self, method, _parent, args, kwargs))

    async def aoverride(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await override(self, *args, **kwargs)

    return _named(aoverride if method.awaits else override, method.name)


def _embedding_override(method: EmbeddingMethod) -> Callable[..., Any]:
    answer = aembed if method.awaits else embed

    def override(self: Any, *args: Any, **kwargs: Any) -> Any:
        parent, cache = _parent(self, method.name), cache_of(self)
        if cache is None or kwargs or len(args) != 1:  # some parameter of its own
            return parent(*args, **kwargs)
        return answer(EmbeddingCall(cache, self, method, parent, args[0]))

    async def aoverride(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await override(self, *args, **kwargs)

    return _named(aoverride if method.awaits else override, method.name)


def _named(override: Any, name: str) -> Callable[..., Any]:
    override.__name__ = name
    # Else LlamaIndex decorates it when the class is made, and a miss would show two spans.
    setattr(override, DISPATCHER_SPAN_DECORATED_ATTR, True)
    named: Callable[..., Any] = override
    return named


# --- to another process -------------------------------------------------------------------------------------------

#: The caches that came by pickle, by what they are pickled as: a process opens each of them once.
_opened: dict[bytes, Cache] = {}


def _reduce_ex(self: Any, _protocol: object) -> tuple[Any, ...]:
    # A class with the name of its base cannot be pickled by its name.
    cache = cache_of(self)
    return _rebuilt, (
        base_of(type(self)),
        self.__getstate__(),
        None if cache is None else _pickled(cache),
        type(self).__askonce_counts_tokens__,
    )


def _pickled(cache: Cache) -> bytes | None:
    """Return the configuration of *cache*; None if it cannot travel: then the model arrives plain."""
    try:
        data = pickle.dumps(cache)
    except Exception:  # noqa: BLE001  it was made from client=, or holds a function without a name
        return None
    with _lock:
        _opened.setdefault(data, cache)
    return data


def _rebuilt(base: Any, state: Any, data: bytes | None, count_tokens_on_hit: bool) -> Any:
    model = base.__new__(base)
    model.__setstate__(state)
    if data is None:
        return model
    with _lock:
        if data not in _opened:
            _opened[data] = pickle.loads(data)  # noqa: S301  it travelled inside the pickle of the model
        cache = _opened[data]
    return attach(model, cache, count_tokens_on_hit=count_tokens_on_hit)
