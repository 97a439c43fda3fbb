"""What the tests of the SDKs share: asking, and reading what comes back."""

from __future__ import annotations

import importlib.util
from typing import Any

import openai
from tests.integrations.openai.provider import PATIENCE

from askonce import Cache
from askonce_openai._detached import detached

SDK_MAJOR = int(openai.__version__.partition(".")[0])
MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]
LIBRARIES = [name for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
FLAT_TOOLS: list[Any] = [{"type": "function", "name": "get_weather", "parameters": {}, "strict": False}]


def flights(client: Any) -> int:
    """Return how many answers are coming in, once what was left is concluded."""
    assert detached.settle(PATIENCE)
    return len(client._client._transport.askonce._flights)


def entries(cache: Cache) -> int:
    """Return how many entries are stored."""
    return sum(1 for _ in cache.entries())


def ask(client: Any, content: str = "hi", **kwargs: Any) -> Any:
    """Ask for a chat completion."""
    return client.chat.completions.create(
        **{"model": "m", "messages": [{"role": "user", "content": content}], **kwargs}
    )


def ask_raw(client: Any, content: str = "hi", **kwargs: Any) -> Any:
    """Ask for a chat completion with its headers."""
    return client.chat.completions.with_raw_response.create(
        **{"model": "m", "messages": [{"role": "user", "content": content}], **kwargs}
    )


def status_of(raw: Any) -> str:
    """Return what the cache said of an answer."""
    said: str = raw.headers["cache-status"]
    return said


def text(chunks: Any) -> str:
    """Return the text of a stream."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def atext(chunks: Any) -> str:
    """Return the text of an asynchronous stream."""
    return "".join([c.choices[0].delta.content or "" async for c in chunks if c.choices])
