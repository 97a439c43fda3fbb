"""Faults that users of other caches have today; each test shows that it is not one of this cache."""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

import ormsgpack
import pytest
import redis
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation
from pydantic import BaseModel, Field

from askonce_langchain import AskonceCache

X = [Generation(text="x")]


class Answer(BaseModel):
    when: datetime.datetime
    city: str = Field(alias="cityName")


@pytest.fixture
def cache(url: str) -> AskonceCache:
    return AskonceCache(url)


def entries(client: redis.Redis) -> list[Any]:
    return [key for key in client.scan_iter() if b"}:e:" in key]


class TestEntries:
    @pytest.mark.parametrize(
        "junk",
        [b"", b"junk", b"\x90", b'["a"]', ormsgpack.packb([["ChatGeneration", "HumanMessage", {}, None]])],
    )
    @pytest.mark.parametrize("header", [False, True], ids=["all", "value"])
    def test_junk_is_a_miss(self, provider: Any, url: str, junk: bytes, header: bool) -> None:
        """A poisoned entry is asked anew and replaced; it neither raises nor becomes an answer."""
        model = provider.chat(AskonceCache(url))
        model.invoke("q")
        with redis.Redis.from_url(url) as client:
            (key,) = entries(client)
            whole = client.get(key)
            assert isinstance(whole, bytes)
            name = whole.index(b"\x09langchain") + 10
            client.set(key, (whole[:name] if header else b"") + junk, keepttl=True)
        assert model.invoke("q").text == "answer 2-0"
        assert model.invoke("q").text == "answer 2-0"
        assert provider.calls == 2

    def test_entries_expire(self, cache: AskonceCache, url: str) -> None:
        """Value and lifetime are written in one command: a crash leaves no entry for ever."""
        cache.update("p", "l", X)
        with redis.Redis.from_url(url) as client:
            assert all(int(client.pttl(key)) > 0 for key in entries(client))  # type: ignore[arg-type]
            assert len(entries(client)) == 1

    def test_an_answer_with_a_date_is_not_mangled(self, cache: AskonceCache) -> None:
        """It is not stored: it would come back as something else."""
        cache.update(
            "p", "l", [ChatGeneration(message=AIMessage("x", response_metadata={"t": datetime.datetime.min}))]
        )
        assert cache.lookup("p", "l") is None

    def test_a_lone_surrogate_in_the_prompt(self, cache: AskonceCache) -> None:
        """A prompt that is not valid Unicode is a request like any other."""
        cache.update("a\ud800", "l", X)
        assert cache.lookup("a\ud800", "l") == X
        assert cache.lookup("a\ud801", "l") is None


class TestClear:
    def test_keeps_the_neighbours(self, url: str) -> None:
        """It removes the entries of its namespace: no other's, and nothing of anybody else."""
        names = ["a", "a-b", "a.b", "ab"]
        caches = {name: AskonceCache(url, namespace=name) for name in names}
        with redis.Redis.from_url(url) as client:
            client.set("redis:other", "x")
            for cache in caches.values():
                cache.update("p", "l", X)
            caches["a"].clear()
            assert [caches[name].lookup("p", "l") for name in names] == [None, X, X, X]
            assert client.get("redis:other") == b"x"


class TestAsync:
    def test_new_event_loops_hit(self, cache: AskonceCache) -> None:
        """One cache serves every loop, and threads without one."""
        asyncio.run(cache.aupdate("p", "l", X))
        assert [asyncio.run(cache.alookup("p", "l")) for _ in range(3)] == [X] * 3
        assert cache.lookup("p", "l") == X


class TestStructuredOutput:
    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_a_class_with_date_and_alias(self, provider: Any, cache: AskonceCache, method: str) -> None:
        """The second call gives what the first one gave, an object of the class."""
        provider.respond = _answering(method)
        model = provider.chat(cache).with_structured_output(Answer, method=method)
        first, again = model.invoke("q"), model.invoke("q")
        assert (
            first == again == Answer(when=datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC), cityName="Rome")
        )

    def test_a_schema_is_asked_once(self, provider: Any, cache: AskonceCache) -> None:
        """A schema that is plain data is in the key."""
        schema = {"title": "Out", "description": "d", **Answer.model_json_schema()}
        model = provider.chat(cache).with_structured_output(schema, method="json_schema")
        assert model.invoke("q") == model.invoke("q")
        assert provider.calls == 1


def _answering(method: str) -> Any:
    text = '{"when": "2025-01-01T00:00:00Z", "cityName": "Rome"}'
    if method == "json_schema":
        message: dict[str, Any] = {"role": "assistant", "content": text}
    else:
        call = {"id": "call_1", "type": "function", "function": {"name": "Answer", "arguments": text}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "finish_reason": "stop", "message": message}

    def answer(body: dict[str, Any], number: int) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-x",
            "choices": [choice],
        }

    return answer
