"""
A LangChain agent with tools, cached by one middleware: its model calls, and the tools that are safe to repeat.

    python -m examples.langchain_agent           the model is a stand-in on this machine
    python -m examples.langchain_agent --live    the model is OpenAI's, with OPENAI_API_KEY set

``doc_of`` is named as safe: its result follows from its argument.  Any other tool would run each time.  The last
question is streamed: what comes from the cache is streamed as well.
"""

import inspect
import pydoc
import sys
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph.state import CompiledStateGraph

from askonce_langchain import AskonceMiddleware
from examples.provider import run

MODEL = "gpt-4.1-mini"
SYSTEM = "Answer questions about Python's standard library.  Look the name up first."
ASKED = (
    "What does `heapq.heappush` do?",
    "What does `bisect.insort` do?",
    "What does `heapq.heappush` do?",
    "And what is `bisect.insort` good for?",
)

looked_up: list[str] = []


@tool
def doc_of(name: str) -> str:
    """Return the documentation of a name of Python's standard library, such as heapq.heappush."""
    looked_up.append(name)
    return inspect.getdoc(pydoc.locate(name)) or f"{name} has no documentation"


def agent_of(model: ChatOpenAI, cache: AskonceMiddleware) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Return the agent.  The middleware stands last, so that it sees what the model is really asked."""
    return create_agent(model, [doc_of], system_prompt=SYSTEM, middleware=[cache])


def show(client: dict[str, Any], url: str | None) -> None:
    """Ask four questions, two of them twice or nearly so, and stream the first one again."""
    cache = AskonceMiddleware(url, safe_tools=["doc_of"], namespace="examples")
    agent = agent_of(ChatOpenAI(model=MODEL, temperature=0, **client), cache)
    for question in ASKED:
        print(question)
        looked_up.clear()
        state = agent.invoke({"messages": [HumanMessage(question)]})
        for message in state["messages"][1:]:
            print(f"  {_said(message)}")
    print("streamed: ", end="")
    asked = {"messages": [HumanMessage(ASKED[0])]}
    for chunk, _ in agent.stream(asked, stream_mode="messages"):
        if isinstance(chunk, AIMessage):
            print(chunk.text.partition("\n")[0], end="")
    print()
    cache.cache.close()


def _said(message: object) -> str:
    match message:
        case ToolMessage():
            source = "tool" if message.name == "doc_of" and looked_up else "cache"
            return f"from the {source}: {message.text.partition(chr(10))[0]}"
        case AIMessage():
            source = "cache" if "askonce" in message.response_metadata else "model"
            calls = [f"{call['name']}({call['args'].get('name')})" for call in message.tool_calls]
            return f"from the {source}: {', '.join(calls) or message.text.partition(chr(10))[0]}"
        case _:
            return ""


if __name__ == "__main__":
    sys.exit(run("langchain_agent", "A cached agent.", show))
