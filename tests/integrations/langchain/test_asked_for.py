"""
What users of LangChain's caches have asked for, as they would do it: one line of set-up, then chains and agents.

The numbers are those of the issues, of langchain-ai/langchain where nothing else is said.  Parameters that a key
forgets (#39598, #40403, #19328) are in ``test_live``; a Redis that is away (#16866) in ``test_outage``; a server without
modules (#6075) and the whole of the async half (langchain-redis#21) in ``test_peers`` and ``test_cache``; a Redis Cluster
(#6361, langgraph-redis#26) in ``tests/cluster/test_langchain``; LangGraph's nodes (langgraph#4890, langgraph#6247) in
``test_node_cache`` and ``test_message_key``.  That alike questions share an answer is not asked of an exact cache.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import redis
from langchain.agents import create_agent
from langchain_classic.agents import AgentExecutor, create_tool_calling_agent
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.globals import set_llm_cache
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import LLMResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel, Field

from askonce import Policy
from askonce_langchain import AskonceCache


@pytest.fixture(autouse=True)
def _no_global_cache() -> Iterator[None]:
    yield
    set_llm_cache(None)


@pytest.fixture
def cache(url: str) -> AskonceCache:
    """What an application does: make it the cache of all models."""
    cache = AskonceCache(url, deadline=2.0)
    set_llm_cache(cache)
    return cache


@tool
def look_up(a: int) -> str:
    """A tool."""
    return "found"


class Heard(BaseCallbackHandler):
    """Notes the tokens and the ends of runs that it is told of."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.ends: list[LLMResult] = []

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        self.ends.append(response)


@pytest.mark.usefixtures("cache")
class TestStreams:
    async def test_a_chain(self, provider: Any) -> None:
        """``stream`` and ``astream`` of a chain fill the cache and are served from it (#13119, #23701, #20782)."""
        chain = ChatPromptTemplate.from_template("{x}") | provider.chat() | StrOutputParser()
        said = "".join(chain.stream({"x": "q"}))
        assert said == "".join(chain.stream({"x": "q"})) == chain.invoke({"x": "q"}) == "answer 1-0"
        assert "".join([text async for text in chain.astream({"x": "q"})]) == said
        assert provider.calls == 1

    def test_an_agent_executor(self, provider: Any) -> None:
        """One streams its model even where it is invoked, and so was never cached (#27741)."""
        prompt = ChatPromptTemplate.from_messages(
            [("human", "{input}"), ("placeholder", "{agent_scratchpad}")]
        )
        outputs = []
        for _ in range(3):
            agent = create_tool_calling_agent(provider.chat(), [look_up], prompt)
            outputs.append(AgentExecutor(agent=agent, tools=[look_up]).invoke({"input": "q"})["output"])
        assert outputs == ["answer 2-0"] * 3
        assert provider.calls == 2

    @pytest.mark.parametrize("kind", ["chat", "completion"])
    async def test_tokens_of_a_hit(self, provider: Any, kind: str) -> None:
        """
        Whoever listens for tokens hears those of a stored answer, as of a live one (#9762).

        But for a completion model's ``invoke``: of a hit LangChain makes no run that anybody could listen to.
        """
        model, told = getattr(provider, kind)(streaming=True), []

        def listening() -> Any:
            told.append(Heard())
            return {"callbacks": told[-1:]}

        for _ in range(2):
            if kind == "chat":
                model.invoke("q", listening())
                await model.ainvoke("q", listening())
            list(model.stream("q", listening()))
            async for _ in model.astream("q", listening()):
                pass
        said = "answer 1-0" if kind == "chat" else "text 1-0"
        assert ["".join(heard.tokens) for heard in told] == [said] * len(told)
        assert provider.calls == 1


@pytest.mark.usefixtures("cache")
class TestAgents:
    async def test_every_turn_hits_on_its_first_replay(self, provider: Any) -> None:
        """In another thread of the conversation, with other ids of messages and runs (#31949, #33883)."""
        texts = []
        for number in range(3):
            agent = create_agent(provider.chat(), [look_up], checkpointer=InMemorySaver())
            thread: Any = {"configurable": {"thread_id": str(number)}}
            for question in ("q1", "q2"):
                asked: Any = {"messages": [HumanMessage(question)]}
                state = await agent.ainvoke(asked, thread) if number == 2 else agent.invoke(asked, thread)
            texts.append([message.text for message in state["messages"]])
        assert len(texts[0]) == 8
        assert texts[0] == texts[1] == texts[2]
        assert provider.calls == 4


class City(BaseModel):
    when: datetime.datetime
    name: str = Field(alias="cityName")


