"""Streams: one entry for stream and invoke, stored whole or not at all, read along while they run."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel, Field

from askonce import Cache, NotCached, Policy, control
from askonce_langchain import AskonceCache

from .waiting import PATIENCE, until

needs_events = pytest.mark.skipif(
    not hasattr(BaseChatModel, "_chat_model_stream_v3"), reason="langchain-core before 1.4"
)
TOOL = {"type": "function", "function": {"name": "t", "parameters": {"type": "object", "properties": {}}}}
MODELS: dict[str, dict[str, Any]] = {
    "chat completions": {},
    "chat completions, v0": {"output_version": "v0"},
    "chat completions, v1": {"output_version": "v1"},
    "responses": {"use_responses_api": True},
    "responses, v0": {"use_responses_api": True, "output_version": "v0"},
    "responses, v1": {"use_responses_api": True, "output_version": "v1"},
}


@pytest.fixture
def cache(url: str) -> AskonceCache:
    return AskonceCache(url, deadline=2.0)


@pytest.fixture(autouse=True)
def _no_global_cache() -> Iterator[None]:
    yield
    set_llm_cache(None)


class Scripted(BaseChatModel):
    """A provider of our own: what it says, and what happens before its second chunk."""

    says: list[Any] = Field(default=["one ", "two"])
    pause: Any = None

    @property
    def _llm_type(self) -> str:
        return "scripted"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"says": self.says}

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        CALLS.append(self.says)
        for number, part in enumerate(self.says):
            if number == 1 and self.pause is not None:
                self.pause()
            yield ChatGenerationChunk(message=AIMessageChunk(content=part))


CALLS: list[Any] = []


@pytest.fixture(autouse=True)
def calls() -> list[Any]:
    CALLS.clear()
    return CALLS


def merged(chunks: Any) -> Any:
    whole = None
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    return whole


async def amerged(chunks: Any) -> Any:
    return merged([chunk async for chunk in chunks])


def bare(value: Any) -> Any:
    """Content without ids and the places of blocks; LangChain puts what it does not know into `extras`."""
    if isinstance(value, dict):
        value = {**value, **value.get("extras", {})}
        return {k: bare(v) for k, v in value.items() if k not in ("index", "id", "extras") and v != []}
    return [bare(item) for item in value] if isinstance(value, list) else value


class TestOneEntry:
    @pytest.mark.parametrize("first", ["stream", "astream", "invoke", "ainvoke"])
    @pytest.mark.parametrize("tools", [False, True], ids=["text", "tool call"])
    @pytest.mark.parametrize("kind", MODELS)
    async def test_for_all_four_ways(
        self, provider: Any, cache: AskonceCache, kind: str, tools: bool, first: str
    ) -> None:
        """Whichever way the first caller asks, the others are answered from what it stored."""
        model = provider.chat(cache, **MODELS[kind])
        model = model.bind_tools([TOOL]) if tools else model
        ways: dict[str, Callable[[], Any]] = {
            "stream": lambda: asyncio.to_thread(lambda: merged(model.stream("q"))),
            "astream": lambda: amerged(model.astream("q")),
            "invoke": lambda: asyncio.to_thread(model.invoke, "q"),
            "ainvoke": lambda: model.ainvoke("q"),
        }
        live = await ways[first]()
        assert bool(live.tool_calls) is tools
        for way in ways.values():
            again = await way()
            assert again.text == live.text
            assert bare(again.tool_calls) == bare(live.tool_calls)
            assert [block["type"] for block in again.content_blocks] == [
                b["type"] for b in live.content_blocks
            ]
            assert bare(again.content_blocks) == bare(live.content_blocks)
            assert AIMessage.model_validate({**again.model_dump(), "type": "ai"})
            assert again.response_metadata["askonce"]["source"] == "hit"
        assert provider.calls == 1

    async def test_for_completion_models(self, provider: Any, cache: AskonceCache) -> None:
        """Completion models too."""
        model = provider.completion(cache)
        text = "".join(model.stream("q"))
        assert text
        assert [
            model.invoke("q"),
            await model.ainvoke("q"),
            "".join([c async for c in model.astream("q")]),
        ] == [text] * 3
        assert provider.calls == 1
        model.invoke("r")
        assert "".join(model.stream("r"))
        assert provider.calls == 2

    async def test_for_events(self, provider: Any, cache: AskonceCache) -> None:
        """Event streams of version 2 are made of chunks, stored ones too."""
        model = provider.chat(cache)
        text = model.invoke("q").text
        events = [event async for event in model.astream_events("q", version="v2")]
        said = [event["data"]["chunk"].text for event in events if event["event"] == "on_chat_model_stream"]
        assert "".join(said) == text
        assert provider.calls == 1

    @needs_events
    async def test_for_events_of_version_3(self, provider: Any, cache: AskonceCache) -> None:
        """Those of version 3 fill the cache, and are served from it."""
        model = provider.chat(cache)
        text = str(model.stream_events("q", version="v3").text)
        assert model.invoke("q").text == text
        assert model.invoke("q").content == text
        assert str(model.stream_events("q", version="v3").text) == text
        stream = await model.astream_events("q", version="v3")
        assert (await stream.output).text == text
        assert provider.calls == 1
        stream = await model.astream_events("r", version="v3")
        assert (await stream.output).text == (await model.ainvoke("r")).text
        assert provider.calls == 2

    @needs_events
    async def test_for_models_that_produce_events_themselves(self, cache: AskonceCache) -> None:
        """Their events are gathered to an answer, which is stored before its last event is handed on."""
        from langchain_core.language_models._compat_bridge import amessage_to_events, message_to_events

        class Native(Scripted):
            def _stream_chat_model_events(self, messages: Any, **kwargs: Any) -> Any:
                CALLS.append("events")
                yield from message_to_events(AIMessage("native"), message_id="m")

            async def _astream_chat_model_events(self, messages: Any, **kwargs: Any) -> Any:
                CALLS.append("events")
                async for event in amessage_to_events(AIMessage("native"), message_id="m"):
                    yield event

        model = Native(cache=cache)
        for _ in range(2):
            assert str(model.stream_events("q", version="v3").text) == "native"
        assert model.invoke("q").content == "native"
        assert len(CALLS) == 1
        for _ in range(2):
            assert (await (await model.astream_events("r", version="v3")).output).text == "native"
        assert len(CALLS) == 2

    def test_for_structured_output(self, provider: Any, cache: AskonceCache) -> None:
        """An object of the schema comes out of a stored stream as out of a live one."""

        class City(BaseModel):
            when: str
            cityName: str

        model = provider.chat(cache).with_structured_output(City, method="json_schema")
        live = model.invoke("q")
        assert list(model.stream("q"))[-1] == live == City(when="2025-01-01T00:00:00Z", cityName="Rome")
        assert provider.calls == 1

    def test_for_graphs(self, provider: Any, cache: AskonceCache) -> None:
        """A graph that streams its messages says the same the second time."""
        model = provider.chat(cache)
        graph = StateGraph(MessagesState)
        graph.add_node("ask", lambda state: {"messages": [merged(model.stream(state["messages"]))]})
        graph.add_edge(START, "ask").add_edge("ask", END)
        compiled = graph.compile()

        def say() -> str:
            said = compiled.stream({"messages": [HumanMessage("q")]}, stream_mode="messages")
            return "".join(chunk.text for chunk, _ in said)  # type: ignore[union-attr]

        assert say() == say() == "answer 1-0"
        assert provider.calls == 1

    @pytest.mark.parametrize("replay", ["whole", "pieces"])
    async def test_for_agents(self, provider: Any, url: str, replay: Any) -> None:
        """An agent that is streamed says the same from the cache, each message once, token by token if asked to."""

        @tool
        def look_up(a: int) -> str:
            """A tool."""
            return "found"

        agent = create_agent(provider.chat(AskonceCache(url, replay=replay, deadline=2.0)), [look_up])

        async def say() -> list[str]:
            said = agent.astream({"messages": [HumanMessage("q")]}, stream_mode="messages")
            return [chunk.text async for chunk, _ in said if chunk.text]  # type: ignore[union-attr]

        first = await say()
        assert first == ["found", "answer ", "2-0"]
        assert await say() == (first if replay == "pieces" else ["found", "answer 2-0"])
        chunks = agent.stream({"messages": [HumanMessage("q")]}, stream_mode="messages")
        assert "".join(chunk.text for chunk, _ in chunks) == "".join(first)  # type: ignore[union-attr]
        assert provider.calls == 2

    async def test_for_events_of_calls_below(self, provider: Any, cache: AskonceCache) -> None:
        """Who listens to a graph hears the tokens of a stored answer, as of a live one."""
        model = provider.chat(cache)
        graph = StateGraph(MessagesState)
        graph.add_node("ask", lambda state: {"messages": [model.invoke(state["messages"])]})
        graph.add_edge(START, "ask").add_edge("ask", END)
        compiled = graph.compile()

        async def hear() -> str:
            events = compiled.astream_events({"messages": [HumanMessage("q")]}, version="v2")
            return "".join(
                [e["data"]["chunk"].text async for e in events if e["event"] == "on_chat_model_stream"]
            )

        assert await hear() == await hear() == "answer 1-0"
        assert provider.calls == 1

    def test_thoughts(self, cache: AskonceCache, calls: list[Any]) -> None:
        """Blocks that came in parts come back whole."""
        block = {"type": "thinking", "index": 0}
        says = [
            [{**block, "thinking": "let "}],
            [{**block, "thinking": "me", "signature": "sig"}],
            [{"type": "text", "text": "x", "index": 1}],
        ]
        live, again = (merged(Scripted(cache=cache, says=says).stream("q")) for _ in range(2))
        assert bare(again.content) == bare(live.content)
        assert again.content[0]["signature"] == "sig"
        assert len(calls) == 1


class TestReplay:
    def test_whole(self, cache: AskonceCache) -> None:
        """A stored answer is one chunk."""
        model = Scripted(cache=cache)
        assert [chunk.content for chunk in model.stream("q") if chunk.content] == ["one ", "two"]
        assert [chunk.content for chunk in model.stream("q")] == ["one two"]

    def test_in_pieces(self, url: str) -> None:
        """Or its text in the pieces in which it came; what came whole, by words."""
        cache = AskonceCache(url, replay="pieces", deadline=2.0)
        model = Scripted(cache=cache, says=["o", "ne t", "wo"])
        for _ in range(2):
            assert [chunk.content for chunk in model.stream("q") if chunk.content] == ["o", "ne t", "wo"]
        cache.cache.clear()

    def test_what_came_whole_in_pieces(self, provider: Any, url: str) -> None:
        """By words, completion models too."""
        cache = AskonceCache(url, replay="pieces", deadline=2.0)
        provider.chat(cache).invoke("q")
        pieces = list(provider.chat(cache).stream("q"))
        assert [chunk.content for chunk in pieces] == ["answer ", "1-0"]
        assert merged(pieces).response_metadata["askonce"]["source"] == "hit"
        provider.completion(cache).invoke("q")
        assert list(provider.completion(cache).stream("q")) == ["text ", "2-0"]

    def test_is_refused_where_it_is_given(self, url: str) -> None:
        """Another word than these two is an error."""
        with pytest.raises(ValueError, match="replay='slowly'"):
            AskonceCache(url, replay="slowly", deadline=2.0)  # type: ignore[arg-type]

    def test_listeners_hear_it(self, provider: Any, cache: AskonceCache) -> None:
        """Tokens of a stored answer are told as live ones are."""
        heard: list[str] = []

        class Listener(BaseCallbackHandler):
            def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
                heard.append(token)

        for model in (provider.chat(cache), provider.completion(cache)):
            texts = []
            for _ in range(2):
                heard.clear()
                list(model.stream("q", {"callbacks": [Listener()]}))
                texts.append("".join(heard))
            assert texts[0] == texts[1] != ""


class TestNeverStored:
    @pytest.mark.parametrize("how", ["forgotten", "closed", "error in the consumer"])
    def test_left_early(self, cache: AskonceCache, calls: list[Any], how: str) -> None:
        """A stream that nobody read to its end is not stored, and its lease is given back."""
        model = Scripted(cache=cache)
        stream = model.stream("q")
        next(stream)
        if how == "closed":
            stream.close()  # type: ignore[attr-defined]
        elif how == "forgotten":
            del stream
        else:
            with pytest.raises(KeyError):
                stream.throw(KeyError("consumer"))  # type: ignore[attr-defined]
        gc.collect()
        assert cache.cache.stats().stored == 0
        assert merged(model.stream("q")).text == "one two"
        assert len(calls) == 2

    @pytest.mark.parametrize("how", ["forgotten", "closed", "cancelled"])
    async def test_left_early_async(self, cache: AskonceCache, calls: list[Any], how: str) -> None:
        """Nor is an async one."""
        model = Scripted(cache=cache)
        stream = model.astream("q")
        await anext(stream)
        if how == "closed":
            await stream.aclose()  # type: ignore[attr-defined]
        elif how == "cancelled":
            held = threading.Event()
            halfway = Scripted(cache=cache, pause=held.wait)
            task = asyncio.create_task(amerged(halfway.astream("r")))
            while len(calls) < 2:
                await asyncio.sleep(0.005)
            task.cancel()
            held.set()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
        del stream
        gc.collect()
        async with asyncio.timeout(PATIENCE):
            while len(cache.cache._namespace.state.flights):
                await asyncio.sleep(0.005)  # what was forgotten is closed by the loop, in a turn of its own
            assert cache.cache.stats().stored == 0
            assert (await amerged(model.astream("q"))).text == "one two"
        assert cache.cache.stats().stored == 1

    @pytest.mark.filterwarnings(
        "ignore:coroutine 'AsyncCallbackManagerForLLMRun.on_llm_error':RuntimeWarning"
    )
    @pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning"
    )  # LangChain's own on_llm_error
    def test_its_loop_is_gone(self, cache: AskonceCache, calls: list[Any]) -> None:
        """A stream that was collected after its loop was closed is not stored, and holds nobody up."""
        model, loop = Scripted(cache=cache), asyncio.new_event_loop()
        stream = model.astream("q")
        loop.run_until_complete(anext(stream))
        loop.close()
        del stream
        gc.collect()
        assert len(cache.cache._namespace.state.flights) == 0
        assert cache.cache.stats().stored == 0
        assert merged(model.stream("q")).text == "one two"
        assert len(calls) == 2

    @pytest.mark.parametrize("colour", ["stream", "astream"])
    async def test_broken(self, cache: AskonceCache, colour: str) -> None:
        """A stream whose producer fails half way is not stored, and its error is the caller's."""

        def fail() -> None:
            raise ConnectionError("provider")

        model = Scripted(cache=cache, pause=fail)

        async def ask() -> None:
            if colour == "stream":
                list(model.stream("q"))
            else:
                await amerged(model.astream("q"))

        with pytest.raises(ConnectionError):
            await ask()
        assert cache.cache.stats().stored == 0
        model.pause = None
        assert merged(model.stream("q")).text == "one two"

    @pytest.mark.parametrize("colour", ["stream", "astream"])
    @pytest.mark.parametrize(("reason", "why"), [("content_filter", "filtered"), ("length", "truncated")])
    async def test_refused(self, cache: AskonceCache, reason: str, why: str, colour: str) -> None:
        """A filtered or truncated stream is given to its caller and not stored."""

        class Ends(Scripted):
            def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
                CALLS.append(1)
                yield ChatGenerationChunk(message=AIMessageChunk(content="half"))
                yield ChatGenerationChunk(
                    message=AIMessageChunk(content=""), generation_info={"finish_reason": reason}
                )

        model = Ends(cache=cache)
        for number in (1, 2):
            whole = merged(model.stream("q")) if colour == "stream" else await amerged(model.astream("q"))
            assert whole.text == "half"
            assert cache.cache.stats().rejection_reasons == {why: number}
        assert len(CALLS) == 2

    def test_empty(self, cache: AskonceCache) -> None:
        """LangChain's own error for a stream without chunks stays as it is."""
        for _ in range(2):
            with pytest.raises(ValueError, match="No generation chunks"):
                list(Scripted(cache=cache, says=[]).stream("q"))
        assert len(CALLS) == 2

    def test_several_answers(self, provider: Any, cache: AskonceCache) -> None:
        """A stream of several answers is none that ``invoke`` could give."""
        model = provider.chat(cache, n=2)
        for _ in range(2):
            list(model.stream("q"))
        assert provider.calls == 2
        assert len(model.generate([[HumanMessage("q")]]).generations[0]) == 2


