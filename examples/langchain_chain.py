"""
A LangChain chain, cached by one line: prompt, model, parser.

    python -m examples.langchain_chain           the model is a stand-in on this machine
    python -m examples.langchain_chain --live    the model is OpenAI's, with OPENAI_API_KEY set
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence

from langchain_core.globals import set_llm_cache
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from askonce_langchain import AskonceCache
from examples.standin import start

MODEL = "gpt-4.1-mini"


def chain_of(model: ChatOpenAI) -> Runnable[dict[str, str], str]:
    """Return the chain.  It knows nothing of a cache."""
    prompt = ChatPromptTemplate.from_messages(
        [("system", "You explain Python in one sentence."), ("user", "What does `{name}` do?")]
    )
    return prompt | model | StrOutputParser()


def show(model: ChatOpenAI, url: str | None) -> None:
    """Ask twice, then five times at once."""
    cache = AskonceCache(url, namespace="examples")
    set_llm_cache(cache)  # this is all

    chain = chain_of(model)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; 2 if there is no key to ask a provider with."""
    parser = argparse.ArgumentParser(prog="python -m examples.langchain_chain", description="A cached chain.")
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
