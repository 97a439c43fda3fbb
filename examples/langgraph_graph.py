"""
A LangGraph graph whose nodes are cached, in a thread that remembers.

    python -m examples.langgraph_graph           the model is a stand-in on this machine
    python -m examples.langgraph_graph --live    the model is OpenAI's, with OPENAI_API_KEY set

Two nodes look at the last question.  Asked again, in the same thread or another, neither of them runs; the thread
keeps every question and every answer.
"""

import sys
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import CachePolicy

from askonce_langchain import AskonceNodeCache, message_key
from examples.provider import run

MODEL = "gpt-4.1-mini"
ASKED = (
    ("monday", "What does `heapq.heappush` do?"),
    ("monday", "What does `bisect.insort` do?"),
    ("monday", "What does `heapq.heappush` do?"),
    ("tuesday", "What does `bisect.insort` do?"),
)


def last_question(state: MessagesState) -> str:
    """Return what the nodes below look at, as a key: the last message, without its id."""
    return message_key(state["messages"][-1:])


def graph_of(model: ChatOpenAI, cache: AskonceNodeCache[Any]) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Return the graph.  The nodes know nothing of a cache."""

    def explain(state: MessagesState) -> dict[str, Any]:
        asked = [SystemMessage("You explain Python in one sentence."), state["messages"][-1]]
        return {"messages": [model.invoke(asked)]}

    def warn(state: MessagesState) -> dict[str, Any]:
        asked = [SystemMessage("You name one mistake that is easily made with it."), state["messages"][-1]]
        return {"messages": [model.invoke(asked)]}

    once_a_day = CachePolicy(key_func=last_question, ttl=86_400)
    builder = StateGraph(MessagesState)
    for node in (explain, warn):
        builder.add_node(node.__name__, node, cache_policy=once_a_day)
        builder.add_edge(START, node.__name__).add_edge(node.__name__, END)
    return builder.compile(cache=cache, checkpointer=InMemorySaver())


def show(client: dict[str, Any], url: str | None) -> None:
    """Ask three questions in one thread, one of them twice, and one in another."""
    cache: AskonceNodeCache[Any] = AskonceNodeCache(url, namespace="examples", version="1", deadline="500ms")
    graph = graph_of(ChatOpenAI(model=MODEL, temperature=0, **client), cache)
    for thread, question in ASKED:
        config: RunnableConfig = {"configurable": {"thread_id": thread}}
        print(f"{thread}: {question}")
        for update in graph.stream({"messages": [HumanMessage(question)]}, config, stream_mode="updates"):
            source = "cache" if update.pop("__metadata__", {}).get("cached") else "model"
            for node, written in update.items():
                print(f"  {node:8} from the {source}: {written['messages'][-1].text.splitlines()[0]}")
    for thread in ("monday", "tuesday"):
        kept = graph.get_state({"configurable": {"thread_id": thread}}).values["messages"]
        print(f"{thread} keeps {len(kept)} messages")
    cache.cache.close()


if __name__ == "__main__":
    sys.exit(run("langgraph_graph", "A cached graph.", show))
