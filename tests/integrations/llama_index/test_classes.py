"""The other model classes that are installed, against a provider that speaks their language."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest

from askonce import Cache
from askonce_llama_index import attach
from askonce_llama_index._blocks import ThinkingBlock

from .conftest import CHAT, COMPLETE, Watch, ask, last, needs, user
from .provider import Provider


@pytest.fixture
def anthropic(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """LlamaIndex's class over Anthropic's SDK; with anthropic 2, which it does not know yet, helped along."""
    made = pytest.importorskip("llama_index.llms.anthropic").Anthropic
    if version("llama-index-llms-anthropic").startswith("0.8."):
        pytest.skip("its streams do not say that they are whole: they are not stored")
    utils = pytest.importorskip("llama_index.llms.anthropic.utils")
    if not isinstance(utils.MessageParam, type):  # a union by now, which LlamaIndex calls to make a mapping
        monkeypatch.setattr(utils, "MessageParam", dict)

    def fitted(create: Callable[..., Any]) -> Callable[..., Any]:
        def call(temperature: float, **kwargs: Any) -> Any:  # sampling is no parameter of the SDK any more
            return create(**kwargs, extra_body={"temperature": temperature})

        return call

    def make(**kwargs: Any) -> Any:
        url = provider.url.removesuffix("/v1")
        llm = made(model="claude-sonnet-4-6", base_url=url, api_key="k", max_retries=0, **kwargs)
        for client in (llm._client, llm._aclient):
            if "temperature" not in inspect.signature(client.messages.create).parameters:
                monkeypatch.setattr(client.messages, "create", fitted(client.messages.create))
        return llm

    return make


@pytest.fixture
def ollama(provider: Provider) -> Callable[..., Any]:
    made = pytest.importorskip("llama_index.llms.ollama").Ollama
    url = provider.url.removesuffix("/v1")
    return lambda **kwargs: made(model="llama3", base_url=url, context_window=4096, **kwargs)


@pytest.fixture
def like(provider: Provider) -> Callable[..., Any]:
    made = pytest.importorskip("llama_index.llms.openai_like").OpenAILike
    return lambda **kwargs: made(
        model="m", api_base=provider.url, api_key="k", is_chat_model=True, max_retries=0, **kwargs
    )


@pytest.fixture(params=["anthropic", "ollama", "like"])
def make_other(request: pytest.FixtureRequest) -> Callable[..., Any]:
    made: Callable[..., Any] = request.getfixturevalue(request.param)
    return made


@pytest.mark.parametrize("first", CHAT)
async def test_one_entry_for_the_four_ways_to_chat(
    make_other: Callable[..., Any], cache: Cache, provider: Provider, first: str
) -> None:
    """Text, class of the answer, thoughts and usage as the model's own, whoever asked first."""
    plain = {name: await ask(make_other(), name, user("shape")) for name in CHAT}
    llm = attach(make_other(), cache)
    with provider.expects(1):
        text = last(await ask(llm, first, user("other"))).message.content
        for name in (*CHAT, *CHAT):
            out = await ask(llm, name, user("other"))
            answer = last(out)
            assert text == answer.message.content
            assert type(answer) is type(last(plain[name]))
            assert type(answer.raw) is type(last(plain[name]).raw)
            if isinstance(answer.raw, dict):
                shown = last(plain[name]).raw
                assert {"usage", "stop_reason", "content", "message", "done_reason"} & (
                    set(shown) - set(answer.raw)
                ) == set()
                counted = {"input_tokens", "output_tokens", "prompt_tokens"}
                assert counted & dict(shown["usage"]).keys() <= dict(answer.raw["usage"]).keys()
            if isinstance(out, list):
                assert text == "".join(chunk.delta for chunk in out)
    assert cache.stats().stored == 1


@pytest.mark.parametrize("name", CHAT + COMPLETE)
async def test_a_hit_equals_the_miss(
    make_other: Callable[..., Any], cache: Cache, watch: Watch, name: str
) -> None:
    """The whole answer of a call; message, raw and texts of a stream; the same events."""
    llm, asked, seen = attach(make_other(), cache), user("same") if "chat" in name else "same", []
    outs = []
    for _ in range(2):
        outs.append(await ask(llm, name, asked))
        events, spans = watch.take()
        seen.append((events, [span[0] for span in spans]))
    miss, hit = outs
    assert cache.stats().hits == 1
    if isinstance(miss, list):
        assert "".join(chunk.delta for chunk in miss) == "".join(chunk.delta for chunk in hit)
        miss, hit = miss[-1], hit[-1]
    assert loose(miss) == loose(hit)
    assert {tag for _, tag in seen[1][0]} == {"hit"}


def loose(answer: Any) -> Any:
    """An answer as mappings: of a provider's raw, some types become that when they are stored."""
    return answer.model_dump(mode="json")


@needs("ThinkingBlock")
async def test_anthropic_thinks_and_stops(
    anthropic: Callable[..., Any], cache: Cache, provider: Provider
) -> None:
    """Thoughts with their signature come back; what its default limit cut is not stored, nor what broke off."""
    llm = attach(anthropic(), cache)
    with provider.expects(1):
        for name in (*CHAT, *CHAT):
            answer = last(await ask(llm, name, user("@think")))
            (thinking,) = [block for block in answer.message.blocks if isinstance(block, ThinkingBlock)]
            assert thinking.content == "let me see"
            assert thinking.additional_information["signature"].startswith("sig")
    for word in ("@length", "@cut"):
        for name in ("chat", "stream_chat") if word == "@length" else ("stream_chat", "astream_chat"):
            with provider.expects(2):
                for _ in range(2):
                    await ask(llm, name, user(word))
    assert cache.stats().stored == 1
