"""Chats and agents that are asked again: every turn is answered from the cache on its first replay."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

from askonce_langchain import AskonceCache


@pytest.fixture
def cache(url: str) -> AskonceCache:
    return AskonceCache(url, deadline=2.0)


@tool
def look_up(a: int) -> str:
    """A tool."""
    return "found"


def conversation(model: Any) -> list[BaseMessage]:
    turns: list[BaseMessage] = []
    for question in ("q1", "q2", "q3"):
        turns.append(HumanMessage(question))
        turns.append(model.invoke(turns))
    return turns


def texts(messages: list[BaseMessage]) -> list[str]:
    return [message.text for message in messages]


class TestReplay:
    def test_chat(self, provider: Any, cache: AskonceCache) -> None:
        """What LangChain adds to a hit does not make the next turn another question (langchain#35308)."""
        first = conversation(provider.chat(cache))
        assert provider.calls == 3
        assert texts(conversation(provider.chat(cache))) == texts(first)
        assert provider.calls == 3

    async def test_agent(self, provider: Any, cache: AskonceCache) -> None:
        """An agent with a tool is replayed without a call, sync and async."""
        agent = create_agent(provider.chat(cache), [look_up])
        first = agent.invoke({"messages": [HumanMessage("q")]})["messages"]
        assert [m.type for m in first] == ["human", "ai", "tool", "ai"]
        assert provider.calls == 2
        assert texts(agent.invoke({"messages": [HumanMessage("q")]})["messages"]) == texts(first)
        assert texts((await agent.ainvoke({"messages": [HumanMessage("q")]}))["messages"]) == texts(first)
        assert provider.calls == 2

    def test_responses_api(self, provider: Any, cache: AskonceCache) -> None:
        """Thoughts and their ids come back as they were, so that the next turn is the same question."""
        first = conversation(provider.chat(cache, use_responses_api=True))
        assert texts(conversation(provider.chat(cache, use_responses_api=True))) == texts(first)
        assert provider.calls == 3


class TestHistory:
    def test_message_ids(self, provider: Any, cache: AskonceCache) -> None:
        """Ids differ from run to run and are not sent: they do not count, in streams either (langchain#33883)."""
        for number in range(4):
            history = [HumanMessage("a", id=f"h{number}"), AIMessage("b", id=f"a{number}"), HumanMessage("q")]
            list(provider.chat(cache).stream(history) if number % 2 else provider.chat(cache).invoke(history))
        assert provider.calls == 1

    def test_artifact(self, provider: Any, cache: AskonceCache) -> None:
        """What a tool keeps for the application is never sent: it does not count."""
        call = AIMessage("", tool_calls=[{"name": "t", "args": {"a": 1}, "id": "1"}])
        for artifact in (object(), object(), None):
            result = ToolMessage("r", tool_call_id="1", artifact=artifact)
            provider.chat(cache).invoke([HumanMessage("q"), call, result])
        assert provider.calls == 1

    @pytest.mark.parametrize("tools", [[], [look_up]], ids=["text", "tool call"])
    def test_chunks(self, provider: Any, cache: AskonceCache, tools: list[Any]) -> None:
        """A streamed answer in the history is the same question as one that came whole."""
        model = provider.chat(cache)
        asked = model.bind_tools(tools) if tools else model
        streamed = sum(list(asked.stream("q"))[1:], start=AIMessageChunk(""))
        whole = asked.invoke("q").model_copy(
            update={"content": streamed.content, "tool_calls": streamed.tool_calls}
        )
        then: list[BaseMessage] = [ToolMessage("r", tool_call_id=c["id"] or "") for c in whole.tool_calls]
        provider.requests.clear()
        for answer in (streamed, whole):
            model.invoke([HumanMessage("q"), answer, *then, HumanMessage("b")])
        assert provider.calls == 1

    @pytest.mark.parametrize("change", [{"timeout": 9}, {"max_retries": 5}, {"streaming": True}])
    def test_how_the_call_is_made(self, provider: Any, cache: AskonceCache, change: dict[str, Any]) -> None:
        """Another timeout, number of retries, or streaming is the same question."""
        provider.chat(cache).invoke("q")
        assert provider.chat(cache, **change).invoke("q").text == "answer 1-0"
        assert provider.calls == 1


def test_the_same_question_twice_in_a_thread(provider: Any, cache: AskonceCache) -> None:
    """Both answers stay in the thread, although one is the other: a hit has no id by which to merge them."""
    model = provider.chat(cache)
    graph = StateGraph(MessagesState)
    graph.add_node("ask", lambda state: {"messages": [model.invoke(state["messages"][-1:])]})
    graph.add_edge(START, "ask").add_edge("ask", END)
    thread = {"configurable": {"thread_id": "1"}}
    compiled = graph.compile(checkpointer=InMemorySaver())
    for _ in range(2):
        state = compiled.invoke({"messages": [HumanMessage("q")]}, thread)
    assert [message.type for message in state["messages"]] == ["human", "ai", "human", "ai"]
    assert provider.calls == 1
