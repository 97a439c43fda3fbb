"""The twelve surfaces of the SDK on both HTTP libraries: the second call is a hit, and gives the same."""

from __future__ import annotations

import importlib

import openai
import pytest
from pydantic import BaseModel
from tests.integrations.openai.kit import LIBRARIES, MESSAGES, entries, flights


class Person(BaseModel):
    name: str
    age: int


def dump(value):
    return value.model_dump() if isinstance(value, BaseModel) else value


SURFACES = {
    "create": lambda c: c.chat.completions.create(model="m", messages=MESSAGES),
    "create(stream)": lambda c: c.chat.completions.create(model="m", messages=MESSAGES, stream=True),
    "parse": lambda c: c.chat.completions.parse(model="m", messages=MESSAGES, response_format=Person),
    "stream": lambda c: c.chat.completions.stream(model="m", messages=MESSAGES),
    "with_raw_response": lambda c: c.chat.completions.with_raw_response.create(model="m", messages=MESSAGES),
    "with_streaming_response": lambda c: c.chat.completions.with_streaming_response.create(
        model="m", messages=MESSAGES
    ),
    "with_options": lambda c: c.with_options(timeout=3).chat.completions.create(model="m", messages=MESSAGES),
    "beta.parse": lambda c: c.beta.chat.completions.parse(
        model="m", messages=MESSAGES, response_format=Person
    ),
    "post": lambda c: c.post("/chat/completions", cast_to=object, body={"model": "m", "messages": MESSAGES}),
    "responses.create": lambda c: c.responses.create(model="m", input="q"),
    "responses.parse": lambda c: c.responses.parse(model="m", input="q"),
    "embeddings.create": lambda c: c.embeddings.create(model="e", input="q"),
}


@pytest.fixture(params=LIBRARIES)
def lib(request):
    return importlib.import_module(request.param)


def read(name, got):
    if name == "create(stream)":
        return [dump(chunk) for chunk in got]
    if name == "stream":
        with got as stream:
            return dump(stream.get_final_completion())
    if name == "with_raw_response":
        return dump(got.parse())
    if name == "with_streaming_response":
        with got as response:
            return response.read()
    return dump(got)


async def aread(name, got):
    if name == "stream":
        async with got as stream:
            return dump(await stream.get_final_completion())
    if name == "with_streaming_response":
        async with got as response:
            return await response.read()
    got = await got
    if name == "create(stream)":
        return [dump(chunk) async for chunk in got]
    return dump(got.parse()) if name == "with_raw_response" else dump(got)


def without_usage(value):
    """An embedding's usage tells what was paid for it now."""
    return {**value, "usage": None} if isinstance(value, dict) and value.get("object") == "list" else value


@pytest.mark.parametrize("name", SURFACES)
def test_sync(name, client, provider, cache):
    """Two calls, one upstream, equal results; nothing was passed on unshared."""
    made = client()
    first, second = (without_usage(read(name, SURFACES[name](made))) for _ in range(2))
    assert first == second
    assert (sum(provider.calls.values()), entries(cache), flights(made)) == (1, 1, 0)
    stats = cache.stats()
    assert (stats.hits, stats.stored, stats.bypassed, stats.rejected) == (1, 1, 0, 0)


@pytest.mark.parametrize("name", SURFACES)
async def test_async(name, client, provider, cache):
    """The same by asyncio."""
    made = client(openai.AsyncOpenAI)
    first, second = [without_usage(await aread(name, SURFACES[name](made))) for _ in range(2)]
    assert first == second
    assert (sum(provider.calls.values()), entries(cache), flights(made)) == (1, 1, 0)
    stats = cache.stats()
    assert (stats.hits, stats.stored, stats.bypassed, stats.rejected) == (1, 1, 0, 0)
    await made.close()


def test_azure_keeps_deployments_apart(client, provider):
    """The deployment is in the path, the version in the query: each has entries of its own."""
    made = client(openai.AzureOpenAI, azure_endpoint=provider.url, api_version="2025-01-01")
    first, second = (made.chat.completions.create(model="dep1", messages=MESSAGES) for _ in range(2))
    assert first == second
    assert "deployments/dep1" in provider.last["chat"]["path"]
    assert provider.calls["chat"] == 1
    made.chat.completions.create(model="dep2", messages=MESSAGES)
    assert provider.calls["chat"] == 2
    other = client(openai.AzureOpenAI, azure_endpoint=provider.url, api_version="2026-01-01")
    other.chat.completions.create(model="dep2", messages=MESSAGES)
    assert provider.calls["chat"] == 3
