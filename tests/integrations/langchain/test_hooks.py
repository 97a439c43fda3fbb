"""The hooks: installed once, undone whole, declined, and left out where LangChain is not as it is known."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.llms import BaseLLM
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.graph import END, START, MessagesState, StateGraph

from askonce import Cache, ConfigurationError, NotCached, Policy, control
from askonce_langchain import AskonceCache, _hooks, install, uninstall

PLACES = [
    (BaseChatModel, "_generate_with_cache"),
    (BaseChatModel, "_agenerate_with_cache"),
    (BaseChatModel, "stream"),
    (BaseChatModel, "astream"),
    (BaseLLM, "generate"),
    (BaseLLM, "agenerate"),
    (BaseLLM, "stream"),
    (BaseLLM, "astream"),
]


@pytest.fixture
def cache(url: str) -> AskonceCache:
    return AskonceCache(url, deadline=2.0)


@pytest.fixture(autouse=True)
def _no_global_cache() -> Iterator[None]:
    yield
    set_llm_cache(None)


def methods() -> list[Any]:
    return [owner.__dict__[name] for owner, name in PLACES]


class TestInstalled:
    def test_by_the_constructor_once(self, url: str) -> None:
        """A second cache installs nothing, and ``uninstall`` gives LangChain its own methods back."""
        before = methods()
        AskonceCache(url, deadline=2.0)
        hooked = methods()
        assert not any(one is other for one, other in zip(before, hooked, strict=True))
        assert [method.__name__ for method in hooked] == [name for _, name in PLACES]
        AskonceCache(url, namespace="other", deadline=2.0)
        assert methods() == hooked
        uninstall()
        assert methods() == before
        uninstall()
        assert methods() == before

    def test_by_install(self, url: str, provider: Any) -> None:
        """``install`` makes the cache the global one; ``uninstall`` undoes that too."""
        cache = install(url, namespace="mine", deadline=2.0)
        assert get_llm_cache() is cache
        assert cache.cache.namespace == "mine"
        for _ in range(2):
            list(provider.chat().stream("q"))
        assert provider.calls == 1
        assert install(cache) is cache
        uninstall()
        assert get_llm_cache() is None
        with pytest.raises(TypeError, match="namespace="):
            install(cache, namespace="x")
        assert install(Cache(url)).cache.namespace == "default"

    def test_a_cache_of_somebody_else_stays(self, url: str) -> None:
        """``uninstall`` touches no other global cache."""
        from langchain_core.caches import InMemoryCache

        theirs = InMemoryCache()
        AskonceCache(url, deadline=2.0)
        set_llm_cache(theirs)
        uninstall()
        assert get_llm_cache() is theirs

    def test_declined(self, url: str, provider: Any) -> None:
        """With ``hooks=False`` nothing is installed, and another cache's hooks leave it alone."""
        before = methods()
        declined = AskonceCache(url, hooks=False, deadline=2.0)
        assert methods() == before
        AskonceCache(url, namespace="other", deadline=2.0)
        for _ in range(2):
            list(provider.chat(declined).stream("q"))
        assert provider.calls == 2
        for _ in range(2):
            provider.chat(declined).invoke("q")
        assert provider.calls == 3

    def test_in_another_process(self, url: str) -> None:
        """A cache that is unpickled there has its hooks there."""
        program = "import pickle, sys; pickle.loads(bytes.fromhex(sys.argv[1])); from langchain_core.language_models import BaseChatModel as m; print(hasattr(m.stream, '__wrapped__'))"
        command = [sys.executable, "-c", program, pickle.dumps(AskonceCache(url, deadline=2.0)).hex()]
        root = Path(__file__).parents[3]
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60, cwd=root
        ).stdout
        assert said.strip() == "True"

    def test_over_somebody_elses(self, url: str, provider: Any) -> None:
        """A stand-in of a third party stays where it is; ours below it does nothing any more."""
        own = BaseChatModel.stream
        cache = AskonceCache(url, deadline=2.0)
        ours = BaseChatModel.stream

        def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
            return ours(self, *args, **kwargs)

        BaseChatModel.stream = theirs  # type: ignore[method-assign]
        try:
            uninstall()
            assert BaseChatModel.stream is theirs
            for _ in range(2):
                list(provider.chat(cache).stream("q"))
            assert provider.calls == 2
        finally:
            BaseChatModel.stream = own  # type: ignore[method-assign]


