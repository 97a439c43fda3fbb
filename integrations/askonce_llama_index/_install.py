"""
``install``: every model that is built from now on is cached, and the two that ``Settings`` holds.

The constructors of LlamaIndex's two base classes are wrapped, so that classes of later imports are served too.  What it
does not reach: models built before and not in ``Settings``, ``model_construct``, and ``MultiModalLLM``, which has
another base; ``attach`` serves the first two.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.settings import Settings

from askonce import Cache, ConfigurationError

from ._attach import attach, cache_of, retire, use_by_default

_log = logging.getLogger("askonce.llama_index")
_lock: Final = threading.RLock()


class _Installed:
    """What is installed: the cache for models of each base class, and the constructors as they were."""

    def __init__(self) -> None:
        self.caches: dict[type[Any], tuple[Cache, bool]] = {}
        self.constructors: dict[type[Any], tuple[Any, Any]] = {}


_installed: Final = _Installed()


def install(
    url_or_cache: str | Cache | None = None,
    *,
    llm: bool = True,
    embeddings: bool = True,
    count_tokens_on_hit: bool = True,
) -> Cache:
    """
    Cache every model of LlamaIndex that is built from now on, and those in ``Settings``; return the cache.

    With a URL, or none, the cache is ``askonce.Cache(url)``; one that is given is used as it is.  ``llm`` and
    ``embeddings`` choose which models.  ``count_tokens_on_hit=False`` keeps hits from ``TokenCountingHandler``.
    Installed again, the new cache takes the place of the old one for later models and for ``Settings``.
    Raises ConfigurationError for what is neither a URL nor a Cache.
    """
    if url_or_cache is None or isinstance(url_or_cache, str):
        cache = Cache(url_or_cache)
    elif isinstance(url_or_cache, Cache):
        cache = url_or_cache
    else:
        kind = type(url_or_cache).__qualname__
        raise ConfigurationError(
            f"a {kind} was given: give a URL, an askonce.Cache (it serves both colours), or nothing"
        )
    with _lock:
        use_by_default(cache)
        for root, wanted in ((BaseLLM, llm), (BaseEmbedding, embeddings)):
            _installed.caches.pop(root, None)
            if wanted:
                _installed.caches[root] = cache, count_tokens_on_hit
                _hook(root)
        for model in (Settings._llm, Settings._embed_model):
            if model is not None:
                _attached(model)
    return cache


def uninstall() -> None:
    """
    Give LlamaIndex its own constructors back, and let every model of the installed cache pass uncached.

    Models that are attached to other caches stay so.  Without an ``install`` before it does nothing.
    """
    with _lock:
        for cache, _ in _installed.caches.values():
            retire(cache)
        _installed.caches.clear()
        while _installed.constructors:
            root, (original, stand_in) = _installed.constructors.popitem()
            if (
                root.__dict__.get("__init__") is stand_in
            ):  # else somebody stands in for ours: it does nothing now
                if original is None:
                    del root.__init__  # it was inherited
                else:
                    root.__init__ = original


def _hook(root: type[Any]) -> None:
    if root in _installed.constructors:
        return
    inherited = root.__init__

    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        inherited(self, *args, **kwargs)
        if cache_of(self) is None and not isinstance(self, StructuredLLM):
            _attached(self)

    # Else pydantic takes it for the constructor of the application, which it calls another way.
    construct.__pydantic_base_init__ = True  # type: ignore[attr-defined]
    _installed.constructors[root] = root.__dict__.get("__init__"), construct
    root.__init__ = construct


def _attached(model: Any) -> None:
    """Attach a model to what is installed for it; one that cannot be stays as it is, and is counted."""
    for root, (cache, count_tokens_on_hit) in list(_installed.caches.items()):
        if isinstance(model, root):
            try:
                attach(model, cache, count_tokens_on_hit=count_tokens_on_hit)
            except Exception as error:  # noqa: BLE001  a class that cannot be subclassed
                cache.bypass("class")
                _log.warning("%s is not cached: %s", type(model).__qualname__, type(error).__qualname__)
