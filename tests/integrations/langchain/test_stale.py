"""What is stored stands in for a model that fails, and for nothing else that goes wrong."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.llms import BaseLLM
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, Generation, LLMResult

from askonce import Cache, Policy, control
from askonce_langchain import AskonceCache

from .waiting import PATIENCE, until

STALE_IF_ERROR = Policy(ttl=0.001, stale_if_error="1h")
COLOURS = pytest.mark.parametrize("colour", ["sync", "async"])


@pytest.fixture
def cache(url: str) -> AskonceCache:
    return AskonceCache(Cache(url, policy=STALE_IF_ERROR, deadline=2.0))


def asked(model: Any, colour: str, question: Any = "q", config: Any = None, **kwargs: Any) -> Any:
    if colour == "sync":
        return model.invoke(question, config, **kwargs)
    return asyncio.run(model.ainvoke(question, config, **kwargs))


def stored(model: Any, colour: str, *questions: str) -> None:
    """Have the answers to *questions* stored, and past their freshness."""
    for question in questions or ("q",):
        asked(model, colour, question)
    time.sleep(0.02)  # twenty times the ttl


class Runs(BaseCallbackHandler):
    """Notes what a tracer is told of."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.heard.append("start")

    def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
        self.heard.append("start")

    def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.heard.append("end")

    def on_llm_error(self, *args: Any, **kwargs: Any) -> None:
        self.heard.append("error")


class Refuses(BaseCallbackHandler):
    """A listener of the caller that stops the answer: a budget, a filter."""

    raise_error = True

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        raise PermissionError("stop")


class ARefuses(AsyncCallbackHandler):
    raise_error = True

    async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        raise PermissionError("stop")