@pytest.mark.usefixtures("cache")
class TestStructuredOutput:
    @pytest.mark.parametrize("include_raw", [False, True])
    @pytest.mark.parametrize("method", ["json_schema", "json_mode"])
    async def test_an_object_each_time(self, provider: Any, method: str, include_raw: bool) -> None:
        """
        The object of the class comes back from the cache, and is what it was (#29003, #27264, #25613, langchain-redis#52).

        Others write its ``repr``, and raise when they read that.
        """
        json = '{"when": "2025-01-01T00:00:00Z", "cityName": "Rome"}'

        def answer(body: dict[str, Any], number: int) -> dict[str, Any]:
            whole: dict[str, Any] = provider._answer(body, number)
            whole["choices"][0]["message"]["content"] = json
            return whole

        provider.respond = answer
        model = provider.chat().with_structured_output(City, method=method, include_raw=include_raw)
        said = [model.invoke("q"), model.invoke("q"), await model.ainvoke("q"), model.batch(["q"])[0]]
        found = [one["parsed"] for one in said] if include_raw else said
        assert found == [City.model_validate_json(json)] * 4
        assert {type(one) for one in found} == {City}
        assert provider.calls == 1


class TestWhose:
    def test_tenants(self, provider: Any, url: str) -> None:
        """A namespace, or a scope for each call, keeps tenants apart; each is cleared alone (#26130, langchain-redis#76)."""
        caches = {name: AskonceCache(url, namespace=name, deadline=2.0) for name in ("one", "other")}
        for name in ("one", "other", "one", "other"):
            set_llm_cache(caches[name])
            assert provider.chat().invoke("q").text == ("answer 1-0" if name == "one" else "answer 2-0")
        for tenant, said in (("a", "answer 3-0"), ("b", "answer 4-0"), ("a", "answer 3-0")):
            scope = {"metadata": {"askonce": {"scope": {"tenant": tenant}}}}
            assert provider.chat().invoke("q", scope).text == said
        with redis.Redis.from_url(url) as client:
            names = [key for key in client.scan_iter() if b":e:" in key]
        assert sorted(name.partition(b":")[2].partition(b":")[0] for name in names) == [
            b"{one", b"{other", b"{other", b"{other"
        ]  # fmt: skip
        caches["one"].clear()
        assert provider.chat(caches["other"]).invoke("q").text == "answer 2-0"
        assert provider.chat(caches["one"]).invoke("q").text == "answer 5-0"

    def test_a_client_of_ones_own(self, provider: Any, url: str) -> None:
        """A ``redis.Redis`` that is configured already is taken as it is, and left open (langchain-redis#11)."""
        with redis.Redis.from_url(url, client_name="mine", decode_responses=True) as client:
            connection = client.client_id()
            set_llm_cache(cache := AskonceCache(client=client, deadline=2.0))
            for _ in range(2):
                assert provider.chat().invoke("q").text == "answer 1-0"
            cache.cache.close()
            assert client.client_id() == connection


class TestHowLong:
    def test_a_lifetime(self, provider: Any, url: str) -> None:
        """Redis forgets an answer by itself, after the lifetime of the cache or of the call (#8860)."""
        set_llm_cache(AskonceCache(url, policy=Policy(ttl=60), deadline=2.0))
        provider.chat().invoke("q")
        provider.chat().invoke("r", {"metadata": {"askonce": {"ttl": 600}}})
        with redis.Redis.from_url(url) as client:
            left = sorted(int(client.pttl(key)) for key in client.scan_iter() if b":e:" in key)  # type: ignore[arg-type]
        assert [round(milliseconds, -5) for milliseconds in left] == [100_000, 600_000]
        assert left[0] <= 60_000

    @pytest.mark.parametrize("way", ["invoke", "stream"])
    def test_no_error(self, provider: Any, cache: AskonceCache, way: str) -> None:
        """What the model failed with is nobody's answer: the next caller asks (#8860)."""
        provider.failing = {1, 2}
        for _ in range(2):
            with pytest.raises(openai.InternalServerError):
                list(getattr(provider.chat(), way)("q"))
        assert cache.cache.stats().stored == 0
        assert provider.chat().invoke("q").text == provider.chat().invoke("q").text == "answer 3-0"
        assert provider.calls == 3


class TestCost:
    @pytest.mark.parametrize(("option", "total"), [("keep", 45), ("zero", 15)])
    async def test_of_hits(self, provider: Any, url: str, option: Any, total: int) -> None:
        """A tracer can tell a hit, which cost nothing, or is told no tokens of it (langfuse#2112)."""
        set_llm_cache(AskonceCache(url, usage_on_hit=option, deadline=2.0))
        model, heard = provider.chat(), Heard()
        with get_usage_metadata_callback() as used:
            model.invoke("q", {"callbacks": [heard]})
            await model.ainvoke("q", {"callbacks": [heard]})
            list(model.stream("q", {"callbacks": [heard]}))
        assert sum(usage["total_tokens"] for usage in used.usage_metadata.values()) == total
        messages = [end.generations[0][0].message for end in heard.ends]  # type: ignore[union-attr]
        sources = [message.response_metadata.get("askonce", {}).get("source") for message in messages]
        assert sources == [None, "hit", "hit"]
