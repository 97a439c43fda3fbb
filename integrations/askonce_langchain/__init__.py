"""
askonce for LangChain: every model call is cached in Redis, and no outage of Redis reaches its caller.

    from askonce_langchain import AskonceCache
    from langchain_core.globals import set_llm_cache

    set_llm_cache(AskonceCache("redis://localhost:6379"))
    model.invoke("What is a cache?")  # asked of the model once
    model.stream("What is a cache?")  # answered from Redis, in any process

Of all who ask the same at the same time one calls the model; the others get its answer, or read along its stream.
"""

try:
    import langchain_core as _langchain_core
    import orjson as _orjson
except ModuleNotFoundError as error:
    if error.name not in {"langchain_core", "orjson"}:
        raise
    raise ModuleNotFoundError(
        f"askonce_langchain needs {error.name}: pip install 'askonce[langchain]'", name=error.name
    ) from None

from typing import TYPE_CHECKING

from ._byte_store import AskonceByteStore
from ._cache import AskonceCache, install, uninstall
from ._embeddings import AskonceEmbeddings
from ._message_key import message_key

if TYPE_CHECKING:
    from ._middleware import AskonceMiddleware
    from ._node_cache import AskonceNodeCache

__all__ = [
    "AskonceByteStore",
    "AskonceCache",
    "AskonceEmbeddings",
    "AskonceMiddleware",
    "AskonceNodeCache",
    "install",
    "message_key",
    "uninstall",
]

del _langchain_core, _orjson

#: What needs a package beside langchain-core, loaded when it is asked for.
_LATER = {"AskonceMiddleware": ("_middleware", "langchain"), "AskonceNodeCache": ("_node_cache", "langgraph")}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  for these alone

    module, package = _LATER[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {"langchain", "langgraph"}:
            raise
        raise ModuleNotFoundError(f"{name} needs {package}: pip install {package}", name=package) from None
