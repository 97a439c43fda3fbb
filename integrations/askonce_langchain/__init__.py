"""
askonce for LangChain: every model call is cached in Redis, and no outage of Redis reaches its caller.

    from askonce_langchain import AskonceCache
    from langchain_core.globals import set_llm_cache

    set_llm_cache(AskonceCache("redis://localhost:6379"))
    model.invoke("What is a cache?")  # asked of the model once
    model.invoke("What is a cache?")  # answered from Redis, in any process
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

from ._cache import AskonceCache, install, uninstall

__all__ = ["AskonceCache", "install", "uninstall"]

del _langchain_core, _orjson
