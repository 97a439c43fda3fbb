"""One entry for the four ways to chat and to complete; the answers, and what goes wrong."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from askonce import Cache, NotCached, control, in_upstream, upstream
from askonce_llama_index import attach

from .conftest import CHAT, COMPLETE, ask, last, user
from .provider import Provider

pytest.importorskip("llama_index.llms.openai")

from llama_index.core.base.llms.types import CompletionResponse
from llama_index.core.llms import CustomLLM, LLMMetadata, MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback

Make = Callable[..., Any]


@pytest.fixture
def llm(make: Make, cache: Cache) -> Any:
    return attach(make(), cache)


@pytest.mark.parametrize("first", CHAT)
async def test_one_entry_for_the_four_ways_to_chat(
    make: Make, cache: Cache, provider: Provider, first: str
) -> None:
    """Whichever way asks first, the other three are served from its entry, in the shape of their own."""
    llm = attach(make(), cache)
    with provider.expects(1):
        text = last(await ask(llm, first, user("four ways"))).message.content
        for name in (*CHAT, *CHAT):
            out = await ask(llm, name, user("four ways"))
            answer = last(out)
            assert text == answer.message.content
            if isinstance(out, list):
                assert text == "".join(chunk.delta for chunk in out)
                assert {"ChatCompletionChunk"} == {type(chunk.raw).__name__ for chunk in out}
                assert out[-1].raw.choices[0].finish_reason == "stop"
            else:
                assert answer.delta is None
                assert type(answer.raw).__name__ == "ChatCompletion"
                assert text == answer.raw.choices[0].message.content
                assert answer.raw.choices[0].finish_reason == "stop"
    assert cache.stats().stored == 1


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-3.5-turbo-instruct"])
@pytest.mark.parametrize("first", COMPLETE)
async def test_one_entry_for_the_four_ways_to_complete(
    make: Make, cache: Cache, provider: Provider, first: str, model: str
) -> None:
    """Completion by a chat model and by a completion model alike."""
    llm = attach(make(model=model, max_tokens=50), cache)
    with provider.expects(1):
        text = last(await ask(llm, first, "four ways")).text
        for name in (*COMPLETE, *COMPLETE):
            out = await ask(llm, name, "four ways")
            assert text == last(out).text
            if isinstance(out, list):
                assert text == "".join(chunk.delta for chunk in out)
    assert text


@pytest.mark.parametrize("first", CHAT)
async def test_the_responses_api(provider: Provider, cache: Cache, first: str) -> None:
    """Its events become a Response for a call, and back; its chunks hold their own piece only."""
    responses = pytest.importorskip("llama_index.llms.openai").OpenAIResponses

    def make(**kwargs: Any) -> Any:
        return responses(model="gpt-4o-mini", api_base=provider.url, api_key="k", **kwargs)

    if "stream" in first and not last(await ask(make(), first, user("responses"))).message.content:
        pytest.skip("in this version its streams end without their text: they are not stored")
    llm = attach(make(), cache)
    with provider.expects(1):
        plain = await ask(llm, first, user("responses"))
        for name in (*CHAT, *CHAT):
            out = await ask(llm, name, user("responses"))
            answer = last(out)
            assert answer.message.content.startswith("answer")
            assert type(answer.additional_kwargs["usage"]).__name__ == "ResponseUsage"
            if isinstance(out, list):
                assert type(answer.raw).__name__ == "ResponseCompletedEvent"
                if name == first:
                    assert [c.message.content for c in plain if c.delta] == [
                        c.message.content for c in out if c.delta
                    ]
            else:
                assert type(answer.raw).__name__ == "Response"
    with provider.expects(2):
        for _ in range(2):
            await ask(llm, "astream_chat", user("@cut"))
    tracked = attach(make(track_previous_responses=True), cache)
    with provider.expects(2):
        for _ in range(2):
            tracked.chat(user("tracked"))


def test_a_hit_equals_the_miss(llm: Any) -> None:
    """Message, raw and further fields of a call; deltas and texts of a stream."""
    miss, hit = llm.chat(user("call")), llm.chat(user("call"))
    assert (miss.message, miss.raw, miss.additional_kwargs) == (hit.message, hit.raw, hit.additional_kwargs)
    streams = [list(llm.stream_chat(user("again"))) for _ in range(2)]
    shown = [[(chunk.delta, chunk.message.content) for chunk in stream] for stream in streams]
    assert shown[0] == shown[1]
    assert streams[0][-1].raw == streams[1][-1].raw


@pytest.mark.parametrize(
    ("word", "name", "reason"),
    [
        ("@cut", "stream_chat", "unfinished"),
        ("@cut", "astream_chat", "unfinished"),
        ("@cut", "stream_complete", "unfinished"),
        ("@length", "chat", "cut"),
        ("@length", "stream_chat", "cut"),
        ("@filter", "chat", "refused"),
        ("@filter", "astream_chat", "refused"),
        ("@empty", "chat", "empty"),
        ("@empty", "stream_complete", "empty"),
    ],
)
async def test_only_whole_answers_are_stored(
    llm: Any, cache: Cache, provider: Provider, word: str, name: str, reason: str
) -> None:
    """Cut, limited by a default, filtered and empty answers reach the caller and nobody after."""
    asked = user(word) if "chat" in name else word
    with provider.expects(2):
        for _ in range(2):
            assert await ask(llm, name, asked)
    stats = cache.stats()
    assert (0, 0, {reason: 2}) == (stats.stored, stats.hits, stats.rejection_reasons)


@pytest.mark.parametrize("how", ["field", "argument"])
def test_a_limit_of_the_callers_is_part_of_the_question(
    make: Make, cache: Cache, provider: Provider, how: str
) -> None:
    """What is cut by a limit that was chosen is what was asked for."""
    llm = attach(make(**({"max_tokens": 5} if how == "field" else {})), cache)
    words = {} if how == "field" else {"max_tokens": 5}
    with provider.expects(1):
        assert llm.chat(user("@length"), **words).message == llm.chat(user("@length"), **words).message


@pytest.mark.parametrize("name", CHAT)
async def test_an_error_passes_and_is_not_stored(
    llm: Any, cache: Cache, provider: Provider, name: str
) -> None:
    """The provider's own exception, each time."""
    with provider.expects(2):
        for _ in range(2):
            with pytest.raises(Exception) as caught:
                await ask(llm, name, user("@fail"))
            assert type(caught.value).__name__ == "BadRequestError"
    assert cache.stats().stored == 0


