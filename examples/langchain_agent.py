"""
A LangChain agent with tools, cached by one middleware: its model calls, and the tools that are safe to repeat.

    python -m examples.langchain_agent           the model is a stand-in on this machine
    python -m examples.langchain_agent --live    the model is OpenAI's, with OPENAI_API_KEY set

``doc_of`` is named as safe: its result follows from its argument.  Any other tool would run each time.  The last
question is streamed: what comes from the cache is streamed as well.
"""

import argparse
import inspect
import os
import pydoc
import sys
from collections.abc import Sequence
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph.state import CompiledStateGraph
from pydantic import SecretStr

from askonce_langchain import AskonceMiddleware
from examples.standin import start

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


def show(model: ChatOpenAI, url: str | None) -> None:
    """Ask four questions, two of them twice or nearly so, and stream the first one again."""
    cache = AskonceMiddleware(url, safe_tools=["doc_of"], namespace="examples")
    agent = agent_of(model, cache)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; 2 if there is no key to ask a provider with."""
    parser = argparse.ArgumentParser(prog="python -m examples.langchain_agent", description="A cached agent.")
    parser.add_argument("--live", action="store_true", help="ask OpenAI instead of the stand-in")
    parser.add_argument("--url", help="a Redis to use instead of ASKONCE_URL or an embedded one")
    options = parser.parse_args(arguments)
    if options.live:
        if not os.environ.get("OPENAI_API_KEY"):
            print("--live asks the real model and needs OPENAI_API_KEY in the environment.", file=sys.stderr)
            return 2
        show(ChatOpenAI(model=MODEL, temperature=0), options.url)
        return 0
    with start() as standin:
        model = ChatOpenAI(
            model=MODEL, temperature=0, base_url=standin.base_url, api_key=SecretStr("any"), max_retries=6
        )
        show(model, options.url)
        print(f"the model was asked {standin.stats().calls} times")
    return 0


if __name__ == "__main__":
    sys.exit(main())
