"""Anthropic's messages through the same transport."""

from __future__ import annotations

import importlib

import anthropic
import pytest
from tests.integrations.openai.kit import MESSAGES, entries

import askonce_openai

SYNC_LIBRARY = next(
    cls.__module__.partition(".")[0]
    for cls in anthropic.DefaultHttpxClient.__mro__
    if cls.__module__.startswith("httpx")
)


def library():
    return importlib.import_module(SYNC_LIBRARY)


def blocks(message):
    return [block.model_dump(exclude={"citations"}) for block in message.content]


@pytest.mark.parametrize("model", ["m", "m-tools", "m-length"])
def test_both_forms_serve_each_other(provider, cache, model):
    """create and stream, with text and with tools, either first."""
    http = askonce_openai.wrap(library().Client(), cache)
    made = anthropic.Anthropic(api_key="k", base_url=provider.url, http_client=http)
    words = {"model": model, "max_tokens": 9}
    first, second = (made.messages.create(**words, messages=MESSAGES) for _ in range(2))
    assert first == second
    assert first._request_id
    with made.messages.stream(**words, messages=MESSAGES) as stream:
        assert blocks(stream.get_final_message()) == blocks(first)
    with made.messages.stream(**words, messages=MESSAGES * 2) as stream:
        streamed = stream.get_final_message()
    joined = made.messages.create(**words, messages=MESSAGES * 2)
    assert blocks(joined) == blocks(streamed)
    assert joined.usage.output_tokens == 3
    assert (provider.calls["messages"], entries(cache)) == (2, 2)


def test_a_refusal_is_not_stored(provider, cache):
    made = askonce_openai.wrap(anthropic.Anthropic(api_key="k", base_url=provider.url), cache)
    for _ in range(2):
        made.messages.create(model="m-refuse", max_tokens=9, messages=MESSAGES)
    assert (provider.calls["messages"], entries(cache)) == (2, 0)


async def test_asyncio_and_install(provider, cache):
    """An entry that a task made serves threads."""
    askonce_openai.install(cache)
    async with anthropic.AsyncAnthropic(api_key="k", base_url=provider.url) as made:
        words = {"model": "m", "max_tokens": 9, "messages": MESSAGES}
        first = await made.messages.create(**words)
        assert await made.messages.create(**words) == first
        async with made.messages.stream(**words) as stream:
            assert blocks(await stream.get_final_message()) == blocks(first)
        events = [e.type async for e in await made.messages.create(**words, stream=True)]
        assert events[-1] == "message_stop"
    sync = anthropic.Anthropic(api_key="k", base_url=provider.url)
    assert blocks(sync.messages.create(**words)) == blocks(first)
    assert provider.calls["messages"] == 1


def test_an_error_is_anthropics_own(provider, cache):
    made = askonce_openai.wrap(anthropic.Anthropic(api_key="k", base_url=provider.url, max_retries=0), cache)
    with pytest.raises(anthropic.RateLimitError):
        made.messages.create(model="m-429", max_tokens=9, messages=MESSAGES)
    assert entries(cache) == 0