class TestReadAlong:
    def test_threads(self, cache: AskonceCache, calls: list[Any]) -> None:
        """Who asks while a stream runs is given its chunks as they come."""
        go_on = threading.Event()
        leading = Scripted(cache=cache, pause=lambda: go_on.wait(PATIENCE))
        leader, follower = leading.stream("q"), Scripted(cache=cache).stream("q")
        assert next(leader).content == "one "
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(next, follower).result(PATIENCE).content == "one "
            go_on.set()
            rest = pool.submit(list, follower)
            list(leader)
            assert "".join(chunk.text for chunk in rest.result(PATIENCE)) == "two"
        assert len(calls) == 1

    async def test_tasks(self, cache: AskonceCache, calls: list[Any]) -> None:
        """So are tasks."""
        go_on = asyncio.Event()

        class Waits(Scripted):
            async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
                CALLS.append(1)
                yield ChatGenerationChunk(message=AIMessageChunk(content="one "))
                await go_on.wait()
                yield ChatGenerationChunk(message=AIMessageChunk(content="two"))

        leading = asyncio.create_task(amerged(Waits(cache=cache).astream("q")))
        while not calls:
            await asyncio.sleep(0.005)

        async def follow() -> str:
            text = ""
            async for chunk in Waits(cache=cache).astream("q"):
                text += chunk.text
                go_on.set()
            return text

        async with asyncio.timeout(PATIENCE):
            assert await asyncio.create_task(follow()) == "one two"
            assert (await leading).text == "one two"
        assert len(calls) == 1

    def test_other_processes(self, cache: AskonceCache, url: str, calls: list[Any]) -> None:
        """Another cache, as another process has it, reads along too."""
        go_on = threading.Event()
        leading = Scripted(cache=cache, pause=lambda: go_on.wait(PATIENCE))
        leader = leading.stream("q")
        assert next(leader).content == "one "
        elsewhere = Scripted(cache=AskonceCache(url, deadline=2.0))
        with ThreadPoolExecutor(2) as pool:
            following = elsewhere.stream("q")
            end = pool.submit(list, leader)
            assert pool.submit(next, following).result(PATIENCE).content == "one "
            go_on.set()
            assert "".join(chunk.text for chunk in pool.submit(list, following).result(PATIENCE)) == "two"
            end.result(PATIENCE)
        assert len(calls) == 1

    def test_whole_answers_wait_for_it(self, cache: AskonceCache, calls: list[Any]) -> None:
        """``invoke`` waits for a stream that runs, and a stream for a call."""
        go_on = threading.Event()
        leading = Scripted(cache=cache, pause=lambda: go_on.wait(PATIENCE))
        leader = leading.stream("q")
        next(leader)
        with ThreadPoolExecutor(1) as pool:
            whole = pool.submit(Scripted(cache=cache).invoke, "q")
            until(lambda: cache.cache.stats().misses == 2)
            go_on.set()
            list(leader)
            assert whole.result(PATIENCE).content == "one two"
        assert len(calls) == 1

    def test_the_leader_fails(self, cache: AskonceCache, calls: list[Any]) -> None:
        """A follower that was given nothing yet calls the model itself, and never sees the leader's error."""
        asked = threading.Event()

        class Fails(Scripted):
            def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
                CALLS.append("call")
                if len(CALLS) == 1:
                    asked.wait(PATIENCE)
                    raise ConnectionError("the leader's own")
                yield ChatGenerationChunk(message=AIMessageChunk(content="two"))

        def ask() -> str:
            return str(merged(Fails(cache=cache).stream("q")).text)

        with ThreadPoolExecutor(2) as pool:
            leader = pool.submit(ask)
            until(lambda: bool(calls))
            follower = pool.submit(ask)
            until(lambda: cache.cache.stats().misses == 2)
            asked.set()
            assert follower.result(PATIENCE) == "two"
            with pytest.raises(ConnectionError):
                leader.result(PATIENCE)
        assert len(calls) == 2


