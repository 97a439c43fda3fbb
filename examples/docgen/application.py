"""The application: three ways to ask a model about a function. This file is what a user of askonce writes.

The key of every answer holds the function's path, the hash of its code and the version of the prompts, so
an answer is used until one of them changes, and never after.
"""

from typing import Any, TypedDict

from langchain.agents import create_agent
from langchain_core.globals import set_llm_cache
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool, tool
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import SecretStr

from askonce import Cache, Served, control
from askonce_langchain import AskonceCache
from examples.docgen import prompts
from examples.docgen.records import Job, Provider
from examples.docgen.sources import WorkingTree

MODEL = "gpt-4.1-mini"
_MAX_RETRIES = 6  # the client's business, and before the cache's: only good answers reach it


class Answer(TypedDict):
    """What a plain call stores: any JSON-like value will do."""

    text: str
    input_tokens: int
    output_tokens: int


class Documenter:
    """Asks the model. Everything about caching is in the lines that name `cache` or `control`."""

    def __init__(self, cache: Cache, provider: Provider, tree: WorkingTree) -> None:
        set_llm_cache(AskonceCache(cache))
        self._cache = cache
        model = ChatOpenAI(
            model=MODEL,
            base_url=provider.base_url,
            api_key=SecretStr(provider.api_key),
            max_retries=_MAX_RETRIES,
            temperature=0,
        )
        prompt = ChatPromptTemplate.from_messages([("system", prompts.SYSTEM), ("human", prompts.EXPLAIN)])
        self._chain = prompt | model | StrOutputParser()
        self._agent: Runnable[Any, Any] = create_agent(
            model, [_search(tree)], system_prompt=prompts.AGENT_SYSTEM
        )
        self._client = OpenAI(base_url=provider.base_url, api_key=provider.api_key, max_retries=_MAX_RETRIES)

    def explain(self, job: Job, config: RunnableConfig) -> str:
        """What the function does: a LangChain chain, cached by LangChain's global cache."""
        with control(scope=_parts(job), tags=[job.function.path]):
            return self._chain.invoke(_words(job), config)

    def uses(self, job: Job, config: RunnableConfig) -> str:
        """Who uses the function: an agent with a tool. Each of its model calls is cached."""
        question = {"role": "user", "content": prompts.USES.format(**_words(job))}
        with control(scope=_parts(job), tags=[job.function.path]):
            state = self._agent.invoke({"messages": [question]}, config)
        return str(state["messages"][-1].text)

    def example(self, job: Job) -> Served[Answer]:
        """An example of its use: a plain call of the OpenAI SDK, computed once among all workers.

        The request is a few words: the scope has the code's hash, so the code itself need not be in the key.
        `serve` is `get_or_compute` that also tells where the answer came from, for the table.
        """
        cache = self._cache.scope(**_parts(job))
        request = {"task": "example", "name": job.function.name, "model": MODEL}
        return cache.serve(request, lambda: self._ask(job), tags=[job.function.path])

    def _ask(self, job: Job) -> Answer:
        reply = self._client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": prompts.EXAMPLE.format(**_words(job))}],
            temperature=0,
        )
        usage = reply.usage
        return Answer(
            text=reply.choices[0].message.content or "",
            input_tokens=usage.prompt_tokens if usage else 0,
            output_tokens=usage.completion_tokens if usage else 0,
        )


def _parts(job: Job) -> dict[str, str]:
    """The parts of the key that this application adds to what it asks."""
    return {"path": job.function.path, "code": job.function.sha, "prompt_version": job.prompt_version}


def _words(job: Job) -> dict[str, str]:
    return {"name": job.function.name, "path": job.function.path, "code": job.function.code}


def _search(tree: WorkingTree) -> BaseTool:
    @tool
    def find_uses(name: str) -> str:
        """Return the lines of the code base that mention this name."""
        return tree.uses(name)

    return find_uses