class TestLangChainHasChanged:
    def test_a_method_is_gone(
        self, url: str, provider: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is left out with one warning, the others work."""
        monkeypatch.setattr(_hooks, "_warned", set())

        def stream(self: Any, something: Any, other: Any = None, **kwargs: Any) -> Any:
            return original(self, something, other, **kwargs)

        original = BaseChatModel.stream
        monkeypatch.setattr(BaseChatModel, "stream", stream)
        monkeypatch.delattr(BaseLLM, "agenerate")
        for _ in range(2):
            cache = AskonceCache(url, deadline=2.0)
            uninstall()
        cache = AskonceCache(url, deadline=2.0)
        warned = [record.getMessage() for record in caplog.records]
        assert len(warned) == 2
        assert "BaseChatModel.stream" in warned[1]
        assert BaseChatModel.__dict__["stream"] is stream
        model = provider.chat(cache)
        for _ in range(2):
            assert "".join(chunk.text for chunk in model.stream("q"))
            model.invoke("q")
        assert provider.calls == 3
        uninstall()

    async def test_without_the_calls_hooks(
        self, url: str, provider: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """LangChain's two strings are the key then, as without hooks."""
        monkeypatch.setattr(_hooks, "_hooks", tuple)
        cache = AskonceCache(url, deadline=2.0)
        for _ in range(2):
            await provider.chat(cache).ainvoke("q")
            provider.completion(cache).invoke("q")
        assert provider.calls == 2


class TestControl:
    def test_by_metadata(self, provider: Any, cache: AskonceCache) -> None:
        """Words of control in a call's metadata hold for that call alone, and are no part of the key."""
        model = provider.chat(cache)
        model.invoke("q", {"metadata": {"askonce": {"write": False}}})
        assert cache.cache.stats().stored == 0
        model.invoke("q")
        assert model.invoke("q", {"metadata": {"askonce": {"ttl": 60}, "other": 1}}).text == "answer 2-0"
        model.invoke("q", {"metadata": {"askonce": {"read": False}}})
        model.invoke("q")
        assert provider.calls == 3

    def test_through_a_chain_and_a_graph(self, provider: Any, cache: AskonceCache) -> None:
        """They reach every model call below."""
        model = provider.chat(cache)
        chain = ChatPromptTemplate.from_template("{x}") | model | (lambda message: message.text)
        graph = StateGraph(MessagesState)
        graph.add_node("ask", lambda state: {"messages": [model.invoke(state["messages"])]})
        graph.add_edge(START, "ask").add_edge("ask", END)
        only = {"metadata": {"askonce": {"only_if_cached": True}}}
        with pytest.raises(NotCached):
            chain.invoke({"x": "q"}, only)
        with pytest.raises(NotCached):
            graph.compile().invoke({"messages": [HumanMessage("q")]}, only)  # type: ignore[call-overload]
        chain.invoke({"x": "q"})
        assert chain.invoke({"x": "q"}, only) == "answer 1-0"
        assert provider.calls == 1

    async def test_by_a_block_around_all_this(self, provider: Any, cache: AskonceCache) -> None:
        """A block holds for batches, chains and graphs inside, in threads and tasks too, and ends with itself."""
        model = provider.chat(cache)
        chain = ChatPromptTemplate.from_template("{x}") | model
        graph = StateGraph(MessagesState)
        graph.add_node("ask", lambda state: {"messages": [model.invoke(state["messages"])]})
        graph.add_edge(START, "ask").add_edge("ask", END)
        compiled = graph.compile()
        asked: Any = {"messages": [HumanMessage("q")]}
        calls: list[Any] = [
            lambda: model.batch(["q", "r"]),
            lambda: chain.batch([{"x": "q"}, {"x": "r"}]),
            lambda: compiled.invoke(asked),
            lambda: model.abatch(["q", "r"]),
            lambda: chain.ainvoke({"x": "q"}),
            lambda: compiled.ainvoke(asked),
        ]

        async def say(call: Any) -> None:
            said = call()
            if inspect.isawaitable(said):
                await said

        for call in calls:
            with control(only_if_cached=True), pytest.raises(NotCached):
                await say(call)
        assert provider.calls == 0
        for call in calls:
            await say(call)
        assert provider.calls == 2

    def test_of_completion_models(self, provider: Any, cache: AskonceCache) -> None:
        """Each prompt of a batch has its own."""
        model = provider.completion(cache)
        model.batch(["a", "b"], [{"metadata": {"askonce": {"write": False}}}, {}])
        assert cache.cache.stats().stored == 1
        model.invoke("b", {"metadata": {"askonce": {"only_if_cached": True}}})
        with pytest.raises(NotCached):
            model.invoke("a", {"metadata": {"askonce": {"only_if_cached": True}}})

    def test_of_the_outer_run(self, provider: Any, cache: AskonceCache) -> None:
        """A step of one's own that hands on its callbacks alone hands on the metadata of its run."""

        def step(x: str, config: RunnableConfig) -> Any:
            only = {"callbacks": config["callbacks"]}  # type: ignore[typeddict-item]
            return ["".join(model.stream(x, only)), model.invoke(x, only)]

        model = provider.completion(cache)
        with pytest.raises(NotCached):
            RunnableLambda(step).invoke("q", {"metadata": {"askonce": {"only_if_cached": True}}})
        assert RunnableLambda(step).invoke("q") == ["text 1-0", "text 1-0"]

    def test_of_the_model(self, provider: Any, cache: AskonceCache) -> None:
        """A model's own metadata hold for all its calls."""
        model = provider.chat(cache, metadata={"askonce": {"write": False}})
        list(model.stream("q"))
        model.invoke("q")
        assert (provider.calls, cache.cache.stats().stored) == (2, 0)

    def test_beside_listeners_of_any_kind(self, provider: Any, cache: AskonceCache) -> None:
        """What a listener calls metadata is none of ours; what LangChain refuses, it refuses itself."""

        class Listener(BaseCallbackHandler):
            metadata = "mine"

        model = provider.completion(cache)
        model.generate(["a", "b"], callbacks=[Listener(), Listener()])
        with pytest.raises(ValueError, match="prompts"):
            model.generate(iter(["a"]))
        assert provider.calls == 1

    async def test_beat_the_block(self, provider: Any, cache: AskonceCache) -> None:
        """They win over a block around the call; what they do not name stays as the block has it."""
        model = provider.chat(cache)
        for tag in ("page", "line"):
            with control(write=False, tags=["page"]):
                await model.ainvoke(tag, {"metadata": {"askonce": {"write": True, "tags": ["line"]}}})
            await model.ainvoke(tag)
            cache.cache.invalidate_tag(tag)
            await model.ainvoke(tag)
        assert provider.calls == 4

    def test_scope(self, provider: Any, cache: AskonceCache) -> None:
        """A scope is part of the key."""
        model = provider.chat(cache)
        for tenant in ("a", "b", "a"):
            model.invoke("q", {"metadata": {"askonce": {"scope": {"tenant": tenant}}}})
        assert provider.calls == 2

    def test_no_cache_at_all(self, provider: Any, cache: AskonceCache) -> None:
        """Neither read nor write: nobody is waited for, and nothing is looked up."""
        for _ in range(2):
            provider.chat(cache).invoke("q", {"metadata": {"askonce": {"read": False, "write": False}}})
        assert (provider.calls, cache.cache.stats().misses) == (2, 0)

    @pytest.mark.parametrize(
        ("given", "named"), [({"tll": 60}, "tll"), ({"ttl": "soon"}, "soon"), ("ttl=60", "words of")]
    )
    def test_a_wrong_word(self, provider: Any, cache: AskonceCache, given: Any, named: str) -> None:
        """It is an error where it is given, as in ``control``."""
        for model in (provider.chat(cache), provider.completion(cache)):
            with pytest.raises(ConfigurationError, match=named):
                model.invoke("q", {"metadata": {"askonce": given}})
        assert provider.calls == 0


class TestStale:
    def test_all_but_one(self, provider: Any, url: str) -> None:
        """While one caller asks anew, the others get the stale answer."""
        policy = Policy(ttl="1h", stale_while_revalidate="1h")
        cache = AskonceCache(Cache(url, policy=policy, deadline=2.0))
        model = provider.chat(cache)
        model.invoke("q", {"metadata": {"askonce": {"ttl": 0.001}}})
        served: list[Any] = []

        def gate(number: int) -> None:
            served.extend(model.invoke("q") for _ in range(3))

        provider.gate = gate
        time.sleep(0.01)  # ten times the ttl
        assert model.invoke("q").text == "answer 2-0"
        assert [answer.text for answer in served] == ["answer 1-0"] * 3
        assert {answer.response_metadata["askonce"]["source"] for answer in served} == {"stale"}
        assert provider.calls == 2