def test_what_a_caller_changes_stays_the_callers(llm: Any) -> None:
    """An answer, or a chunk while it streams, may be changed: the next one is whole."""
    texts = []
    for _ in range(3):
        answer = llm.chat(user("change me"))
        texts.append(answer.message.content)
        answer.message.blocks[0].text = ""
        answer.message.blocks.clear()
        answer.message.additional_kwargs["x"] = 1
        answer.raw.choices.clear()
    assert texts[0]
    assert len(set(texts)) == 1
    texts = []
    for _ in range(3):
        for chunk in llm.stream_chat(user("change me too")):
            texts.append(chunk.message.content) if chunk.raw.choices[0].finish_reason else None
            chunk.message.blocks[0].text = ""
            chunk.message.blocks.clear()
            chunk.message.additional_kwargs["x"] = 1
    assert texts[0]
    assert len(set(texts)) == 1
    assert len(texts) == 3


@pytest.mark.parametrize("name", CHAT)
async def test_control_reaches_through(llm: Any, cache: Cache, provider: Provider, name: str) -> None:
    """read=False asks anew and stores, only_if_cached never asks, both off goes by the cache altogether."""
    with control(only_if_cached=True), pytest.raises(NotCached):
        await ask(llm, name, user("control"))
    with provider.expects(1):
        await ask(llm, name, user("control"))
        with control(only_if_cached=True):
            await ask(llm, name, user("control"))
    with provider.expects(1), control(read=False):
        await ask(llm, name, user("control"))
    with provider.expects(2), control(read=False, write=False):
        for _ in range(2):
            await ask(llm, name, user("off"))
    assert cache.usage().entries == 1


def test_refused_not_guessed(cache: Cache) -> None:
    """A call that cannot be told from others goes to the model, and is counted."""
    llm = attach(MockLLM(), cache)
    for kwargs in ({"weird": object()}, {"f": lambda: 1}, {"n": float("nan")}, {"n": [float("inf")]}):
        assert llm.chat(user("odd"), **kwargs).message.content == "user: odd\nassistant: "
        with control(only_if_cached=True), pytest.raises(NotCached):
            llm.chat(user("odd"), **kwargs)
    stats = cache.stats()
    assert stats.stored == 0
    assert stats.bypass_reasons["uncacheable"] >= 8


class Own(CustomLLM):
    model: str = "own"

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.model)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        assert in_upstream("llm")
        return CompletionResponse(text="R:" + prompt[-5:])

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        def produce() -> Any:
            text = ""
            for word in ("a ", "b ", "c"):
                assert in_upstream("llm")
                text += word
                yield CompletionResponse(text=text, delta=word)

        return produce()