class TestTheModelIsLeftAlone:
    def test_its_state(self, cache: AskonceCache) -> None:
        """Nothing of the model changes, and it can be pickled."""
        model = Scripted(says=["x"])
        before = dict(model.__dict__)
        set_llm_cache(cache)
        merged(model.stream("q"))
        assert {k: v for k, v in model.__dict__.items() if k != "_serialized"} == before
        assert pickle.loads(pickle.dumps(model)) == model

    def test_a_copy_asks_for_itself(self, cache: AskonceCache) -> None:
        """A copy with other fields, and a configured model, are other models."""
        one = Scripted(cache=cache, says=["one"])
        assert merged(one.stream("q")).text == "one"
        assert merged(one.model_copy(update={"says": ["two"]}).stream("q")).text == "two"
        configurable = one.configurable_fields(says=ConfigurableField(id="says"))
        assert merged(configurable.with_config(configurable={"says": ["three"]}).stream("q")).text == "three"

    async def test_a_default_async_stream(self, cache: AskonceCache, calls: list[Any]) -> None:
        """LangChain runs ``_stream`` in a thread for it: it is looked up once, and shared."""
        model = Scripted(cache=cache)
        assert (await amerged(model.astream("q"))).text == merged(model.stream("q")).text
        assert len(calls) == 1
        assert cache.cache.stats().misses == 1

    def test_a_model_that_does_not_stream(self, cache: AskonceCache) -> None:
        """LangChain invokes it, and that is cached."""

        class Whole(BaseChatModel):
            @property
            def _llm_type(self) -> str:
                return "whole"

            def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
                CALLS.append(1)
                return ChatResult(generations=[ChatGeneration(message=AIMessage("whole"))])

        for _ in range(2):
            assert merged(Whole(cache=cache).stream("q")).text == "whole"
        assert len(CALLS) == 1

    async def test_a_rate_limiter(self, cache: AskonceCache) -> None:
        """A stored stream needs no leave, as a stored answer needs none."""
        left: list[str] = []

        class Limiter(BaseRateLimiter):
            def acquire(self, *, blocking: bool = True) -> bool:
                left.append("sync")
                return True

            async def aacquire(self, *, blocking: bool = True) -> bool:
                left.append("async")
                return True

        model = Scripted(cache=cache, rate_limiter=Limiter())
        for _ in range(2):
            merged(model.stream("q"))
            await amerged(model.astream("r"))
        assert left == ["sync", "async"]

    def test_invoke_with_streaming_looks_up_once(self, provider: Any, cache: AskonceCache) -> None:
        """A call that streams inside is a call."""
        provider.chat(cache, streaming=True).invoke("q")
        assert cache.cache.stats().misses == 1


