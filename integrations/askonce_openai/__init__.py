"""
askonce for the OpenAI SDK, and what else speaks its HTTP to a model (Anthropic, Azure, compatible providers).

    import askonce_openai
    from openai import OpenAI

    askonce_openai.install("redis://localhost:6379")  # every client of the process
    client = askonce_openai.wrap(OpenAI())  # or one

The cache sits where the SDK sends its request: what it returns, streams and raises is its own, from bytes as the
provider sent them.  Of all who ask the same at the same time one reaches the model, in any process; the others get its
answer, or read along its stream.
"""

from ._install import install, uninstall
from ._options import Choices, Scope
from ._ways_in import async_http_client, http_client, wrap

__all__ = ["Choices", "Scope", "async_http_client", "http_client", "install", "uninstall", "wrap"]
