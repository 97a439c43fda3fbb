"""
What LangChain's own key forgets, and ours does not: each wrong answer shown on LangChain's, and missing on ours.

A model that was changed (langchain#39598), what is bound to a completion model (langchain#40403), an edited schema, a class
that does not say what identifies it (langchain#19328).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import PurePosixPath
from typing import Any, TypedDict

import pytest
from langchain_core.caches import BaseCache, InMemoryCache
from langchain_core.language_models import FakeListChatModel
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from askonce import Uncacheable
from askonce.keys import canonical
from askonce_langchain import AskonceCache
from askonce_langchain._live import live, sets_limit


@pytest.fixture
def cache(url: str) -> AskonceCache:
    return AskonceCache(url, deadline=2.0)


class Custom(BaseChatModel):
    """A custom model as people write them: nothing says what identifies it."""

    which: str

    @property
    def _llm_type(self) -> str:
        return "custom"

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self.which))])

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[Any]:
        yield ChatGenerationChunk(message=AIMessageChunk(content=self.which))


def schema(field: str) -> type[BaseModel]:
    """A class of one name, and a field of its own: what an edit of the program makes of it."""
    return type(
        "Out", (BaseModel,), {"__annotations__": {field: str}, "__qualname__": "Out", "__module__": "app"}
    )


Ask = Callable[[Any], object]


def changed_temperature(provider: Any, cache: BaseCache, ask: Ask) -> None:
    """langchain#39598: what the model was at its first call counts for ever."""
    model = provider.chat(cache, temperature=0)
    ask(model)
    model.temperature = 1.0
    ask(model)


def changed_model(provider: Any, cache: BaseCache, ask: Ask) -> None:
    """So it is for the model's name."""
    model = provider.chat(cache)
    ask(model)
    model.model_name = "gpt-y"
    ask(model)


def copied_model(provider: Any, cache: BaseCache, ask: Ask) -> None:
    """A copy with other fields answers as what it was copied from."""
    model = provider.chat(cache, temperature=0)
    ask(model)
    ask(model.model_copy(update={"temperature": 1.0}))


def edited_schema(provider: Any, cache: BaseCache, ask: Ask) -> None:
    """A class of structured output that was edited has the name that it had."""
    for field in ("cityName", "when"):
        ask(provider.chat(cache).bind(response_format=schema(field)))


def bound_completion(provider: Any, cache: BaseCache, ask: Ask) -> None:
    """langchain#40403: of a completion model nothing that is bound to it counts."""
    model = provider.completion(cache)
    ask(model)
    ask(model.bind(model="another"))


def bound_temperature(provider: Any, cache: BaseCache, ask: Ask) -> None:
    """So it is for a temperature."""
    model = provider.completion(cache)
    ask(model)
    ask(model.bind(temperature=1.7))


def other_address(provider: Any, cache: BaseCache, ask: Ask) -> None:
    """A completion model's key does not tell where it asks."""
    for address in ("http://one/v1", "http://other/v1"):
        ask(provider.completion(cache, base_url=address))


WRONG: list[Callable[[Any, BaseCache, Ask], None]] = [
    changed_temperature,
    changed_model,
    copied_model,
    edited_schema,
    bound_completion,
    bound_temperature,
    other_address,
]


async def _read(model: Any) -> list[Any]:
    return [chunk async for chunk in model.astream("q")]


WAYS: dict[str, Ask] = {
    "invoke": lambda model: model.invoke("q"),
    "ainvoke": lambda model: asyncio.run(model.ainvoke("q")),
    "batch": lambda model: model.batch(["q"]),
    "stream": lambda model: list(model.stream("q")),
    "astream": lambda model: asyncio.run(_read(model)),
}


class TestWrongAnswers:
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
    def test_of_langchain(self, provider: Any, cache: AskonceCache, wrong: Any, way: str) -> None:
        """LangChain's key serves one question's answer to another; ours asks twice, whichever way it is asked."""
        if way == "invoke":
            wrong(provider, InMemoryCache(), WAYS[way])
            assert provider.calls == 1
            provider.requests.clear()
        for _ in range(2):
            wrong(provider, cache, WAYS[way])
            assert provider.calls == 2

    def test_of_custom_models(self, cache: AskonceCache) -> None:
        """Two custom models that say only their type answer for each other in LangChain's."""
        theirs = InMemoryCache()
        assert [Custom(which=w, cache=theirs).invoke("q").content for w in "AB"] == ["A", "A"]
        assert [Custom(which=w, cache=cache).invoke("q").content for w in "AB"] == ["A", "B"]
        assert [next(iter(Custom(which=w, cache=cache).stream("q"))).content for w in "AB"] == ["A", "B"]

    def test_without_live_parameters(self, provider: Any, url: str) -> None:
        """Who declines them has LangChain's key; what that cannot tell is not cached."""
        cache = AskonceCache(url, live_parameters=False, deadline=2.0)
        changed_temperature(provider, cache, WAYS["invoke"])
        assert provider.calls == 1
        edited_schema(provider, cache, WAYS["invoke"])
        assert provider.calls == 3
        assert cache.cache.stats().bypass_reasons == {"uncacheable": 2}


