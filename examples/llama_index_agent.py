"""
A LlamaIndex agent with a tool, cached by one line: each step of the agent asks the model once.

    python -m examples.llama_index_agent           the model is a stand-in on this machine
    python -m examples.llama_index_agent --live    the model is OpenAI's, with OPENAI_API_KEY set

The agent streams what its model says, cached or not.  The tool is not cached: it runs each time.
"""

import asyncio
import inspect
import pydoc
import sys
import time
from typing import Any

from llama_index.core.agent.workflow import AgentStream, FunctionAgent
from llama_index.llms.openai import OpenAI  # type: ignore[import-untyped]

import askonce_llama_index
from askonce import Cache
from examples.provider import run

MODEL = "gpt-4.1-mini"
SYSTEM = "Answer questions about Python's standard library.  Look the name up first."
ASKED = (
    "What does `heapq.heappush` do?",
    "What does `bisect.insort` do?",
    "What does `heapq.heappush` do?",
)

looked_up: list[str] = []


def doc_of(name: str) -> str:
    """Return the documentation of a name of Python's standard library, such as heapq.heappush."""
    looked_up.append(name)
    return inspect.getdoc(pydoc.locate(name)) or f"{name} has no documentation"


async def ask(agent: FunctionAgent, question: str) -> str:
    """Return the answer, put together from what the agent streams."""
    running = agent.run(question)
    said = [event.delta async for event in running.stream_events() if isinstance(event, AgentStream)]
    await running
    return "".join(said)


async def ask_all(agent: FunctionAgent, cache: Cache) -> None:
    """Ask the questions one after the other, and tell what the model was asked."""
    for question in ASKED:
        looked_up.clear()
        before, began = await cache.aio.stats(), time.perf_counter()
        answer = await ask(agent, question)
        took, after = 1000 * (time.perf_counter() - began), await cache.aio.stats()
        print(f"{question}  ({took:.0f} ms; the tool looked up {', '.join(looked_up)})")
        print(
            f"  steps: {after.hits - before.hits} from the cache, {after.computed - before.computed} computed"
        )
        print(f"  {answer.splitlines()[-1]}")
    await cache.aio.aclose()


def show(client: dict[str, Any], url: str | None) -> None:
    """Ask three questions, one of them twice."""
    cache = Cache(url, namespace="examples")
    askonce_llama_index.install(cache)  # this is all

    model = OpenAI(model=MODEL, temperature=0, api_base=client.pop("base_url", None), **client)
    agent = FunctionAgent(tools=[doc_of], llm=model, system_prompt=SYSTEM)
    asyncio.run(ask_all(agent, cache))


if __name__ == "__main__":
    sys.exit(run("llama_index_agent", "A cached agent.", show))
