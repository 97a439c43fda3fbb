"""Streams: stored whole or not at all, replayed in few chunks, read along while they run, here and elsewhere."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("llama_index.llms.openai")

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    TextBlock,
)

from askonce import Cache
from askonce_llama_index import attach
from askonce_llama_index._blocks import ThinkingBlock, ToolCallBlock
from askonce_llama_index._codec import CODEC, Entry, text_of
from askonce_llama_index._streams import MOST_CHUNKS, OPENED, Reader, Recorder, replay

from .conftest import Watch, ask, needs, user
from .provider import Provider

Make = Callable[..., Any]


@pytest.fixture
def llm(make: Make, cache: Cache) -> Any:
    return attach(make(), cache)


@pytest.mark.parametrize("how", ["close", "del", "throw", "unread"])
def test_a_stream_that_was_left_is_not_stored(llm: Any, cache: Cache, provider: Provider, how: str) -> None:
    """Whoever asks next makes the call, at once."""
    # Collected here: a half-read stream that the collector closes while the same client holds its pool's lock is a
    # deadlock, without askonce too.
    gc.collect()
    chunks = llm.stream_chat(user("left"))
    if how != "unread":
        next(chunks)
    if how == "close":
        chunks.close()
    elif how == "throw":
        with pytest.raises(KeyError):
            chunks.throw(KeyError("consumer"))
    del chunks
    gc.collect()
    assert cache.stats().stored == 0
    with provider.expects(1):
        list(llm.stream_chat(user("left")))
    assert cache.stats().stored == 1


@pytest.mark.parametrize("how", ["aclose", "break", "cancel", "unread"])
async def test_an_async_stream_that_was_left_is_not_stored(
    llm: Any, cache: Cache, provider: Provider, how: str
) -> None:
    """As above, and a cancelled consumer too."""
    gc.collect()

    async def consume() -> None:
        chunks = await llm.astream_chat(user("left"))
        if how == "unread":
            await chunks.aclose()
            return
        async for _ in chunks:
            if how == "cancel":
                asyncio.current_task().cancel()  # type: ignore[union-attr]
            elif how == "aclose":
                await chunks.aclose()
            else:
                break

    await asyncio.gather(asyncio.create_task(consume()), return_exceptions=True)
    gc.collect()
    await asyncio.sleep(0)
    assert cache.stats().stored == 0
    assert cache.usage().entries == 0
    await ask(llm, "astream_chat", user("left"))
    assert cache.stats().stored == 1


@pytest.mark.parametrize("name", ["stream_chat", "astream_chat", "stream_complete", "astream_complete"])
async def test_a_long_stream_is_replayed_in_few_chunks(llm: Any, provider: Provider, name: str) -> None:
    """410 words come in 32 chunks, each with the text so far."""
    asked = user("@words") if "chat" in name else "@words"
    with provider.expects(1):
        first, second = [await ask(llm, name, asked) for _ in range(2)]
    assert len(first) >= 410
    assert len(second) <= MOST_CHUNKS
    assert text_of(first[-1]) == text_of(second[-1]) == "".join(chunk.delta for chunk in second)
    said = ""
    for chunk in second:
        said += chunk.delta
        assert said == text_of(chunk)


def recorded(chunks: list[Any]) -> tuple[list[Any], Entry]:
    """What a follower is given of *chunks*, and what is stored of them, both read anew."""
    recorder, data = Recorder(), []
    data.append(recorder.encode(OPENED))
    for chunk in chunks:
        recorder.see(chunk)
        data.append(recorder.encode(chunk))
    parts, reader = [recorder.decode(one) for one in data], Reader()
    followed = [reader.read(part.form) for part in parts if part.form is not None]  # type: ignore[union-attr]
    return followed, CODEC.decode(CODEC.encode(recorder.fold(parts)))  # type: ignore[arg-type]


@needs("ThinkingBlock")
@pytest.mark.parametrize("place", ["response", "message"])
def test_thinking_is_replayed_where_it_was(place: str) -> None:
    """On the response, as most have it, or on the message (Anthropic)."""
    chunks, thought, said = [], "", ""
    for think, word in (("let ", ""), ("me see", ""), (None, "an"), (None, "swer")):
        thought, said = thought + (think or ""), said + word
        words = {"thinking_delta": think} if think else {}
        blocks = [ThinkingBlock(content=thought), TextBlock(text=said)]
        kwargs = words if place == "message" else {}
        message = ChatMessage(role="assistant", blocks=blocks, additional_kwargs=kwargs)
        chunks.append(ChatResponse(message=message, delta=word, additional_kwargs={} if kwargs else words))
    followed, entry = recorded(chunks)
    assert [chunk.model_dump() for chunk in chunks] == [chunk.model_dump() for chunk in followed]
    replayed = list(replay(entry))
    where = [chunk if place == "response" else chunk.message for chunk in replayed]
    assert thought == "".join(one.additional_kwargs.get("thinking_delta") or "" for one in where)
    assert said == "".join(chunk.delta for chunk in replayed)
    assert chunks[-1].message == replayed[-1].message


@needs("ToolCallBlock")
def test_a_follower_is_given_each_chunk_as_it_was() -> None:
    """Tool calls, other roles, blocks of any kind, texts that are no prefix: chunk by chunk."""
    call = ToolCallBlock(tool_call_id="1", tool_name="f", tool_kwargs={"a": [1]})
    messages = [
        ChatMessage(role="assistant", content=""),
        ChatMessage(role="assistant", content="a"),
        ChatMessage(role="assistant", blocks=[TextBlock(text="a"), TextBlock(text="b")]),
        ChatMessage(role="assistant", blocks=[]),
        ChatMessage(role="tool", content="other", additional_kwargs={"tool_call_id": "1"}),
        ChatMessage(role="assistant", blocks=[call], additional_kwargs={"stop_reason": "stop"}),
    ]
    chunks = [
        ChatResponse(message=message, delta=delta, raw=None, additional_kwargs=kwargs)
        for message, delta, kwargs in zip(
            messages, ["", "a", "b", None, "", ""], [{}, {}, {"n": None}, {}, {"total": 3}, {}], strict=True
        )
    ]
    followed, entry = recorded(chunks)
    assert [chunk.model_dump() for chunk in chunks] == [chunk.model_dump() for chunk in followed]
    assert chunks[-1].message == entry.answer.message  # type: ignore[union-attr]
    assert entry.finish == "stop"


def test_completions_are_recorded_too() -> None:
    """Also where the text of a chunk is not what came so far."""
    chunks = [
        CompletionResponse(text=text, delta=delta) for text, delta in (("a", "a"), ("ab", "b"), ("B", ""))
    ]
    followed, entry = recorded(chunks)
    assert [chunk.model_dump() for chunk in chunks] == [chunk.model_dump() for chunk in followed]
    assert text_of(entry.answer) == "B"
    assert [chunk.delta for chunk in replay(entry)] == ["B"]


class Held:
    """Holds the provider up before a chunk, until it is let go."""

    def __init__(self, provider: Provider, before: int) -> None:
        self.reached, self._go = threading.Event(), threading.Event()

        def gate(_body: Any, chunk: int) -> None:
            if chunk == before:
                self.reached.set()
                self._go.wait(20)

        provider.gate = gate
        self.go = self._go.set


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_who_asks_meanwhile_reads_along(
    make: Make, make_cache: Callable[..., Cache], provider: Provider, watch: Watch, where: str
) -> None:
    """A second caller, of this process or of another one's cache, is given the first chunks before the last is there."""
    cache = make_cache()
    other = cache if where == "here" else make_cache()
    leader, follower = attach(make(), cache), attach(make(), other)
    held = Held(provider, before=3)
    with provider.expects(1), ThreadPoolExecutor(1) as pool:
        leading = pool.submit(lambda: list(leader.stream_chat(user("a b c d"))))
        assert held.reached.wait(20)
        watch.take()
        chunks = follower.stream_chat(user("a b c d"))
        begun = [next(chunks), next(chunks), next(chunks)]
        assert [chunk.delta for chunk in begun] == ["", "answer ", "number "]
        assert not leading.done()
        held.go()
        followed, led = [*begun, *chunks], leading.result(20)
    assert [(c.delta, c.message) for c in led] == [(c.delta, c.message) for c in followed]
    assert {"ChatCompletionChunk"} == {type(chunk.raw).__name__ for chunk in followed}
    assert led[-1].raw == followed[-1].raw
    assert other.stats().coalesced == 1
    assert "coalesced" in {tag for _, tag in watch.take()[0]}


