"""
What a hit adds to the SDK's own cost: ``python -m tests.benchmarks.openai_hit``.

The SDK on a canned answer, with no network, is what no cache can save: it builds the request and parses the answer.
Beside it, in turns of some calls each so that both meet the same noise, the SDK with a cache whose every call is a hit
on Redis, and a bare redis-py GET of 1.4 KB.  Printed are the medians, what a hit adds, and its ratio to the SDK's own
cost: for an answer of 1.4 KB to two messages (bound: 0.15), a longer conversation, a stream of 201 chunks as it was
received and coalesced, and an embedding.
"""

from __future__ import annotations

import argparse
import base64
import functools
import json
import random
import statistics
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import openai
import redis

import askonce_openai
from askonce import Cache
from tests.servers import Server, promised

#: The most that a hit may add to the plain case, as a share of the SDK's own cost.
BOUND = 0.15

MESSAGES: list[Any] = [
    {"role": "system", "content": "You are a helpful assistant. " * 10},
    {"role": "user", "content": "What is the capital of France? " * 10},
]
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "system_fingerprint": "fp",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "word " * 200,
                "refusal": None,
                "annotations": [],
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13},
}
CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
VECTOR = {"object": "embedding", "index": 0, "embedding": [number / 768 for number in range(768)]}
VECTORS = {
    "object": "list",
    "data": [VECTOR],
    "model": "m",
    "usage": {"prompt_tokens": 1, "total_tokens": 1},
}


def _stream() -> bytes:
    deltas: list[Any] = [({"content": "word "}, None)] * 200 + [({}, "stop")]
    chunks = [
        {**CHUNK, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}
        for delta, reason in deltas
    ]
    return b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks) + b"data: [DONE]\n\n"


class Canned:
    """The innermost transport: answers with no network."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self._stream = _stream()
        self._json = json.dumps(ANSWER).encode()
        numbers: list[float] = VECTOR["embedding"]  # type: ignore[assignment]
        packed = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
        self._packed = json.dumps({**VECTORS, "data": [{**VECTOR, "embedding": packed}]}).encode()
        self._vectors = json.dumps(VECTORS).encode()

    def handle_request(self, request: Any) -> Any:
        kind = "application/json"
        if request.url.path.endswith("/embeddings"):
            body = self._vectors if b"base64" not in request.content else self._packed
        elif b'"stream":true' in request.content.replace(b" ", b""):
            body, kind = self._stream, "text/event-stream"
        else:
            body = self._json
        headers = {"content-type": kind, "x-request-id": "req_1"}
        # As a real transport does it: a body to be read and closed.
        return self._lib.Response(200, headers=headers, stream=self._lib.ByteStream(body))

    def close(self) -> None:
        pass


def client(cache: Cache | None, **options: Any) -> openai.OpenAI:
    """Return a client on canned answers, with a cache or without."""
    http: Any = openai.DefaultHttpxClient()
    lib = sys.modules[type(http).__mro__[-2].__module__.partition(".")[0]]
    http._transport, http._mounts = Canned(lib), {}
    if cache is not None:
        askonce_openai.wrap(http, cache, **options)
    return openai.OpenAI(api_key="k", base_url="http://x/v1", http_client=http, max_retries=0)


def measure(variants: dict[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, float]:
    """Return the median microseconds a call of each variant, in turns of *calls* calls."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name in random.sample(list(variants), len(variants)):
            call = variants[name]
            start = time.perf_counter()
            for _ in range(calls):
                call()
            times[name].append((time.perf_counter() - start) / calls * 1e6)
    return {name: statistics.median(taken) for name, taken in times.items()}


def main() -> None:
    """Print the table; exit with 1 if the plain case is over its bound and ``--check`` was given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--check", action="store_true", help="fail if the plain case is over its bound")
    chosen = parser.parse_args()
    name, command = min(promised().items())
    with Server(command, name=name) as server, Cache(server.url, namespace="bench", deadline=1.0) as cache:
        bare, hit = client(None), client(cache)
        coalesced = client(cache, replay="coalesced")
        long: list[Any] = [
            {"role": ("user", "assistant")[number % 2], "content": "hello there " * 10}
            for number in range(20)
        ]
        get = redis.Redis.from_url(server.url)
        get.set("bare", "x" * 1400)
        cases: dict[str, tuple[openai.OpenAI, Callable[[openai.OpenAI], object], int]] = {
            "answer of 1.4 KB, 2 messages": (hit, lambda c: chat(c, MESSAGES), 20),
            "the same, 20 messages": (hit, lambda c: chat(c, long), 5),
            "stream of 201 chunks, as received": (
                hit,
                lambda c: list(chat(c, MESSAGES, stream=True, seed=1)),
                2,
            ),
            "the same, coalesced": (coalesced, lambda c: list(chat(c, MESSAGES, stream=True, seed=1)), 2),
            "embedding of 768 numbers": (hit, lambda c: c.embeddings.create(model="m", input="q"), 5),
        }
        print(
            f"openai {openai.__version__}, Python {sys.version.split()[0]}, {name}; medians in us, in turns"
        )
        print(f"{'':36s} {'SDK alone':>10s} {'SDK, hit':>10s} {'added':>8s} {'ratio':>7s} {'bare GET':>9s}")
        ratios = []
        for title, (cached, ask, calls) in cases.items():
            for _ in range(3):
                ask(cached)
            variants: dict[str, Callable[[], object]] = {
                "alone": functools.partial(ask, bare),
                "hit": functools.partial(ask, cached),
                "get": functools.partial(get.get, "bare"),
            }
            took = measure(variants, chosen.rounds, calls)
            added = took["hit"] - took["alone"]
            ratios.append(added / took["alone"])
            print(
                f"{title:36s} {took['alone']:10.1f} {took['hit']:10.1f} {added:8.1f} {ratios[-1]:7.3f} {took['get']:9.1f}"
            )
        stats = cache.stats()
        print(f"hits {stats.hits}, misses {stats.misses}")
    if chosen.check and ratios[0] > BOUND:
        sys.exit(f"a hit adds {ratios[0]:.3f} of the SDK's own cost: the bound is {BOUND}")


def chat(client: openai.OpenAI, messages: list[Any], **words: Any) -> Any:
    """Ask for a chat completion."""
    return client.chat.completions.create(model="m", messages=messages, temperature=0, **words)


if __name__ == "__main__":
    main()
