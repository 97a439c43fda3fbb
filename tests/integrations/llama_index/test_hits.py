"""What a hit shows: events, spans, arguments and callbacks as a miss, and as LlamaIndex without askonce."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("llama_index.llms.openai")

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.llms.openai import OpenAI
from llama_index_instrumentation.dispatcher import active_instrument_tags, instrument_tags

from askonce import Cache, in_upstream
from askonce_llama_index import attach

from .conftest import CHAT, COMPLETE, Callbacks, Watch, ask, user
from .provider import Provider

Make = Callable[..., Any]


@pytest.mark.parametrize("name", CHAT + COMPLETE)
async def test_events_spans_and_callbacks(make: Make, cache: Cache, watch: Watch, name: str) -> None:
    """Plain, miss and hit show the same; a hit carries its tag on everything, also on each chunk."""
    seen = []
    for model in (make(), attach(make(), cache), attach(make(), cache)):
        callbacks = Callbacks()
        model.callback_manager = CallbackManager([callbacks])
        await ask(model, name, user("golden") if "chat" in name else "golden", seed=7)
        seen.append((*watch.take(), callbacks.seen))
    plain, miss, hit = seen
    assert cache.stats().hits == 1

    def shape(events: list[Any]) -> list[Any]:  # the number of the answer differs between plain and miss
        names = ("model_dict", "additional_kwargs", "messages", "prompt")
        return [(shown["type"], sorted(shown), [shown.get(name) for name in names]) for shown, _ in events]

    assert shape(plain[0]) == shape(miss[0]) == shape(hit[0])
    assert [shown for shown, _ in miss[0]] == [shown for shown, _ in hit[0]]
    assert [span[:3] for span in plain[1]] == [span[:3] for span in miss[1]] == [span[:3] for span in hit[1]]
    assert plain[2] == miss[2] == hit[2]
    assert len(hit[2]) == 4
    assert {None} == {tag for _, tag in miss[0]} == {span[3] for span in miss[1]}
    assert {"hit"} == {tag for _, tag in hit[0]} == {span[3] for span in hit[1]}


@pytest.mark.parametrize("name", ["stream_chat", "astream_complete"])
async def test_the_tags_of_the_application_stay(make: Make, cache: Cache, name: str) -> None:
    """A hit adds its tag to theirs, and none of it reaches the consumer of a stream, nor does the guard."""
    llm, asked = attach(make(), cache), user("tags") if "chat" in name else "tags"
    with instrument_tags({"mine": 1}):
        for _ in range(2):
            out = getattr(llm, name)(asked)
            chunks = [chunk async for chunk in _seen(await out)] if name[0] == "a" else list(_sync_seen(out))
            assert chunks
            assert {(("mine", 1),)} == set(chunks)


async def _seen(chunks: Any) -> Any:
    async for _ in chunks:
        assert not in_upstream("llm")
        yield tuple(active_instrument_tags.get().items())


def _sync_seen(chunks: Any) -> Any:
    for _ in chunks:
        assert not in_upstream("llm")
        yield tuple(active_instrument_tags.get().items())


class Limiter:
    def __init__(self) -> None:
        self.taken = 0

    def acquire(self) -> None:
        self.taken += 1

    async def async_acquire(self) -> None:
        self.taken += 1


@pytest.mark.skipif(
    "rate_limiter" not in BaseLLM.model_fields, reason="this version of LlamaIndex has no rate limiters"
)
@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("name", CHAT + COMPLETE)
async def test_a_hit_takes_nothing_of_the_rate_limiter(
    make: Make, cache: Cache, request: pytest.FixtureRequest, name: str, watched: bool
) -> None:
    """One token for two calls, whether somebody watches or not."""
    if watched:
        request.getfixturevalue("watch")
    limiter = Limiter()
    llm = attach(make(rate_limiter=limiter), cache)
    for _ in range(2):
        await ask(llm, name, user("limit") if "chat" in name else "limit")
    assert limiter.taken == 1


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("name", ["chat", "acomplete"])
async def test_token_counters(make: Make, cache: Cache, counts: bool, name: str) -> None:
    """A hit is counted again unless it is told not to; other handlers see it in any case."""
    counter, callbacks = TokenCountingHandler(tokenizer=str.split), Callbacks()
    manager = CallbackManager([counter, callbacks])
    llm = attach(make(callback_manager=manager), cache, count_tokens_on_hit=counts)
    asked = user("count") if "chat" in name else "count"
    await ask(llm, name, asked)
    assert counter.total_llm_token_count == 18
    await ask(llm, name, asked)
    assert (36 if counts else 18) == counter.total_llm_token_count
    assert len([seen for seen in callbacks.seen if seen[0] in {"start", "end"}]) == 4
    assert [counter, callbacks] == manager.handlers


def test_a_subclass_that_calls_its_parent(cache: Cache, watch: Watch, provider: Provider) -> None:
    """A miss shows both spans, as without askonce; a hit the one that was asked, with its events."""

    class Sub(OpenAI):
        def chat(self, messages: Any, **kwargs: Any) -> Any:
            return super().chat(messages, **kwargs)

    llm = attach(Sub(model="gpt-4o-mini", api_base=provider.url, api_key="k"), cache)
    llm.chat(user("super"))
    miss = watch.take()
    llm.chat(user("super"))
    hit = watch.take()
    assert [span[0] for span in miss[1]] == ["Sub.chat", "Sub.chat"]
    assert [span[0] for span in hit[1]] == ["Sub.chat"]
    assert [shown for shown, _ in miss[0]] == [shown for shown, _ in hit[0]]


def test_a_subclass_of_an_attached_class(make: Make, cache: Cache, provider: Provider) -> None:
    """It is cached as its parent is."""
    attached = type(attach(make(), cache))

    class Sub(attached):  # type: ignore[valid-type, misc]
        def chat(self, messages: Any, **kwargs: Any) -> Any:
            return super().chat(messages, **kwargs)

    llm = Sub(model="gpt-4o-mini", api_base=provider.url, api_key="k")
    with provider.expects(1):
        assert llm.chat(user("below")).message == llm.chat(user("below")).message


def test_a_method_without_events_has_none_on_a_hit(cache: Cache, watch: Watch) -> None:
    """A model of the application's own that leaves LlamaIndex's decorator out."""

    class Bare(CustomLLM):
        model: str = "bare"

        @property
        def metadata(self) -> LLMMetadata:
            return LLMMetadata(model_name=self.model)

        def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
            return CompletionResponse(text="bare")

        def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
            raise NotImplementedError

    llm, seen = attach(Bare(), cache), []
    for _ in range(2):
        assert llm.complete("q").text == "bare"
        events, spans = watch.take()
        seen.append((events, [span[:3] for span in spans]))
    assert cache.stats().hits == 1
    assert seen[0] == seen[1]
    assert seen[0][0] == []


def test_a_decorated_function_stays_one(make: Make, cache: Cache) -> None:
    """LlamaIndex's decorator marks the function that it is given; ours are given once."""

    @llm_chat_callback()
    def again(self: Any, messages: Any, **kwargs: Any) -> Any:
        return ChatResponse(message=user("answer")[0])

    llm = attach(make(), cache)
    assert again(llm, user("q")).message.content == "answer"
    assert llm.chat(user("q")).message.content == llm.chat(user("q")).message.content