@pytest.mark.parametrize("name", CHAT)
async def test_the_calls_inside_a_call_are_its_own(cache: Cache, name: str) -> None:
    """chat calls complete, under the guard: one entry, one lookup."""
    llm = attach(Own(), cache)
    for _ in range(2):
        await ask(llm, name, user("inside"))
    stats = cache.stats()
    assert (stats.stored, stats.misses, stats.hits) == (1, 1, 1)


async def test_a_model_that_calls_its_own_methods_is_one_entry(
    cache: Cache, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """achat calls chat, which calls complete: the outer one owns the call, and nothing blocks the loop."""
    llm = attach(Own(), cache)

    def blocks(*_: Any, **__: Any) -> Any:
        raise AssertionError("a sync call of the cache in the event loop")

    for name in ("serve", "stream", "lookup", "begin"):
        monkeypatch.setattr(cache, name, blocks)
    first, second = await llm.achat(user("hey")), await llm.achat(user("hey"))
    assert first.message.content == second.message.content
    streams = [[chunk.delta async for chunk in await llm.astream_chat(user("s"))] for _ in range(2)]
    assert streams[0] == streams[1]
    watch.take()
    await llm.achat(user("new"))
    miss = len(watch.take()[0])
    await llm.achat(user("new"))
    assert (miss, len(watch.take()[0])) == (6, 2)
    assert cache.stats().stored == 3


async def test_an_adapter_further_out_owns_the_call(llm: Any, cache: Cache, provider: Provider) -> None:
    """Under the guard of another adapter nothing is looked up, stored or waited for."""
    with provider.expects(8), upstream("llm"):
        for _ in range(2):
            for name in CHAT:
                await ask(llm, name, user("guarded"))
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.stored, stats.bypassed) == (0, 0, 0, 0)


async def test_of_all_who_ask_at_once_one_calls(llm: Any, cache: Cache, provider: Provider) -> None:
    """Threads and tasks share one call; those that waited are shown as hits of it."""
    asked, go = threading.Semaphore(0), threading.Event()
    provider.gate = lambda _body, chunk: chunk == 0 and (asked.release(), go.wait(20))
    with provider.expects(1):
        leader = asyncio.create_task(asyncio.to_thread(llm.chat, user("at once")))
        await asyncio.to_thread(asked.acquire)
        followers = [asyncio.create_task(asyncio.to_thread(llm.chat, user("at once"))) for _ in range(3)]
        followers += [asyncio.create_task(llm.achat(user("at once"))) for _ in range(3)]
        while cache.stats().misses < 7:
            await asyncio.sleep(0.01)
        go.set()
        texts = [answer.message.content for answer in await asyncio.gather(leader, *followers)]
    assert len(set(texts)) == 1
    assert cache.stats().coalesced == 6


@pytest.mark.parametrize("name", ["chat", "achat"])
async def test_the_failure_of_another_is_not_this_callers(
    llm: Any, cache: Cache, provider: Provider, name: str
) -> None:
    """Who waited for a call that failed makes one of its own, and gets its own error."""
    asked, go = threading.Semaphore(0), threading.Event()
    provider.gate = lambda _body, chunk: (asked.release(), go.wait(20))
    callers = [asyncio.create_task(asyncio.to_thread(llm.chat, user("@fail")))]
    await asyncio.to_thread(asked.acquire)
    callers += [asyncio.create_task(ask_in_colour(llm, name)) for _ in range(2)]
    while cache.stats().misses < 3:
        await asyncio.sleep(0.01)
    with provider.expects(2):
        go.set()
        errors = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(error).__name__ for error in errors] == ["BadRequestError"] * 3
    assert len({id(error) for error in errors}) == 3


async def ask_in_colour(llm: Any, name: str) -> Any:
    if name == "achat":
        return await llm.achat(user("@fail"))
    return await asyncio.to_thread(llm.chat, user("@fail"))


class Weird(Own):
    """A model that returns what is no answer."""

    def chat(self, messages: Any, **kwargs: Any) -> Any:
        return ["weird"]


def test_what_is_no_answer_reaches_its_caller(cache: Cache) -> None:
    """It is the model's affair; nothing of it is stored."""
    llm = attach(Weird(), cache)
    for _ in range(2):
        assert llm.chat(user("weird")) == ["weird"]
    assert cache.stats().stored == 0