class Scripted(BaseChatModel):
    """Raises what it is told to, before or after its first chunk."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"one": "model"}

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        if RAISES and not RAISES[0]:
            raise RAISES[1]
        yield ChatGenerationChunk(message=AIMessageChunk("one "))
        if RAISES:
            raise RAISES[1]
        yield ChatGenerationChunk(message=AIMessageChunk("two"))

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        if RAISES:
            raise RAISES[1]
        return ChatResult(generations=[ChatGeneration(message=AIMessage("one two"))])


class Telling(BaseLLM):
    """A completion model that tells its listeners a part of the answer before it raises."""

    @property
    def _llm_type(self) -> str:
        return "telling"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"one": "model"}

    def _generate(
        self, prompts: list[str], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> LLMResult:
        if run_manager and RAISES and RAISES[0]:
            run_manager.on_llm_new_token("one ")
        if RAISES:
            raise RAISES[1]
        return LLMResult(generations=[[Generation(text="one two")] for _ in prompts])


#: How many chunks come first, and what is raised then.
RAISES: list[Any] = []


@pytest.fixture(autouse=True)
def raises() -> list[Any]:
    RAISES.clear()
    return RAISES


class TestInvoke:
    @COLOURS
    @pytest.mark.parametrize("kind", ["chat", "completion"])
    def test_the_last_good_answer(self, provider: Any, cache: AskonceCache, kind: str, colour: str) -> None:
        """It is served while the model fails, and the run has ended well."""
        model, runs = getattr(provider, kind)(cache), Runs()
        stored(model, colour)
        provider.failing = {2, 3}
        answers = [asked(model, colour, config={"callbacks": [runs]}) for _ in range(2)]
        assert [getattr(answer, "text", answer) for answer in answers] == (
            ["answer 1-0"] * 2 if kind == "chat" else ["text 1-0"] * 2
        )
        assert provider.calls == 3
        assert runs.heard == ["start", "end"] * 2
        if kind == "chat":
            marks = [answer.response_metadata["askonce"] for answer in answers]
            assert {mark["source"] for mark in marks} == {"stale-if-error"}
            assert all(mark["age"] > 0 for mark in marks)
        stats = cache.cache.stats()
        # One look-up each: the first found nothing, the others what then stood in.
        assert (stats.misses, stats.stale_if_error, stats.hits, stats.stale) == (3, 2, 0, 0)
        again = asked(model, colour)
        assert getattr(again, "text", again).endswith("4-0")
        assert provider.calls == 4

    @COLOURS
    @pytest.mark.parametrize("kind", ["chat", "completion"])
    def test_nothing_stored(self, provider: Any, cache: AskonceCache, kind: str, colour: str) -> None:
        """The model's own error passes, as it would without a cache, and the next call is led anew."""
        model, runs = getattr(provider, kind)(cache), Runs()
        provider.failing = {1}
        with pytest.raises(openai.InternalServerError):
            asked(model, colour, config={"callbacks": [runs]})
        assert runs.heard == ["start", "error"]
        assert asked(model, colour)
        assert provider.calls == 2

    @COLOURS
    def test_while_it_is_revalidated(self, provider: Any, url: str, colour: str) -> None:
        """Within that window too the one who asks anew is given what the others are given."""
        policy = Policy(ttl=0.001, stale_while_revalidate="1h")
        cache = AskonceCache(Cache(url, policy=policy, deadline=2.0))
        model = provider.chat(cache)
        stored(model, colour)
        provider.failing = {2}
        answer = asked(model, colour)
        assert answer.text == "answer 1-0"
        assert answer.response_metadata["askonce"]["source"] == "stale"
        assert provider.calls == 2
        stats = cache.cache.stats()
        assert (stats.misses, stats.stale, stats.refresh_errors) == (1, 1, 1)

    @COLOURS
    def test_only_as_the_policy_says(self, provider: Any, url: str, colour: str) -> None:
        """Without a window for it an error is an error."""
        cache = AskonceCache(Cache(url, policy=Policy(ttl=0.001), deadline=2.0))
        model = provider.chat(cache)
        stored(model, colour)
        provider.failing = {2}
        with pytest.raises(openai.InternalServerError):
            asked(model, colour)

    @COLOURS
    @pytest.mark.parametrize("words", [{"max_age": 0.001}, {"read": False}, {"read": False, "write": False}])
    def test_only_as_the_call_says(self, provider: Any, cache: AskonceCache, words: Any, colour: str) -> None:
        """A caller who wants nothing stored, or nothing that old, is given the error."""
        model = provider.chat(cache)
        stored(model, colour)
        provider.failing = {2, 3}
        with pytest.raises(openai.InternalServerError):
            asked(model, colour, config={"metadata": {"askonce": words}})
        with control(**words), pytest.raises(openai.InternalServerError):
            asked(model, colour)
        assert cache.cache.stats().stale_if_error == 0

    @COLOURS
    def test_without_hooks(self, provider: Any, url: str, colour: str) -> None:
        """Nothing tells the cache of a failure: it passes."""
        cache = AskonceCache(Cache(url, policy=STALE_IF_ERROR, deadline=2.0), hooks=False)
        model = provider.chat(cache)
        stored(model, colour)
        provider.failing = {2}
        with pytest.raises(openai.InternalServerError):
            asked(model, colour)

    @COLOURS
    def test_another_question(self, provider: Any, cache: AskonceCache, colour: str) -> None:
        """An answer stands in for its own question, model and parameters alone."""
        model = provider.chat(cache)
        stored(model, colour)
        provider.failing = {2, 3, 4}
        for other, question in (
            (model, "r"),
            (model.bind(temperature=0.5), "q"),
            (provider.chat(cache, n=2), "q"),
        ):
            with pytest.raises(openai.InternalServerError):
                asked(other, colour, question)


class TestCompletions:
    @COLOURS
    def test_several_prompts(self, provider: Any, cache: AskonceCache, colour: str) -> None:
        """Of a call for several prompts, some may be served fresh, the rest from what is past its freshness."""
        model = provider.completion(cache)
        stored(model, colour, "a", "b")
        asked(model, colour, "c", {"metadata": {"askonce": {"ttl": "1h"}}})
        provider.failing = {4}
        prompts = ["c", "b", "a"]
        result = model.generate(prompts) if colour == "sync" else asyncio.run(model.agenerate(prompts))
        assert [found[0].text for found in result.generations] == ["text 3-0", "text 2-0", "text 1-0"]
        stats = cache.cache.stats()
        assert (stats.misses, stats.stale_if_error, stats.hits) == (5, 2, 1)

    @COLOURS
    def test_one_of_them_is_not_stored(self, provider: Any, cache: AskonceCache, colour: str) -> None:
        """Then the call has failed."""
        model, runs = provider.completion(cache), Runs()
        stored(model, colour, "a")
        provider.failing = {2}
        call = {"prompts": ["a", "b"], "callbacks": [runs]}
        with pytest.raises(openai.InternalServerError):
            model.generate(**call) if colour == "sync" else asyncio.run(model.agenerate(**call))
        assert sorted(runs.heard) == ["error", "error", "start", "start"]
        assert asked(model, colour, "b") == "text 3-0"


