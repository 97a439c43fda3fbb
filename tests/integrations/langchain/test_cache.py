"""LangChain's models with the cache: which calls are answered from it, and what their callers get."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import redis
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
    return AskonceCache(url)


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
        """LangChain changes the objects it is given; the next caller does not see it (case 19)."""
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
        """LangChain takes a tuple for a miss and fails on an empty list (case 17)."""
        assert cache.lookup("p", "l") is None
        cache.update("p", "l", [])
        cache.update("p", "l", ())
        assert cache.lookup("p", "l") is None
        cache.update("p", "l", tuple(X))
        assert cache.lookup("p", "l") == X
        assert isinstance(cache.lookup("p", "l"), list)

    def test_fewer_generations_replace_more(self, cache: AskonceCache) -> None:
        """Six hundred come back in order; the one that replaces them comes back alone (cases 39, 50, 51)."""
        many = [Generation(text=str(number)) for number in range(600)]
        cache.update("p", "l", many)
        assert cache.lookup("p", "l") == many
        cache.update("p", "l", X)
        assert cache.lookup("p", "l") == X


class TestNear:
    def test_a_copy_is_as_good_as_what_redis_sends(self, provider: Any, url: str) -> None:
        """A hit from this process is a new object, marked as one; what is cleared elsewhere is asked anew (case 19)."""
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
        """A hit has whole usage metadata, whether the provider reported any or not (case 20)."""
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
            model = provider.chat(AskonceCache(url, usage_on_hit=option))
            model.invoke("q")
            total.append(model.invoke("q").usage_metadata["total_tokens"])
        assert total == [15, 0]


class TestWhatIsNotShared:
    def test_tools_and_formats(self, provider: Any, cache: AskonceCache) -> None:
        """A plain call, one with tools and one in JSON mode are three questions (case 6)."""
        model = provider.chat(cache)
        for _ in range(2):
            model.invoke("q")
            model.bind_tools([TOOL]).invoke("q")
            model.bind(response_format={"type": "json_object"}).invoke("q")
        assert provider.calls == 3

    def test_prompt_and_model(self, cache: AskonceCache) -> None:
        """("ab", "c") is not ("a", "bc") (case 7)."""
        cache.update("ab", "c", X)
        assert cache.lookup("a", "bc") is None

    def test_namespaces(self, provider: Any, url: str) -> None:
        """Nothing is served across namespaces (case 8)."""
        for namespace in ("a", "b", "a"):
            provider.chat(AskonceCache(url, namespace=namespace)).invoke("q")
        assert provider.calls == 2

    @pytest.mark.parametrize(
        ("change", "call"), [({"n": 2}, {}), ({"base_url": "http://other/v1"}, {}), ({}, {"stop": ["x"]})]
    )
    def test_parameters(
        self, provider: Any, cache: AskonceCache, change: dict[str, Any], call: dict[str, Any]
    ) -> None:
        """Another stop, number of answers or address is another question (case 10)."""
        for _ in range(2):
            provider.chat(cache).invoke("q")
            provider.chat(cache, **change).invoke("q", **call)
        assert provider.calls == 2

    def test_previous_response(self, provider: Any, cache: AskonceCache) -> None:
        """The id of an answer that the provider keeps, and is sent back to it, counts (case 10)."""
        model = provider.chat(cache, use_responses_api=True, use_previous_response_id=True)
        for id_ in ("resp_1", "resp_2", "resp_1"):
            model.invoke(
                [HumanMessage("a"), AIMessage("b", response_metadata={"id": id_}), HumanMessage("c")]
            )
        assert [request["previous_response_id"] for request in provider.requests] == ["resp_1", "resp_2"]

    def test_secrets_stay_in_the_process(
        self, provider: Any, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """No header, API key or question is in any key, value or log record (case 22)."""
        caplog.set_level("DEBUG", logger="askonce")
        cache = AskonceCache(url)
        model = provider.chat(cache, default_headers={"Authorization": "Bearer SECRET"})
        for _ in range(2):
            model.invoke("a PRIVATE question")
        cache.lookup("PRIVATE", f"SECRET {object()!r}")
        cache.cache.close()
        kept = [caplog.text.encode(), *everything(url)]
        assert any(b"answer 1-0" in part for part in kept)
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
        """The key is the same in every process (case 16)."""
        provider.chat(cache).invoke([HumanMessage("q"), AIMessage("a", tool_calls=[]), HumanMessage("b")])
        program = """
import sys
from langchain_core.messages import AIMessage, HumanMessage
from askonce_langchain import AskonceCache
from tests.integrations.langchain.conftest import Provider

provider = Provider()
model = provider.chat(AskonceCache(sys.argv[1]))
print(model.invoke([HumanMessage("q"), AIMessage("a"), HumanMessage("b")]).text, provider.calls)
"""
        command = [sys.executable, "-c", program, url]
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
        ).stdout
        assert said.split() == ["answer", "1-0", "0"]

    def test_in_many_event_loops(self, provider: Any, cache: AskonceCache) -> None:
        """A cache outlives the loops it was used in (case 24)."""
        texts = {asyncio.run(provider.chat(cache).ainvoke("q")).text for _ in range(3)}
        assert texts == {"answer 1-0"}
        assert provider.calls == 1

    async def test_without_a_thread(self, cache: AskonceCache) -> None:
        """The async methods are LangChain's own colour: they start no thread."""
        await cache.aupdate("p", "l", X)
        assert await cache.alookup("p", "l") == X
        await cache.aclear()
        assert await cache.alookup("p", "l") is None
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio_")]

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

    def test_globally(self, provider: Any, cache: AskonceCache) -> None:
        """The global cache serves models with ``cache=None`` and ``cache=True``, not with ``cache=False`` (case 23)."""
        set_llm_cache(cache)
        for model_cache in (None, True):
            provider.chat(model_cache).invoke("q")
        assert provider.calls == 1
        provider.chat(False).invoke("q")
        assert provider.calls == 2

    def test_per_model(self, provider: Any, url: str) -> None:
        """A model's own cache beats the global one (case 23)."""
        set_llm_cache(AskonceCache(url, namespace="global"))
        provider.chat().invoke("q")
        provider.chat(AskonceCache(url, namespace="own")).invoke("q")
        assert provider.calls == 2

    async def test_by_control(self, provider: Any, cache: AskonceCache) -> None:
        """The words of ``askonce.control`` hold for the calls inside the block, and for no other (case 25)."""
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
            AskonceCache(url, no_such_option=1)
        with pytest.raises(ValueError, match="usage_on_hit='x'"):
            AskonceCache(url, usage_on_hit="x")  # type: ignore[arg-type]


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
        cache = AskonceCache(url, strict=True)
        assert cache.lookup("p", f"{object()!r}") is None
        assert cache.cache.stats().bypassed == 1
