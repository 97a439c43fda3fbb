"""LangChain's models with the cache: which calls are answered from it, and what their callers get."""

from __future__ import annotations

import asyncio
import copy
import functools
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import redis
from langchain_core.caches import BaseCache
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, Generation

from askonce import Cache, Near, NotCached, control
from askonce_langchain import AskonceCache

from .waiting import until

TOOL = {
    "type": "function",
    "function": {"name": "t", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
SCHEMA = {"title": "Out", "type": "object", "properties": {"cityName": {"type": "string"}}}
X = [Generation(text="x")]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def cache(url: str) -> AskonceCache:
    return AskonceCache(url, deadline=2.0)


class TestHits:
    @pytest.mark.parametrize("kind", ["chat", "completion"])
    def test_asked_once(self, provider: Any, cache: AskonceCache, kind: str) -> None:
        """The second call is answered from Redis, as the first was by the provider."""
        model = getattr(provider, kind)(cache)
        first, again = model.invoke("q"), model.invoke("q")
        assert getattr(again, "text", again) == getattr(first, "text", first)
        assert provider.calls == 1

    async def test_asked_once_whichever_way(self, provider: Any, cache: AskonceCache) -> None:
        """Sync and async calls share their answers."""
        chat, completion = provider.chat(cache), provider.completion(cache)
        assert (await chat.ainvoke("q")).text == chat.invoke("q").text
        assert await completion.ainvoke("q") == completion.invoke("q")
        assert provider.calls == 2

    def test_batch_of_prompts(self, provider: Any, cache: AskonceCache) -> None:
        """Of several prompts only the new ones are asked, and the answers keep their places."""
        model = provider.completion(cache)
        one = model.invoke("a")
        texts = [generations[0].text for generations in model.generate(["b", "a", "c"]).generations]
        assert texts[1] == one
        assert provider.requests[-1]["prompt"] == ["b", "c"]
        assert [g[0].text for g in model.generate(["b", "a", "c"]).generations] == texts
        assert provider.calls == 2

    def test_several_answers(self, provider: Any, cache: AskonceCache) -> None:
        """``n`` answers are stored and served together, in order."""
        texts = [
            [g.text for g in provider.chat(cache, n=3).generate([[HumanMessage("q")]]).generations[0]]
            for _ in range(2)
        ]
        assert texts[0] == texts[1] == ["answer 1-0", "answer 1-1", "answer 1-2"]

    def test_a_hit_says_so(self, provider: Any, cache: AskonceCache) -> None:
        """The metadata of a hit name its source and age; those of a fresh answer do not."""
        model = provider.chat(cache)
        first, hit = model.invoke("q"), model.invoke("q")
        assert "askonce" not in first.response_metadata
        assert hit.response_metadata["askonce"]["source"] == "hit"
        assert 0 <= hit.response_metadata["askonce"]["age"] < 60
        assert hit.response_metadata["id"] == first.response_metadata["id"]

    def test_every_hit_is_new(self, cache: AskonceCache) -> None:
        """LangChain changes the objects it is given; the next caller does not see it."""
        cache.update("p", "l", [ChatGeneration(message=AIMessage("x", response_metadata={"a": {}}))])
        first = cache.lookup("p", "l")
        assert first is not None
        assert isinstance(first[0], ChatGeneration)
        first[0].message.response_metadata["a"]["b"] = 1
        first[0].message.content = "changed"
        again = cache.lookup("p", "l")
        assert again is not None
        assert isinstance(again[0], ChatGeneration)
        assert (again[0].text, again[0].message.response_metadata["a"]) == ("x", {})

    def test_a_list_is_returned(self, cache: AskonceCache) -> None:
        """LangChain takes a tuple for a miss and fails on an empty list."""
        assert cache.lookup("p", "l") is None
        cache.update("p", "l", [])
        cache.update("p", "l", ())
        assert cache.lookup("p", "l") is None
        cache.update("p", "l", tuple(X))
        assert cache.lookup("p", "l") == X
        assert isinstance(cache.lookup("p", "l"), list)

    def test_fewer_generations_replace_more(self, cache: AskonceCache) -> None:
        """Six hundred come back in order; the one that replaces them comes back alone."""
        many = [Generation(text=str(number)) for number in range(600)]
        cache.update("p", "l", many)
        assert cache.lookup("p", "l") == many
        cache.update("p", "l", X)
        assert cache.lookup("p", "l") == X


class TestNear:
    def test_a_copy_is_as_good_as_what_redis_sends(self, provider: Any, url: str) -> None:
        """A hit from this process is a new object, marked as one; what is cleared elsewhere is asked anew."""
        cache = AskonceCache(url, near=Near(), deadline=2.0)
        model = provider.chat(cache)
        model.invoke("q")
        until(lambda: model.invoke("q") and cache.cache.stats().near_hits)
        one, other = model.invoke("q"), model.invoke("q")
        one.response_metadata["token_usage"]["prompt_tokens"] = one.content = "changed"
        assert other.response_metadata["token_usage"]["prompt_tokens"] == 10
        assert other.response_metadata["askonce"]["source"] == "hit"
        assert (other.text, provider.calls) == ("answer 1-0", 1)
        before = cache.cache.stats().near_hits
        assert "".join(chunk.text for chunk in model.stream("q")) == "answer 1-0"
        assert cache.cache.stats().near_hits == before + 1
        AskonceCache(url, deadline=2.0).clear()
        until(lambda: model.invoke("q").text == "answer 2-0")
        assert provider.calls == 2


class TestUsage:
    @pytest.mark.parametrize("streaming", [False, True], ids=["reported", "not reported"])
    def test_is_valid(self, provider: Any, cache: AskonceCache, streaming: bool) -> None:
        """A hit has whole usage metadata, whether the provider reported any or not."""
        model = provider.chat(cache, streaming=streaming)
        model.invoke("q")
        hit = model.invoke("q")
        assert provider.calls == 1
        assert AIMessage.model_validate(hit.model_dump()) == hit
        assert hit.usage_metadata["total_tokens"] == (0 if streaming else 15)

    def test_is_kept_or_not(self, provider: Any, url: str) -> None:
        """Whoever adds tokens up may count those of hits, or not."""
        total = []
        for option in ("keep", "zero"):
            model = provider.chat(AskonceCache(url, usage_on_hit=option, deadline=2.0))
            model.invoke("q")
            total.append(model.invoke("q").usage_metadata["total_tokens"])
        assert total == [15, 0]


class TestWhatIsNotShared:
    def test_tools_and_formats(self, provider: Any, cache: AskonceCache) -> None:
        """A plain call, one with tools and one in JSON mode are three questions."""
        model = provider.chat(cache)
        for _ in range(2):
            model.invoke("q")
            model.bind_tools([TOOL]).invoke("q")
            model.bind(response_format={"type": "json_object"}).invoke("q")
        assert provider.calls == 3

    def test_prompt_and_model(self, cache: AskonceCache) -> None:
        """("ab", "c") is not ("a", "bc")."""
        cache.update("ab", "c", X)
        assert cache.lookup("a", "bc") is None

    def test_namespaces(self, provider: Any, url: str) -> None:
        """Nothing is served across namespaces."""
        for namespace in ("a", "b", "a"):
            provider.chat(AskonceCache(url, namespace=namespace, deadline=2.0)).invoke("q")
        assert provider.calls == 2

    @pytest.mark.parametrize("way", ["invoke", "stream"])
    @pytest.mark.parametrize("kind", ["chat", "completion"])
    @pytest.mark.parametrize(
        ("change", "call"),
        [({"n": 2, "best_of": 2}, {}), ({"base_url": "http://other/v1"}, {}), ({}, {"stop": ["x"]})],
        ids=["n", "address", "stop"],
    )
    def test_parameters(
        self, provider: Any, cache: AskonceCache, change: Any, call: Any, kind: str, way: str
    ) -> None:
        """Another stop, number of answers or address is another question."""
        if kind == "chat":
            change = {name: value for name, value in change.items() if name != "best_of"}
        ask = "invoke" if "n" in change else way  # a stream of several answers is not cached
        for _ in range(2):
            list(getattr(getattr(provider, kind)(cache), way)("q"))
            list(getattr(getattr(provider, kind)(cache, **change), ask)("q", **call))
        assert provider.calls == 2

    def test_previous_response(self, provider: Any, cache: AskonceCache) -> None:
        """The id of an answer that the provider keeps, and is sent back to it, counts."""
        model = provider.chat(cache, use_responses_api=True, use_previous_response_id=True)
        for id_ in ("resp_1", "resp_2", "resp_1"):
            model.invoke(
                [HumanMessage("a"), AIMessage("b", response_metadata={"id": id_}), HumanMessage("c")]
            )
        assert [request["previous_response_id"] for request in provider.requests] == ["resp_1", "resp_2"]

    async def test_secrets_stay_in_the_process(
        self, provider: Any, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """No header, API key, token of a tool or question is in any key, value or log record, nor in an error's text."""
        caplog.set_level("DEBUG", logger="askonce")
        cache = AskonceCache(url, deadline=2.0)
        chat = provider.chat(cache, default_headers={"Authorization": "Bearer SECRET"})
        server = {"type": "mcp", "server_label": "x", "server_url": "http://x", "authorization": "SECRET"}
        tools = provider.chat(cache, use_responses_api=True).bind_tools([server | {"name": "x"}])
        question = "a PRIVATE question"
        for model in (chat, tools, provider.completion(cache)):
            for _ in range(2):
                model.invoke(question)
                list(model.stream(question))
                await model.ainvoke(question)
        provider.failing = {provider.calls + 1}
        with pytest.raises(openai.InternalServerError):
            chat.invoke("another PRIVATE question")
        cache.lookup("PRIVATE", f"SECRET {object()!r}")
        cache.cache.close()
        kept = [caplog.text.encode(), *everything(url)]
        assert any(b"answer 1-0" in part for part in kept)
        assert provider.calls == 4
        assert not any(word in part for part in kept for word in (b"SECRET", b"PRIVATE", b"Bearer"))


def everything(url: str) -> list[bytes]:
    """Every key and every value of the database, as bytes."""
    found: list[Any] = []
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter():
            read = {
                b"string": lambda key: [client.get(key)],
                b"hash": lambda key: [part for pair in client.hgetall(key).items() for part in pair],
                b"zset": lambda key: client.zrange(key, 0, -1),
                b"list": lambda key: client.lrange(key, 0, -1),
                b"set": lambda key: list(client.smembers(key)),
            }[client.type(key)]
            found += [key, *read(key)]
    return found


class TestWhereItWorks:
    def test_in_another_process(self, provider: Any, cache: AskonceCache, url: str) -> None:
        """The key is the same in every process."""
        provider.chat(cache).invoke([HumanMessage("q"), AIMessage("a", tool_calls=[]), HumanMessage("b")])
        program = """
import sys
from langchain_core.messages import AIMessage, HumanMessage
from askonce_langchain import AskonceCache
from tests.integrations.langchain.conftest import Provider

provider = Provider()
model = provider.chat(AskonceCache(sys.argv[1], deadline=2.0))
print(model.invoke([HumanMessage("q"), AIMessage("a"), HumanMessage("b")]).text, provider.calls)
"""
        command = [sys.executable, "-c", program, url]
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
        ).stdout
        assert said.split() == ["answer", "1-0", "0"]

    def test_in_many_event_loops(self, provider: Any, cache: AskonceCache) -> None:
        """A cache outlives the loops it was used in."""
        texts = {asyncio.run(provider.chat(cache).ainvoke("q")).text for _ in range(3)}
        assert texts == {"answer 1-0"}
        assert provider.calls == 1

    @pytest.mark.parametrize("hooks", [True, False], ids=["hooks", "no hooks"])
    def test_without_a_thread(self, provider: Any, url: str, hooks: bool) -> None:
        """
        Async calls run on their loop: hits, misses and ``aclear`` ask for no thread.

        LangChain's ``BaseCache`` hands the sync methods to one, and langchain-redis asked for long (langchain-redis#21).
        """

        handed: list[Any] = []

        class Threads(ThreadPoolExecutor):
            def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
                called = fn.args[0] if isinstance(fn, functools.partial) else fn
                handed.append(called)
                # LangChain's own way to a thread wraps what is to be called.
                handed.extend(cell.cell_contents for cell in getattr(called, "__closure__", None) or ())
                return super().submit(fn, *args, **kwargs)

        async def ask() -> list[str]:
            asyncio.get_running_loop().set_default_executor(Threads())
            cache = AskonceCache(url, hooks=hooks, deadline=2.0)
            await cache.aupdate("p", "l", X)
            assert await cache.alookup("p", "l") == X
            chat, completion = provider.chat(cache), provider.completion(cache)
            said = []
            for _ in range(2):
                said += [(await chat.ainvoke("q")).text, await completion.ainvoke("q")]
                said += [answer.text for answer in await chat.abatch(["r", "s"])]
                async for _ in chat.astream("q"):
                    pass
            await cache.aclear()
            assert await cache.alookup("p", "l") is None
            return said

        said = asyncio.run(ask())
        assert said[:4] == said[4:]
        assert provider.calls == (4 if hooks else 6)
        assert handed  # openai and langchain-openai do ask for threads
        assert not [one for one in handed if isinstance(getattr(one, "__self__", None), BaseCache)]
        assert not [one for one in handed if str(getattr(one, "__module__", "")).startswith("askonce")]

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
    def test_copied(self, cache: AskonceCache, copied: Any) -> None:
        """A copy, also in another process, is a cache of the same entries."""
        cache.update("p", "l", X)
        assert copied(cache).lookup("p", "l") == X


class TestSwitches:
    @pytest.fixture(autouse=True)
    def _no_global_cache(self) -> Any:
        yield
        set_llm_cache(None)

    @pytest.mark.parametrize("way", ["invoke", "stream"])
    @pytest.mark.parametrize("kind", ["chat", "completion"])
    def test_globally(self, provider: Any, cache: AskonceCache, kind: str, way: str) -> None:
        """The global cache serves models with ``cache=None`` and ``cache=True``, not with ``cache=False``."""
        set_llm_cache(cache)
        for model_cache, calls in ((None, 1), (True, 1), (False, 2), (False, 3), (None, 3)):
            list(getattr(getattr(provider, kind)(model_cache), way)("q"))
            assert provider.calls == calls

    @pytest.mark.parametrize("way", ["invoke", "stream"])
    @pytest.mark.parametrize("kind", ["chat", "completion"])
    def test_per_model(self, provider: Any, url: str, kind: str, way: str) -> None:
        """A model's own cache beats the global one, which hears nothing of its calls."""
        everybodys, own = (AskonceCache(url, namespace=name, deadline=2.0) for name in ("global", "own"))
        set_llm_cache(everybodys)
        for cache, calls in ((None, 1), (own, 2), (own, 2), (None, 2)):
            list(getattr(getattr(provider, kind)(cache), way)("q"))
            assert provider.calls == calls
        assert [cache.cache.stats().misses for cache in (everybodys, own)] == [1, 1]

    async def test_by_control(self, provider: Any, cache: AskonceCache) -> None:
        """The words of ``askonce.control`` hold for the calls inside the block, and for no other."""
        model = provider.chat(cache)
        with control(only_if_cached=True):
            for ask in (lambda: model.invoke("q"), lambda: model.bind(x="<class 'X'>").invoke("q")):
                with pytest.raises(NotCached):
                    ask()
            with pytest.raises(NotCached):
                await model.ainvoke("q")
        with control(write=False):
            model.invoke("q")
        for _ in range(2):
            with control(read=False):
                await model.ainvoke("q")
        assert provider.calls == 3
        assert model.invoke("q").text == "answer 3-0"

    def test_cleared(self, provider: Any, cache: AskonceCache) -> None:
        """After ``clear`` the provider is asked again."""
        model = provider.chat(cache)
        model.invoke("q")
        cache.clear(anything="goes")
        model.invoke("q")
        assert provider.calls == 2


class TestConstructor:
    def test_a_cache_is_used_as_it_is(self, url: str) -> None:
        """A ``Cache`` of one's own is shared, not copied."""
        own = Cache(url, namespace="own")
        assert AskonceCache(own).cache is own

    def test_a_cache_takes_no_options(self, url: str) -> None:
        """Options beside a ``Cache`` would be lost: they are named."""
        with pytest.raises(TypeError, match="namespace="):
            AskonceCache(Cache(url), namespace="x")

    def test_anything_else_is_named(self, url: str) -> None:
        """The async twin, say, would serve but one colour."""
        with pytest.raises(TypeError, match="AsyncCache"):
            AskonceCache(Cache(url).aio)  # type: ignore[arg-type]

    def test_options_are_those_of_the_cache(self, url: str) -> None:
        """A wrong one is refused where it is given."""
        with pytest.raises(TypeError):
            AskonceCache(url, no_such_option=1, deadline=2.0)
        with pytest.raises(ValueError, match="usage_on_hit='x'"):
            AskonceCache(url, usage_on_hit="x", deadline=2.0)  # type: ignore[arg-type]


class TestWhatPassesUncached:
    def test_a_request_that_cannot_be_keyed(self, cache: AskonceCache) -> None:
        """It is a miss, counted once with its reason."""
        llm_string = "[('response_format', <class 'app.Out'>)]"
        assert cache.lookup("p", llm_string) is None
        cache.update("p", llm_string, X)
        assert cache.lookup("p", llm_string) is None
        assert cache.cache.stats().bypass_reasons == {"uncacheable": 2}

    async def test_an_answer_that_admission_refuses(self, cache: AskonceCache) -> None:
        """It is not stored, and counted with its reason."""
        cut = [Generation(text="x", generation_info={"finish_reason": "length"})]
        cache.update("p", "l", cut)
        await cache.aupdate("p", "l", cut)
        assert cache.lookup("p", "l") is None
        assert cache.cache.stats().rejection_reasons == {"truncated": 2}

    async def test_an_answer_that_would_not_come_back(self, cache: AskonceCache) -> None:
        """It is not stored, and nobody is told but the counters."""
        odd = [Generation(text="x", generation_info={"x": object()})]
        cache.update("p", "l", odd)
        await cache.aupdate("p", "l", odd)
        assert cache.lookup("p", "l") is None
        assert cache.cache.stats().uncacheable == 2

    def test_a_defect_costs_no_answer(
        self,
        provider: Any,
        cache: AskonceCache,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Whatever fails inside the cache, the call is made and its answer returned; a record names the failure."""

        def fail(*args: object) -> None:
            raise RuntimeError("PRIVATE")

        monkeypatch.setattr("askonce_langchain._cache.request", fail)
        assert provider.chat(cache).invoke("q").text == "answer 1-0"
        cache.update("p", "l", X)
        monkeypatch.undo()
        monkeypatch.setattr("askonce_langchain._calls.as_given_by", fail)
        assert provider.chat(cache).invoke("q").text == "answer 2-0"
        assert cache.cache.stats().bypass_reasons == {"error": 1}
        assert cache.cache.stats().rejection_reasons == {"error": 2}
        assert "RuntimeError" in caplog.text
        assert "PRIVATE" not in caplog.text

    def test_strict(self, url: str) -> None:
        """A request that cannot be keyed is a miss even for a strict cache."""
        cache = AskonceCache(url, strict=True, deadline=2.0)
        assert cache.lookup("p", f"{object()!r}") is None
        assert cache.cache.stats().bypassed == 1