class TestWhatIsNotTheModels:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
    def test_an_interrupt(self, cache: AskonceCache, raises: list[Any], error: type[BaseException]) -> None:
        """It passes; who waits leads next."""
        model = Scripted(cache=cache)
        stored(model, "sync")
        raises[:] = [0, error()]
        with pytest.raises(error):
            model.invoke("q")
        raises.clear()
        assert model.invoke("q").text == "one two"

    async def test_a_cancellation(self, provider: Any, cache: AskonceCache) -> None:
        """A task that is cancelled ends as cancelled."""
        model, at_work = provider.chat(cache), asyncio.Event()
        await model.ainvoke("q")
        await asyncio.sleep(0.02)  # twenty times the ttl

        async def gate(_: int) -> None:
            at_work.set()
            await asyncio.Event().wait()

        provider.agate = gate
        task = asyncio.create_task(model.ainvoke("q"))
        await at_work.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    @pytest.mark.parametrize(
        ("colour", "listener"), [("sync", Refuses), ("async", Refuses), ("async", ARefuses)]
    )
    @pytest.mark.parametrize("kind", ["chat", "completion"])
    def test_a_callback(
        self, provider: Any, cache: AskonceCache, kind: str, listener: Any, colour: str
    ) -> None:
        """What the caller's own callback raises is for the caller, whatever is stored."""
        model = getattr(provider, kind)(cache)
        stored(model, colour)
        with pytest.raises(PermissionError):
            asked(getattr(provider, kind)(cache, streaming=True), colour, config={"callbacks": [listener()]})
        assert cache.cache.stats().stale_if_error == 0

    @COLOURS
    @pytest.mark.parametrize("kind", ["chat", "completion"])
    def test_a_callback_of_a_stream(self, provider: Any, cache: AskonceCache, kind: str, colour: str) -> None:
        """Nor does what is stored stand in for it where the caller streams."""
        model = getattr(provider, kind)(cache)
        stored(model, colour)
        config: Any = {"callbacks": [Refuses()]}

        async def streamed() -> None:
            async for _ in model.astream("q", config):
                pass

        with pytest.raises(PermissionError):
            list(model.stream("q", config)) if colour == "sync" else asyncio.run(streamed())


class TestListeners:
    """Where somebody listens for tokens, LangChain's ``invoke`` streams."""

    class Tokens(BaseCallbackHandler):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            self.heard.append(token)

    @COLOURS
    def test_before_the_first_token(self, cache: AskonceCache, raises: list[Any], colour: str) -> None:
        """They are told the stored answer."""
        stored(Scripted(cache=cache), colour)
        raises[:] = [0, ConnectionError()]
        tokens = self.Tokens()
        answer = asked(Scripted(cache=cache), colour, config={"callbacks": [tokens]}, stream=True)
        assert answer.text == "".join(tokens.heard) == "one two"
        assert answer.response_metadata["askonce"]["source"] == "stale-if-error"

    @COLOURS
    def test_after_it(self, cache: AskonceCache, raises: list[Any], colour: str) -> None:
        """They were told a part of another answer: the error passes."""
        stored(Scripted(cache=cache), colour)
        raises[:] = [1, ConnectionError()]
        tokens = self.Tokens()
        with pytest.raises(ConnectionError):
            asked(Scripted(cache=cache), colour, config={"callbacks": [tokens]}, stream=True)
        assert tokens.heard == ["one "]

    @COLOURS
    def test_of_a_completion_model(self, cache: AskonceCache, raises: list[Any], colour: str) -> None:
        """Which tells its listeners itself: before the first token an answer stands in, after it none does."""
        stored(Telling(cache=cache), colour)
        tokens = self.Tokens()
        raises[:] = [0, ConnectionError()]
        assert asked(Telling(cache=cache), colour, config={"callbacks": [tokens]}) == "one two"
        raises[:] = [1, ConnectionError()]
        assert asked(Telling(cache=cache), colour) == "one two"
        with pytest.raises(ConnectionError):
            asked(Telling(cache=cache), colour, config={"callbacks": [tokens]})
        assert tokens.heard == ["one "]

    @COLOURS
    def test_nobody_listens(self, cache: AskonceCache, raises: list[Any], colour: str) -> None:
        """Then nobody was told anything: the stored answer is served."""
        stored(Scripted(cache=cache), colour)
        raises[:] = [1, ConnectionError()]
        assert asked(Scripted(cache=cache), colour, stream=True).text == "one two"


