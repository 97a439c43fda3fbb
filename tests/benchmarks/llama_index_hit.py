"""
What a hit of ``chat()`` costs, beside what LlamaIndex itself needs around a call that returns at once.

That is its own work of a call: spans, events, payloads, callbacks; with an event handler that listens, and without: then a
hit makes no events, which nobody would see.  The model is LlamaIndex's OpenAI class with the call
of the SDK left out; messages of 2 KB, an answer of 2 KB with its ``raw``.  Every round times each variant once, in random
order; printed are medians over the rounds and their ratio to LlamaIndex's own of the same colour.

    .venv-sdk2/bin/python -m tests.benchmarks.llama_index_hit
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import redis
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.llms.openai import OpenAI
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.event_handlers import BaseEventHandler
from openai.types.chat import ChatCompletion
from pydantic import PrivateAttr

from askonce import Cache, Near
from askonce_llama_index import attach
from tests.servers import Server, promised

TEXT = "".join(random.Random(1).choices("abcdefghij klmnop", k=2048))
NEAR = "a hit of chat() in the process (near=)"
#: What a hit may cost, in LlamaIndex's own cost of a call.
BOUND = 2.0


def answer() -> ChatResponse:
    """Return an answer as LlamaIndex's OpenAI class makes it."""
    message = {"role": "assistant", "content": TEXT}
    usage = {"prompt_tokens": 500, "completion_tokens": 500, "total_tokens": 1000}
    raw = ChatCompletion.model_validate(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-4o-mini",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": usage,
        }
    )
    return ChatResponse(
        message=ChatMessage(role="assistant", content=TEXT), raw=raw, additional_kwargs=dict(usage)
    )


ANSWER = answer()


class AtOnce(OpenAI):
    """LlamaIndex's OpenAI class, whose provider answers at once."""

    def _chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return ANSWER

    async def _achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return ANSWER


class ByGet(AtOnce):
    """... whose provider's answer takes a bare GET of its text from Redis: the least that any cache in Redis can cost."""

    _redis: Any = PrivateAttr(default=None)

    def _chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        self._redis.get("bare")
        return ANSWER


class Listener(BaseEventHandler):
    """An event handler that does nothing with what it is told."""

    @classmethod
    def class_name(cls) -> str:
        """Return its name."""
        return "Listener"

    def handle(self, event: Any, **_: Any) -> None:
        """Take note of nothing."""


@contextmanager
def listening() -> Iterator[None]:
    """Have an event handler listen."""
    root, listener = get_dispatcher(), Listener()
    root.add_event_handler(listener)
    try:
        yield
    finally:
        root.event_handlers = [handler for handler in root.event_handlers if handler is not listener]


def conversation(number: int) -> list[ChatMessage]:
    """Return messages of 2 KB."""
    return [
        ChatMessage(role="system", content="You are a careful technical writer. " * 28),
        ChatMessage(
            role="user", content=f"{number}: " + "Explain what this function does, step by step. " * 22
        ),
    ]


class Taken(NamedTuple):
    """What a call took: on the clock, and of the processor, which does not count the wait for Redis."""

    wall: float
    cpu: float


