"""Query and chat engines, agents, workflows, structured output, prediction: run twice, the second time for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("llama_index.llms.openai")

from llama_index.core import Document, PromptTemplate, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from pydantic import BaseModel

from askonce import Cache
from askonce_llama_index import attach

from .conftest import user
from .provider import Provider

Make = Callable[..., Any]


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def age_of(name: str, age: int) -> str:
    """Say the age of somebody."""
    return f"{name} is {age}"


@pytest.fixture
def index(embedder: Make, cache: Cache) -> VectorStoreIndex:
    documents = [Document(text="cats are nice"), Document(text="dogs bark")]
    return VectorStoreIndex.from_documents(documents, embed_model=attach(embedder(), cache))


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize"])
async def test_query_engines(
    make: Make, cache: Cache, index: VectorStoreIndex, provider: Provider, mode: str
) -> None:
    """query, aquery and streaming share their answers; nothing is embedded again."""

    async def run() -> list[str]:
        llm = attach(make(), cache)
        engine = index.as_query_engine(llm=llm, response_mode=mode)
        streaming = index.as_query_engine(llm=llm, response_mode=mode, streaming=True)
        return [
            str(await asyncio.to_thread(engine.query, "who barks?")),
            "".join((await asyncio.to_thread(streaming.query, "loud?")).response_gen),
            str(await engine.aquery("who purrs?")),
        ]

    first, texts = await run(), provider.embedded_texts
    with provider.expects(0):
        assert await run() == first
        engine = index.as_query_engine(llm=attach(make(), cache), response_mode=mode)
        assert str(await engine.aquery("who barks?")) == first[0]
    assert provider.embedded_texts == texts


@pytest.mark.parametrize("mode", ["simple", "context", "condense_question", "condense_plus_context"])
async def test_chat_engines(
    make: Make, cache: Cache, index: VectorStoreIndex, provider: Provider, mode: str
) -> None:
    """A second turn, with its history, and a stream."""

    def talk() -> list[str]:
        engine = index.as_chat_engine(chat_mode=mode, llm=attach(make(), cache))
        return [str(engine.chat("hello")), str(engine.chat("and then?"))]

    async def run() -> list[str]:
        engine = index.as_chat_engine(chat_mode=mode, llm=attach(make(), cache))
        stream = await engine.astream_chat("hello stream")
        return [*await asyncio.to_thread(talk), "".join([text async for text in stream.async_response_gen()])]

    first = await run()
    assert all(first)
    with provider.expects(0):
        assert await run() == first


@pytest.mark.parametrize("streaming", [True, False])
async def test_function_agent(make: Make, cache: Cache, provider: Provider, streaming: bool) -> None:
    """Two calls of the model the first time: the tool, and what is made of its result."""

    async def run() -> tuple[str, list[str], str]:
        llm = attach(make(), cache)
        agent = FunctionAgent(tools=[age_of], llm=llm, system_prompt="sys", streaming=streaming)
        handler = agent.run("how old?")
        deltas = [event.delta async for event in handler.stream_events() if hasattr(event, "delta")]
        out = await handler
        tools = [call.tool_name for call in out.tool_calls]  # type: ignore[attr-defined]  # of an agent's run
        return str(out), tools, "".join(deltas)

    with provider.expects(2):
        first = await run()
    with provider.expects(0):
        assert await run() == first
    assert first[1] == ["age_of"]
    if "streaming" in FunctionAgent.model_fields:  # before it every agent streams
        assert streaming is bool(first[2])


async def test_step_two_hits_though_step_one_was_asked_again(
    make: Make, cache: Cache, provider: Provider
) -> None:
    """The ids of its tool calls are new; what is asked next is the same."""

    async def run() -> str:
        return str(await FunctionAgent(tools=[age_of], llm=attach(make(), cache)).run("ids?"))

    with provider.expects(2):
        await run()
    entries = sorted(cache.entries(), key=lambda entry: entry.age)
    (first,) = {entry.digest for entry in entries} - {entries[0].digest}
    import redis

    raw = redis.Redis.from_url(cache._namespace.settings.url)
    for name in raw.scan_iter(match=f"*{first}"):
        raw.delete(name)
    with provider.expects(1):
        await run()


async def test_workflow_and_react(make: Make, cache: Cache, provider: Provider) -> None:
    """AgentWorkflow and ReActAgent, whose prompts hold what was said before."""

    async def workflow() -> str:
        return str(
            await AgentWorkflow.from_tools_or_functions([age_of], llm=attach(make(), cache)).run("1+2?")
        )

    async def react() -> str:
        try:
            agent = ReActAgent(tools=[age_of], llm=attach(make(), cache))
            return str(await agent.run("1+2?", max_iterations=2))
        except Exception as error:
            return type(error).__name__

    for run in (workflow, react):
        first = await run()
        with provider.expects(0):
            assert await run() == first


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-3.5-turbo"])
async def test_structured_output(make: Make, cache: Cache, provider: Provider, model: str) -> None:
    """By a JSON schema, and by tools; called, awaited and streamed."""

    async def run() -> list[Any]:
        llm, prompt = attach(make(model=model), cache), PromptTemplate("give {x}")
        structured = llm.as_structured_llm(Person).chat(user("who"))
        return [
            llm.structured_predict(Person, prompt, x="p"),
            await llm.astructured_predict(Person, prompt, x="p"),
            structured.raw,
            list(llm.stream_structured_predict(Person, prompt, x="s"))[-1],
            [one async for one in await llm.astream_structured_predict(Person, prompt, x="a")][-1],
        ]

    first = await run()
    assert [person.age for person in first] == [7] * 5
    with provider.expects(0):
        assert await run() == first


async def test_predict_and_stream_share_one_entry(make: Make, cache: Cache, provider: Provider) -> None:
    """predict, apredict, stream, astream."""
    llm, prompt = attach(make(system_prompt="SYS"), cache), PromptTemplate("tell {x}")
    with provider.expects(1):
        out = {
            llm.predict(prompt, x="a"),
            await llm.apredict(prompt, x="a"),
            "".join(llm.stream(prompt, x="a")),
            "".join([text async for text in await llm.astream(prompt, x="a")]),
        }
    assert len(out) == 1


async def test_tools_in_a_call(make: Make, cache: Cache, provider: Provider) -> None:
    """chat_with_tools and predict_and_call, whose answers LlamaIndex changes in place."""
    from llama_index.core.tools import FunctionTool

    tools = [FunctionTool.from_defaults(age_of)]

    async def run() -> list[str]:
        llm = attach(make(), cache)
        called = llm.chat_with_tools(tools, user_msg="x")
        awaited = await llm.achat_with_tools(tools, user_msg="x")
        return [
            str(llm.get_tool_calls_from_response(called)[0].tool_kwargs),
            str(llm.get_tool_calls_from_response(awaited)[0].tool_kwargs),
            str(llm.predict_and_call(tools, user_msg="y").response),
        ]

    first = await run()
    assert first[2] == "Tom is 7"
    with provider.expects(0):
        assert await run() == first