class TestStreams:
    @pytest.fixture
    def revalidated(self, url: str) -> AskonceCache:
        policy = Policy(ttl="1h", stale_while_revalidate="1h")
        return AskonceCache(Cache(url, policy=policy, deadline=2.0))

    @pytest.mark.parametrize("kind", ["chat", "completion"])
    def test_is_revalidated_behind_its_reader(
        self, provider: Any, revalidated: AskonceCache, kind: str
    ) -> None:
        """Who streams has what is stored at once, and hears of nothing else; who comes later has the new answer."""
        model, tokens = getattr(provider, kind)(revalidated), TestListeners.Tokens()
        model.invoke("q", {"metadata": {"askonce": {"ttl": 0.001}}})
        time.sleep(0.02)  # twenty times the ttl
        chunks = list(model.stream("q", {"callbacks": [tokens]}))
        text = "".join(getattr(chunk, "text", chunk) for chunk in chunks)
        assert text.endswith(" 1-0")
        if kind == "chat":
            assert chunks[0].response_metadata["askonce"]["source"] == "stale"
        until(lambda: revalidated.cache.stats().stored == 2)
        assert "".join(tokens.heard) == text
        chunks = list(model.stream("q"))
        assert "".join(getattr(chunk, "text", chunk) for chunk in chunks).endswith(" 2-0")
        assert provider.calls == 2

    def test_a_model_that_is_set_anew_meanwhile(self, provider: Any, revalidated: AskonceCache) -> None:
        """What it says then is not stored as the answer to what was asked."""
        model = provider.chat(revalidated, temperature=0.0)
        model.invoke("q", {"metadata": {"askonce": {"ttl": 0.001}}})
        time.sleep(0.02)  # twenty times the ttl
        set_anew = threading.Event()
        provider.gate = lambda _: set_anew.wait(PATIENCE)
        assert "".join(chunk.text for chunk in model.stream("q")) == "answer 1-0"
        model.temperature = 1.0
        set_anew.set()
        until(lambda: revalidated.cache.stats().rejected == 1)
        assert revalidated.cache.stats().rejection_reasons == {"model changed": 1}
        model.temperature = 0.0
        assert "".join(chunk.text for chunk in model.stream("q")) == "answer 1-0"

    @pytest.mark.skipif(not hasattr(BaseChatModel, "_iter_v2_events"), reason="langchain-core 1.4")
    async def test_events_of_a_model_that_produces_them(self, cache: AskonceCache, raises: list[Any]) -> None:
        """The stored answer comes as events, if the model fails before its first; later it has failed."""
        from langchain_core.language_models._compat_bridge import amessage_to_events, message_to_events

        class Native(Scripted):
            def _stream_chat_model_events(self, messages: Any, **kwargs: Any) -> Any:
                for number, event in enumerate(message_to_events(AIMessage("native"), message_id="m")):
                    if raises and number == raises[0]:
                        raise raises[1]
                    yield event

            async def _astream_chat_model_events(self, messages: Any, **kwargs: Any) -> Any:
                number = 0
                async for event in amessage_to_events(AIMessage("native"), message_id="m"):
                    if raises and number == raises[0]:
                        raise raises[1]
                    number += 1
                    yield event

        model = Native(cache=cache)
        assert str(model.stream_events("q", version="v3").text) == "native"
        await asyncio.sleep(0.02)  # twenty times the ttl
        raises[:] = [0, ConnectionError()]
        assert str(model.stream_events("q", version="v3").text) == "native"
        assert (await (await model.astream_events("q", version="v3")).output).text == "native"
        assert cache.cache.stats().stale_if_error == 2
        raises[:] = [1, ConnectionError()]
        with pytest.raises(ConnectionError):
            str(model.stream_events("q", version="v3").text)
        with pytest.raises(ConnectionError):
            await (await model.astream_events("q", version="v3")).output

    @COLOURS
    def test_a_stale_answer(self, provider: Any, cache: AskonceCache, colour: str) -> None:
        """A stream whose model fails before its first chunk is the stored answer, and is told to listeners."""
        for model in (provider.chat(cache), provider.completion(cache)):
            stored(model, colour)
            provider.failing = {provider.calls + 1}
            tokens = TestListeners.Tokens()
            config: Any = {"callbacks": [tokens]}

            async def streamed(model: Any = model, config: Any = config) -> list[Any]:
                return [chunk async for chunk in model.astream("q", config)]

            chunks = list(model.stream("q", config)) if colour == "sync" else asyncio.run(streamed())
            text = "".join(getattr(chunk, "text", chunk) for chunk in chunks)
            assert text.endswith(f"{provider.calls - 1}-0")
            assert "".join(tokens.heard) == text
            if isinstance(chunks[0], AIMessageChunk):
                assert chunks[0].response_metadata["askonce"]["source"] == "stale-if-error"