def measure(variants: dict[str, Callable[[int], object]], rounds: int, calls: int) -> dict[str, Taken]:
    """Return the median seconds a call of each variant, interleaved."""
    times: dict[str, list[Taken]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name in random.sample(list(variants), len(variants)):
            call = variants[name]
            wall, cpu = time.perf_counter(), time.process_time()
            for number in range(calls):
                call(number)
            times[name].append(Taken(time.perf_counter() - wall, time.process_time() - cpu))
    return medians_of(times, calls)


async def ameasure(
    variants: dict[str, Callable[[int], Awaitable[object]]], rounds: int, calls: int
) -> dict[str, Taken]:
    """Do what ``measure`` does, one call after the other."""
    times: dict[str, list[Taken]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name in random.sample(list(variants), len(variants)):
            call = variants[name]
            wall, cpu = time.perf_counter(), time.process_time()
            for number in range(calls):
                await call(number)
            times[name].append(Taken(time.perf_counter() - wall, time.process_time() - cpu))
    return medians_of(times, calls)


def medians_of(times: dict[str, list[Taken]], calls: int) -> dict[str, Taken]:
    """Return the medians of the rounds, for one call."""
    return {
        name: Taken(
            statistics.median(one.wall for one in taken) / calls,
            statistics.median(one.cpu for one in taken) / calls,
        )
        for name, taken in times.items()
    }


def report(title: str, medians: dict[str, Taken], base: str) -> None:
    """Print medians in microseconds and ratios to *base*."""
    print(f"\n{title}")
    own = medians[base]
    for name, one in medians.items():
        print(
            f"  {name:52s} {one.wall * 1e6:8.1f} us   x{one.wall / own.wall:.2f}"
            f"     processor {one.cpu * 1e6:8.1f} us   x{one.cpu / own.cpu:.2f}"
        )


def main() -> int:
    """Print the figures; return 1 if a hit costs more than its bound."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", type=int, default=50)
    given = parser.parse_args()
    name, command = next(iter(sorted(promised().items())))
    own = "LlamaIndex's own cost of a call that returns at once"
    with Server(command, name=name) as server:
        cache, client = Cache(server.url, namespace="hit"), redis.Redis.from_url(server.url)
        plain = AtOnce(model="gpt-4o-mini", api_key="k")
        cached = attach(AtOnce(model="gpt-4o-mini", api_key="k"), cache)
        near_cache = Cache(server.url, namespace="hit", near=Near(ttl=3600))
        near = attach(AtOnce(model="gpt-4o-mini", api_key="k"), near_cache)
        asked = [conversation(number) for number in range(given.calls)]
        for messages in asked:
            cached.chat(messages)
            near.chat(messages)
        client.set("bare", TEXT)
        by_get = ByGet(model="gpt-4o-mini", api_key="k")
        by_get._redis = client
        medians = measure(
            {
                own: lambda number: plain.chat(asked[number]),
                "a hit of chat()": lambda number: cached.chat(asked[number]),
                NEAR: lambda number: near.chat(asked[number]),
                "LlamaIndex around a redis-py GET of the text": lambda number: by_get.chat(asked[number]),
                "redis-py GET of the text": lambda _: client.get("bare"),
            },
            given.rounds,
            given.calls,
        )
        report(f"threads, {name}", medians, own)
        worst = medians["a hit of chat()"].wall / medians[own].wall
        with listening():
            medians = measure(
                {
                    own: lambda number: plain.chat(asked[number]),
                    "a hit of chat()": lambda number: cached.chat(asked[number]),
                    NEAR: lambda number: near.chat(asked[number]),
                    "LlamaIndex around a redis-py GET of the text": lambda number: by_get.chat(asked[number]),
                },
                given.rounds,
                given.calls,
            )
        report(f"threads, {name}, with an event handler", medians, own)

        async def awaited() -> dict[str, Taken]:
            async with cache.aio, near_cache.aio:
                return await ameasure(
                    {
                        own: lambda number: plain.achat(asked[number]),
                        "a hit of achat()": lambda number: cached.achat(asked[number]),
                        f"{NEAR}, awaited": lambda number: near.achat(asked[number]),
                    },
                    given.rounds,
                    given.calls,
                )

        medians = asyncio.run(awaited())
        report(f"asyncio, one call after the other, {name}", medians, own)
        if cache.stats().computed != given.calls or not near_cache.stats().near_hits:
            raise SystemExit("these were no hits")
    print(f"\na hit of chat(): x{worst:.2f} of LlamaIndex's own cost, bound x{BOUND:.2f}")
    return int(worst > BOUND)


if __name__ == "__main__":
    sys.exit(main())
