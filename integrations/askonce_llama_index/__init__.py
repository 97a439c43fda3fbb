"""
askonce for LlamaIndex: every call of a language model and of an embedding model is cached in Redis.

    import askonce_llama_index

    askonce_llama_index.install("redis://localhost:6379")
    Settings.llm.complete("What is a cache?")  # asked of the model once
    Settings.llm.complete("What is a cache?")  # answered from Redis, in any process
"""

try:
    import llama_index.core as _llama_index_core
except ModuleNotFoundError as error:
    if error.name not in {"llama_index", "llama_index.core"}:
        raise
    raise ModuleNotFoundError(
        "askonce_llama_index needs llama-index-core: pip install 'askonce[llama-index]'", name=error.name
    ) from None

from ._attach import attach, detach, wrap
from ._install import install, uninstall
from ._kv_store import AskonceKVStore
from ._rules import register

__all__ = ["AskonceKVStore", "attach", "detach", "install", "register", "uninstall", "wrap"]

del _llama_index_core