class TestControl:
    def test_by_metadata(self, provider: Any, cache: AskonceCache) -> None:
        """The metadata of the run control a stream."""
        model = provider.chat(cache)
        list(model.stream("q", {"metadata": {"askonce": {"write": False}}}))
        assert cache.cache.stats().stored == 0
        list(model.stream("q"))
        list(model.stream("q", {"metadata": {"askonce": {"read": False}}}))
        assert provider.calls == 3
        with pytest.raises(NotCached):
            list(model.stream("r", {"metadata": {"askonce": {"only_if_cached": True}}}))
        assert provider.calls == 3

    def test_by_context(self, provider: Any, cache: AskonceCache) -> None:
        """So does a block around it; both off means no cache."""
        model = provider.chat(cache)
        for _ in range(2):
            with control(read=False, write=False):
                list(model.stream("q"))
        assert (provider.calls, cache.cache.stats().misses) == (2, 0)

    def test_stale_if_error(self, url: str) -> None:
        """A producer that fails before its first chunk is stood in for by the last good answer."""
        cache = AskonceCache(Cache(url, policy=Policy(ttl=0.001, stale_if_error="1h"), deadline=2.0))
        model = Scripted(cache=cache)
        list(model.stream("q"))

        class Fails(Scripted):
            def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
                raise ConnectionError
                yield

        Fails.__module__, Fails.__qualname__ = Scripted.__module__, Scripted.__qualname__
        assert merged(Fails(cache=cache).stream("q")).text == "one two"
        assert cache.cache.stats().stale_if_error == 1

    def test_an_outage(self, provider: Any) -> None:
        """Without Redis a stream is a stream."""
        model = provider.chat(AskonceCache("redis://127.0.0.1:1/0"))
        assert [merged(model.stream("q")).text for _ in range(2)] == ["answer 1-0", "answer 2-0"]

    def test_a_request_that_cannot_be_keyed(self, provider: Any, cache: AskonceCache) -> None:
        """It is streamed uncached, and counted."""
        question = [HumanMessage("q", additional_kwargs={"x": object()})]
        assert merged(provider.chat(cache).stream(question)).text == "answer 1-0"
        assert cache.cache.stats().bypass_reasons == {"uncacheable": 1}
