"""
A LangChain chain, cached by one line: prompt, model, parser.

    python -m examples.langchain_chain           the model is a stand-in on this machine
    python -m examples.langchain_chain --live    the model is OpenAI's, with OPENAI_API_KEY set
"""

import sys
import time
from typing import Any

from langchain_core.globals import set_llm_cache
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI

from askonce_langchain import AskonceCache
from examples.provider import run

MODEL = "gpt-4.1-mini"


def chain_of(model: ChatOpenAI) -> Runnable[dict[str, str], str]:
    """Return the chain.  It knows nothing of a cache."""
    prompt = ChatPromptTemplate.from_messages(
        [("system", "You explain Python in one sentence."), ("user", "What does `{name}` do?")]
    )
    return prompt | model | StrOutputParser()


def show(client: dict[str, Any], url: str | None) -> None:
    """Ask twice, then five times at once."""
    cache = AskonceCache(url, namespace="examples")
    set_llm_cache(cache)  # this is all

    chain = chain_of(ChatOpenAI(model=MODEL, temperature=0, **client))
    before = cache.cache.stats()
    for time_asked in ("first", "again"):
        began = time.perf_counter()
        text = chain.invoke({"name": "heapq.heappush"})
        print(f"{time_asked}: {1000 * (time.perf_counter() - began):4.0f} ms  {text.splitlines()[-1]}")
    texts = chain.batch([{"name": "bisect.insort"}] * 5)
    print(f"five at once: {len(set(texts))} answer")
    after = cache.cache.stats()
    shared = after.coalesced - before.coalesced
    print(f"7 calls: {after.hits - before.hits} answered from the cache, {shared} by another's call")
    cache.cache.close()


if __name__ == "__main__":
    sys.exit(run("langchain_chain", "A cached chain.", show))