class TestOneQuestion:
    def test_a_changed_model_is_a_new_one(self, provider: Any, cache: AskonceCache) -> None:
        """What a model is told counts, not how it came to be told."""
        model = provider.chat(cache, temperature=0)
        model.invoke("q")
        model.temperature = 1.0
        model.invoke("q")
        provider.chat(cache, temperature=1.0).invoke("q")
        assert provider.calls == 2

    @pytest.mark.parametrize(
        "change",
        [{"timeout": 9}, {"max_retries": 5}, {"streaming": True}, {"stream_usage": True}, {"verbose": True},
         {"tags": ["t"]}, {"metadata": {"m": 1}}, {"name": "n"}],
        ids=str,
    )  # fmt: skip
    async def test_how_the_call_is_made(
        self, provider: Any, cache: AskonceCache, change: dict[str, Any]
    ) -> None:
        """Timeouts, retries, names and streams change the call, not the question."""
        provider.chat(cache).invoke("q")
        for _ in provider.chat(cache, **change).stream("q"):
            pass
        await provider.chat(cache, **change).ainvoke("q")
        assert provider.calls == 1

    @pytest.mark.parametrize(
        "change",
        [
            {"model": "gpt-y"},
            {"temperature": 1.5},
            {"base_url": "http://other/v1"},
            {"n": 2},
            {"model_kwargs": {"user": "u"}},
            {"use_responses_api": True},
            {"output_version": "v1"},
            {"default_headers": {"x": "y"}},
            {"stop": ["."]},
        ],
        ids=str,
    )
    def test_what_the_model_is_told(self, provider: Any, cache: AskonceCache, change: dict[str, Any]) -> None:
        """Every parameter counts unless it is known not to matter."""
        for _ in range(2):
            provider.chat(cache).invoke("q")
            provider.chat(cache, **change).invoke("q")
        assert provider.calls == 2

    def test_tools_and_formats(self, provider: Any, cache: AskonceCache) -> None:
        """A plain call, one with tools and one in JSON mode are three, by stream too."""
        parameters = {"type": "object", "properties": {}}
        given = {"type": "function", "function": {"name": "t", "parameters": parameters}}
        model = provider.chat(cache)
        ways = [model, model.bind_tools([given]), model.bind(response_format={"type": "json_object"})]
        for way in ways:
            list(way.stream("q"))
            way.invoke("q")
        assert provider.calls == 3

    def test_the_api_key(self, provider: Any, cache: AskonceCache) -> None:
        """It is in no key: tenants are kept apart by namespaces."""
        provider.chat(cache).invoke("q")
        provider.chat(cache, api_key="sk-OTHER").invoke("q")
        assert provider.calls == 1

    def test_structured_output(self, provider: Any, cache: AskonceCache) -> None:
        """A pydantic class is keyed by its schema, and its object comes back, twice."""

        class City(BaseModel):
            when: date | str
            name: str = Field(alias="cityName")

        model = provider.chat(cache).with_structured_output(City, method="json_schema")
        assert model.invoke("q") == model.invoke("q") == model.invoke("q")
        assert provider.calls == 1

    def test_a_fake_counts_its_own_calls(self, cache: AskonceCache) -> None:
        """LangChain's fakes do, in a field: that is none of the question."""
        model = FakeListChatModel(responses=["a", "b"], cache=cache)
        assert [model.invoke("q").content for _ in range(2)] == ["a", "a"]