async def test_tasks_read_along_too(llm: Any, cache: Cache, provider: Provider) -> None:
    """Async consumers, and a call that does not stream waits for the whole."""
    held = Held(provider, before=3)
    with provider.expects(1):
        leading = asyncio.create_task(ask(llm, "astream_chat", user("a b c")))
        await asyncio.to_thread(held.reached.wait, 20)
        chunks = await llm.astream_chat(user("a b c"))
        begun = [await anext(chunks), await anext(chunks), await anext(chunks)]
        calling = asyncio.create_task(llm.achat(user("a b c")))
        while cache.stats().misses < 3:
            await asyncio.sleep(0.01)
        held.go()
        followed = begun + [chunk async for chunk in chunks]
        led, called = await leading, await calling
    assert [(c.delta, c.message) for c in led] == [(c.delta, c.message) for c in followed]
    assert type(called.raw).__name__ == "ChatCompletion"
    assert called.message.content == led[-1].message.content == called.raw.choices[0].message.content


def test_when_its_leader_goes_a_follower_calls_for_itself(llm: Any, cache: Cache, provider: Provider) -> None:
    """A leader that leaves before its first chunk costs the follower nothing but its own call."""
    held = Held(provider, before=0)
    leading = llm.stream_chat(user("go on"))
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(lambda: list(llm.stream_chat(user("go on"))))
        while cache.stats().misses < 2:
            pass
        leading.close()
        held.go()
        chunks = following.result(20)
    assert chunks[-1].message.content == "".join(chunk.delta for chunk in chunks)
    assert cache.stats().stored == 1


