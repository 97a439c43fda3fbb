"""Where two adapters are stacked the outer one owns the call: nothing is looked up, waited for or stored twice."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("langchain_openai")

from examples.standin import start
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI

import askonce_openai
from askonce import Cache
from askonce_langchain import AskonceCache
from askonce_langchain import uninstall as unhook


@pytest.fixture
def model(url):
    """A chat model whose cache is LangChain's adapter, over a client that has the SDK's adapter as well."""
    upper, lower = Cache(url, namespace="upper", deadline=2), Cache(url, namespace="lower", deadline=2)
    with start(latency=(0.0, 0.0), error_rate=0.0) as standin:
        askonce_openai.install(lower)
        try:
            made = ChatOpenAI(
                model="m",
                base_url=standin.base_url,
                api_key="any",
                cache=AskonceCache(upper),
                stream_usage=True,
            )
            yield made, upper, lower, standin
        finally:
            askonce_openai.uninstall()
            unhook()
            upper.close()
            lower.close()


WAYS = {
    "invoke": lambda model: model.invoke("why?").text,
    "ainvoke": lambda model: asyncio.run(_ainvoke(model)),
    "stream": lambda model: "".join(chunk.text for chunk in model.stream("why?")),
    "astream": lambda model: asyncio.run(_astream(model)),
}


async def _ainvoke(model: BaseChatModel) -> str:
    return (await model.ainvoke("why?")).text


async def _astream(model: BaseChatModel) -> str:
    return "".join([chunk.text async for chunk in model.astream("why?")])


@pytest.mark.parametrize("way", WAYS)
def test_langchain_over_the_sdk(model, way):
    """One call upstream, one entry, in LangChain's cache."""
    made, upper, lower, standin = model
    first, again = WAYS[way](made), WAYS[way](made)
    assert first == again
    assert standin.stats().calls == 1
    assert upper.usage().entries == 1
    assert lower.usage().entries == 0


def test_what_the_outer_adapter_passes_is_cached_below(model):
    """``cache=False`` takes a model out of LangChain's cache, not out of the SDK's."""
    made, upper, lower, standin = model
    plain = made.model_copy(update={"cache": False})
    for _ in range(2):
        plain.invoke("why?")
    assert standin.stats().calls == 1
    assert (upper.usage().entries, lower.usage().entries) == (0, 1)


def test_after_a_call_the_way_is_free_again(model):
    """The mark of the outer adapter ends with its call: a client beside it is cached."""
    made, _, lower, standin = model
    made.invoke("why?")
    list(made.stream("and how?"))
    from openai import OpenAI

    client = OpenAI(base_url=standin.base_url, api_key="any")
    for _ in range(2):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "who?"}])
    assert lower.usage().entries == 1
    assert standin.stats().calls == 3