class Colour(Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int


class Typed(TypedDict):
    x: int


class Nested(BaseModel):
    x: int
    key: SecretStr = SecretStr("k")


class TestValues:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ({"a": 1}, {"a": 2}),
            ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
            ([1], [2]),
            ({"x", "y"}, {"x"}),
            (Colour.RED, "blue"),
            ({Colour.RED: 1}, {Colour.RED: 2}),
            ({1: "a"}, {"1": "a"}),
            (Point(1), Point(2)),
            (Nested(x=1), Nested(x=2)),
            (date(2025, 1, 1), date(2025, 1, 2)),
            (Decimal("1.0"), Decimal("1.00")),
            (PurePosixPath("a"), "a"),
            (schema("a"), schema("b")),
            (Typed, Point),
            (b"a", "a"),
        ],
    )
    def test_differ(self, one: Any, other: Any) -> None:
        """Values of many types count by what they say, the order of a mapping included."""
        assert form(one) == form(one) != form(other)

    def test_are_alike(self) -> None:
        """The order of a set and a credential do not count."""
        assert form({"x", "y", "z"}) == form({"z", "y", "x"})
        assert form([Nested(x=1)]) == form([Nested(x=1, key=SecretStr("other"))])
        assert form(schema("a")) == form(schema("a"))

    @pytest.mark.parametrize("value", [object(), lambda: None, int, [object()], {"a": {"b": object()}}])
    def test_are_refused(self, value: Any) -> None:
        """What cannot be told from another is refused, and the path to it named."""
        with pytest.raises(Uncacheable, match="given"):
            form(value)

    def test_a_credential_is_left_out(self, provider: Any) -> None:
        """No key is in the request, not even before it is digested."""
        told = live(provider.chat(default_headers={"x": "y"}), None, {"key": SecretStr("sk-SECRET")})
        assert "SECRET" not in repr(told)


class Holding(Custom):
    tool: Any = None


class Identified(Holding):
    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"which": self.which}


class TestCustomModels:
    def test_an_object_in_a_field(self, cache: AskonceCache) -> None:
        """A field that nothing tells from another makes the model uncacheable, unless it says what identifies it."""
        model = Holding(which="A", tool=object(), cache=cache)
        assert model.invoke("q").content == "A"
        assert cache.cache.stats().bypass_reasons == {"uncacheable": 1}
        for _ in range(2):
            Identified(which="A", tool=object(), cache=cache).invoke("q")
        assert cache.cache.stats().hits == 1

    def test_extra_fields(self, cache: AskonceCache) -> None:
        """What a model accepts beside its fields counts."""

        class Open(Custom):
            model_config = ConfigDict(extra="allow")

        for mood in ("good", "bad", "good"):
            Open(which="A", mood=mood, cache=cache).invoke("q")  # type: ignore[call-arg]
        assert (cache.cache.stats().hits, cache.cache.stats().misses) == (1, 2)

    def test_two_classes(self, cache: AskonceCache) -> None:
        """The class counts."""
        Custom(which="A", cache=cache).invoke("q")
        Identified(which="A", cache=cache).invoke("q")
        assert cache.cache.stats().hits == 0


class TestLimits:
    @pytest.mark.parametrize(
        ("fields", "arguments", "limited"),
        [
            ({}, {}, False),
            ({"max_tokens": 5}, {}, True),
            ({}, {"max_tokens": 5}, True),
            ({}, {"max_completion_tokens": None}, False),
            ({"model_kwargs": {"max_completion_tokens": 5}}, {}, True),
        ],
    )
    def test_set_by_the_caller(
        self, provider: Any, fields: dict[str, Any], arguments: dict[str, Any], limited: bool
    ) -> None:
        """A limit counts as the caller's if it was given, not if it is the model's default."""
        assert sets_limit(provider.chat(**fields), arguments) is limited
        assert sets_limit(provider.completion(), {}) is False

    @pytest.mark.parametrize("way", ["field", "bind"])
    def test_an_answer_cut_off_there_is_stored(self, provider: Any, cache: AskonceCache, way: str) -> None:
        """Who asked for a hundred tokens and got a hundred has a whole answer."""

        def cut(body: dict[str, Any], number: int) -> dict[str, Any]:
            whole: dict[str, Any] = provider._answer(body, number)
            whole["choices"][0]["finish_reason"] = "length"
            return whole

        provider.respond = cut
        model = (
            provider.chat(cache, max_tokens=100)
            if way != "bind"
            else provider.chat(cache).bind(max_tokens=100)
        )
        for _ in range(2):
            model.invoke([HumanMessage("q")])
        assert provider.calls == 1
        provider.chat(cache).invoke("q")
        provider.chat(cache).invoke("q")
        assert provider.calls == 3
        assert cache.cache.stats().rejection_reasons == {"truncated": 2}


def form(value: Any) -> bytes:
    return canonical(live(FakeListChatModel(responses=[]), None, {"given": value}))