async def test_what_is_followed_is_read_on(llm: Any, cache: Cache, provider: Provider) -> None:
    """Its own reader leaves in the middle: who follows is given all of it, by the same call."""
    held = Held(provider, before=3)
    begun, left = asyncio.Event(), asyncio.Event()

    async def lead() -> None:
        chunks = await llm.astream_chat(user("a b c d"))
        for _ in range(3):
            await anext(chunks)
        begun.set()
        await left.wait()
        await chunks.aclose()

    with provider.expects(1):
        leading = asyncio.create_task(lead())
        await begun.wait()
        chunks = await llm.astream_chat(user("a b c d"))
        followed = [(await anext(chunks)).delta for _ in range(3)]
        left.set()
        await leading
        held.go()
        rest = [chunk async for chunk in chunks]
        assert (await llm.achat(user("a b c d"))).message.content == rest[-1].message.content
    assert rest[-1].message.content == "".join([*followed, *[chunk.delta for chunk in rest]])


async def test_a_failed_stream_is_each_callers_own(llm: Any, cache: Cache, provider: Provider) -> None:
    """The error comes where LlamaIndex has it: when the first chunk is asked for."""
    with provider.expects(2):
        for _ in range(2):
            chunks = llm.stream_chat(user("@fail"))
            with pytest.raises(Exception) as caught:
                next(chunks)
            assert type(caught.value).__name__ == "BadRequestError"
    assert cache.stats().stored == 0


def test_the_failure_of_another_stream_is_not_this_callers(
    llm: Any, cache: Cache, provider: Provider
) -> None:
    """Who followed a stream that failed makes a call of its own, and gets its own error."""
    held = Held(provider, before=0)

    def read() -> Exception:
        with pytest.raises(Exception) as caught:
            list(llm.stream_chat(user("@fail")))
        return caught.value

    with provider.expects(2), ThreadPoolExecutor(2) as pool:
        leading = pool.submit(read)
        assert held.reached.wait(20)
        following = pool.submit(read)
        while cache.stats().misses < 2:
            pass
        held.go()
        errors = [leading.result(20), following.result(20)]
    assert [type(error).__name__ for error in errors] == ["BadRequestError"] * 2
    assert errors[0] is not errors[1]


def test_a_stream_read_by_another_thread(llm: Any, cache: Cache, provider: Provider) -> None:
    """Chat engines open a stream in one thread and read it in another."""
    with provider.expects(1), ThreadPoolExecutor(1) as pool:
        texts = [
            "".join(chunk.delta for chunk in pool.submit(list, llm.stream_chat(user("thread"))).result(20))
            for _ in range(2)
        ]
    assert texts[0] == texts[1]
    assert cache.stats().hits == 1


@pytest.mark.parametrize("name", ["stream_chat", "astream_chat"])
async def test_the_chunk_with_the_usage_alone(
    make: Make, cache: Cache, provider: Provider, name: str
) -> None:
    """It comes after the one that says the reason, and has no choices: the stream is whole, its usage kept."""
    llm = attach(make(additional_kwargs={"stream_options": {"include_usage": True}}), cache)
    with provider.expects(1):
        miss, hit = [await ask(llm, name, user("usage")) for _ in range(2)]
    assert miss[-1].raw == hit[-1].raw
    assert hit[-1].raw.usage.total_tokens == 18
    assert miss[-1].additional_kwargs == hit[-1].additional_kwargs
    assert hit[-1].additional_kwargs["total_tokens"] == 18
    called = llm.chat(user("usage"))
    assert (called.raw.choices[0].finish_reason, called.raw.usage.total_tokens) == ("stop", 18)


def test_a_chunk_that_cannot_be_written(make: Make, cache: Cache, provider: Provider) -> None:
    """The stream goes on to its consumer; nothing of it is stored."""

    class Odd(type(make())):  # type: ignore[misc]
        def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
            chunks = super().stream_chat(messages, **kwargs)

            def produce() -> Any:
                for number, chunk in enumerate(chunks):
                    if number == 2:
                        chunk.additional_kwargs["odd"] = object()
                    yield chunk

            return produce()

    llm = attach(Odd(model="gpt-4o-mini", api_base=provider.url, api_key="k"), cache)
    with provider.expects(2):
        for _ in range(2):
            chunks = list(llm.stream_chat(user("odd")))
            assert chunks[-1].message.content == "".join(chunk.delta for chunk in chunks)
            assert chunks[2].additional_kwargs["odd"]
    stats = cache.stats()
    assert (stats.stored, stats.uncacheable) == (0, 2)
