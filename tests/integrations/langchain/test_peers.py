"""
Faults that users of other caches have today; each test shows that it is not one of this cache.

Of langchain-redis 0.2.6 (``TestServer``, ``TestEntries``, ``TestClear``, ``TestStructuredOutput``), of langchain-community
0.4.2 (``TestKeys``, ``TestEntries``, ``TestClear``, ``TestAsync``).  Those of LangGraph's own ``RedisCache`` are in
``test_node_cache``: two namespaces under one key, a ``clear`` that takes a pattern, an async client that is not awaited.
``TestThePeers`` shows the faults where those packages are installed, in the environment of ``make bench-langchain``.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ormsgpack
import pytest
import redis
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation
from pydantic import BaseModel, Field
from tests.servers import Server

from askonce import Hot, Near, Policy
from askonce_langchain import AskonceCache

from .waiting import until

X = [Generation(text="x")]
ROOT = Path(__file__).parents[3]


class Answer(BaseModel):
    when: datetime.datetime
    city: str = Field(alias="cityName")


@pytest.fixture
def cache(url: str) -> AskonceCache:
    return AskonceCache(url, deadline=2.0)


def entries(client: redis.Redis) -> list[Any]:
    return [key for key in client.scan_iter() if b"}:e:" in key]


class TestServer:
    async def test_a_plain_one_will_do(self, provider: Any, url: str) -> None:
        """
        No module is asked for: langchain-redis fails with ``unknown command 'JSON.GET'`` (langchain#6075).

        The commands of modules have a dot in their names.
        """
        cache = AskonceCache(
            url, max_entries=100, near=Near(), policy=Policy(ttl=60, hot=Hot()), deadline=2.0
        )
        with redis.Redis.from_url(url) as client:
            client.config_resetstat()
            for model in (provider.chat(cache), provider.completion(cache)):
                for _ in range(2):
                    model.invoke("q", {"metadata": {"askonce": {"tags": ["t"]}}})
                    list(model.stream("r"))
                    await model.ainvoke("s")
            cache.cache.invalidate_tag("t")
            cache.cache.stats()
            cache.cache.usage()
            cache.clear()
            used = [str(name).removeprefix("cmdstat_") for name in client.info("commandstats")]  # type: ignore[union-attr]
        assert {"mget", "evalsha"} <= set(used)
        assert [name for name in used if "." in name] == []
        assert provider.calls == 6

    def test_it_may_come_later(self, provider: Any, own_server: Callable[..., Server]) -> None:
        """A cache is made while Redis is down, where langchain-redis raises; it serves with it once it is there."""
        server = own_server()
        server.kill()
        model = provider.chat(AskonceCache(server.url, deadline=2.0))
        assert [model.invoke("q").text for _ in range(2)] == ["answer 1-0", "answer 2-0"]
        server.start()
        until(lambda: "askonce" in model.invoke("q").response_metadata)


class TestKeys:
    @pytest.mark.parametrize("one", [("ab", "c"), ("a:", "b"), ("a", ""), ("", "a")])
    @pytest.mark.parametrize("other", [("a", "bc"), ("a", ":b"), ("", "a"), ("a", "")])
    def test_both_strings_count_apart(self, cache: AskonceCache, one: Any, other: Any) -> None:
        """langchain-community joins them with nothing between: ("ab", "c") answers ("a", "bc")."""
        cache.update(*one, X)
        assert cache.lookup(*other) == (X if one == other else None)


class TestEntries:
    @pytest.mark.parametrize(
        "junk",
        [b"", b"junk", b"\x90", b'["a"]', ormsgpack.packb([["ChatGeneration", "HumanMessage", {}, None]])],
    )
    @pytest.mark.parametrize("header", [False, True], ids=["all", "value"])
    def test_junk_is_a_miss(self, provider: Any, url: str, junk: bytes, header: bool) -> None:
        """A poisoned entry is asked anew and replaced; it neither raises nor becomes an answer."""
        model = provider.chat(AskonceCache(url, deadline=2.0))
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
        """
        Value and lifetime are written in one command: a crash leaves no entry for ever.

        langchain-redis sends ``JSON.SET``, and then ``EXPIRE``.
        """
        with redis.Redis.from_url(url) as client:
            cache.lookup("p", "l")  # connects
            client.config_resetstat()
            cache.update("p", "l", X)
            used: Any = client.info("commandstats")
            assert used["cmdstat_set"]["calls"] == 1
            assert not [name for name in used if "expire" in name]
            assert all(int(client.pttl(key)) > 0 for key in entries(client))  # type: ignore[arg-type]
            assert len(entries(client)) == 1

    def test_an_answer_with_a_date_is_not_mangled(self, cache: AskonceCache) -> None:
        """
        It is not stored: it would come back as something else.

        From langchain-community as JSON in place of the answer's text; from langchain-redis not at all: it raises.
        """
        cache.update("p", "l", X)
        dated = ChatGeneration(message=AIMessage("x", response_metadata={"t": datetime.datetime.min}))
        cache.update("p", "other", [dated])
        assert [cache.lookup("p", "l"), cache.lookup("p", "other")] == [X, None]
        assert cache.cache.stats().uncacheable == 1

    def test_order_and_number(self, cache: AskonceCache) -> None:
        """Many generations keep their order, and fewer replace more: langchain-community keeps fields of a hash."""
        many = [Generation(text=str(number)) for number in range(600)]
        cache.update("p", "l", many)
        assert cache.lookup("p", "l") == many
        cache.update("p", "l", X)
        assert cache.lookup("p", "l") == X

    def test_a_lone_surrogate_in_the_prompt(self, cache: AskonceCache) -> None:
        """A prompt that is not valid Unicode is a request like any other."""
        cache.update("a\ud800", "l", X)
        assert cache.lookup("a\ud800", "l") == X
        assert cache.lookup("a\ud801", "l") is None


class TestClear:
    def test_keeps_the_neighbours(self, url: str) -> None:
        """
        It removes the entries of its namespace: no other's, and nothing of anybody else.

        langchain-redis removes ``a:*``, hence all of a prefix ``a:b``, and by default whatever begins with ``redis:``;
        langchain-community empties the database.
        """
        names = ["a", "a-b", "a.b", "ab"]
        caches = {name: AskonceCache(url, namespace=name, deadline=2.0) for name in names}
        with redis.Redis.from_url(url) as client:
            for foreign in ("redis:other", "a:b", "ao", "ao:a", "ao:{a}"):
                client.set(foreign, "x")
            for cache in caches.values():
                cache.update("p", "l", X)
            caches["a"].clear()
            assert [caches[name].lookup("p", "l") for name in names] == [None, X, X, X]
            assert client.mget("redis:other", "a:b", "ao", "ao:a", "ao:{a}") == [b"x"] * 5


class TestAsync:
    def test_new_event_loops_hit(self, cache: AskonceCache) -> None:
        """One cache serves every loop, and threads without one; an async client of redis-py serves its first loop."""
        asyncio.run(cache.aupdate("p", "l", X))
        assert [asyncio.run(cache.alookup("p", "l")) for _ in range(3)] == [X] * 3
        assert cache.lookup("p", "l") == X


class TestStructuredOutput:
    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_a_class_with_date_and_alias(self, provider: Any, cache: AskonceCache, method: str) -> None:
        """The second call gives what the first one gave, an object of the class; langchain-redis raises on it."""
        provider.respond = _answering(method)
        model = provider.chat(cache).with_structured_output(Answer, method=method)
        first, again = model.invoke("q"), model.invoke("q")
        assert (
            first == again == Answer(when=datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC), cityName="Rome")
        )
        assert asyncio.run(model.ainvoke("q")) == list(model.stream("q"))[-1] == first
        assert provider.calls == 1

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


class TestThePeers:
    def test_have_these_faults(self, url: str) -> None:
        """What is said of them here holds for the releases that are pinned in requirements/peers."""
        python = ROOT / ".venv-peers" / "langchain" / "bin" / "python"
        if not python.exists():
            pytest.skip("make bench-langchain installs the peers")
        command = [str(python), "-W", "ignore", str(Path(__file__).with_name("peers.py")), url]
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=120, cwd=ROOT
        ).stdout
        seen = json.loads(said)
        assert seen.pop("plain server").startswith("ResponseError: unknown command 'JSON.GET'")
        assert seen.pop("server away").startswith("ConnectionError")
        assert seen.pop("another loop misses").count(False) >= 1
        assert seen == {
            "langchain-redis": "0.2.6",
            "langchain-community": "0.4.2",
            "one key for two questions": True,
            "order lost": True,
            "old generations stay": 2,
            "a blob as text": '{"lc": 1',
            "empties the database": True,
        }
