"""
What a hit adds to the SDK's own cost: ``python -m tests.benchmarks.openai_hit``.

The SDK on a canned answer, with no network, is what no cache can save: it builds the request and parses the answer.
Beside it, in turns of some calls each so that all meet the same noise:

- with a GET: the same, and a bare redis-py GET of 1.4 KB in the transport, which is what any answer from Redis costs
  on this machine: a round trip, and the caches of a processor that has slept meanwhile;
- hit: with a cache whose every call is a hit on Redis;
- near: with a cache that holds a copy in the process (``Cache(near=Near())``).

Printed are the medians in microseconds, and as ratios to the SDK alone what is added by a hit, by a hit beyond that
GET, and by a near hit: for an answer of 1.4 KB to two messages, a longer conversation, a stream of 201 chunks as it was
received and coalesced, and an embedding.  ``--check`` holds the last two of the plain case to the bound of 0.15.
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
from askonce import Cache, Near
from tests.servers import Server, promised

#: The most that we may add to the plain case, as a share of the SDK's own cost.
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


class CannedWithGet(Canned):
    """The same, with one round trip to Redis on its way."""

    def __init__(self, lib: Any, get: Callable[[], object]) -> None:
        super().__init__(lib)
        self._get = get

    def handle_request(self, request: Any) -> Any:
        self._get()
        return super().handle_request(request)


def client(
    cache: Cache | None = None, get: Callable[[], object] | None = None, **options: Any
) -> openai.OpenAI:
    """Return a client on canned answers: with a cache, with a round trip, or with neither."""
    http: Any = openai.DefaultHttpxClient()
    lib = sys.modules[type(http).__mro__[-2].__module__.partition(".")[0]]
    http._transport, http._mounts = Canned(lib) if get is None else CannedWithGet(lib, get), {}
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
    """Print the table; with ``--check`` exit with 1 if the plain case is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--check", action="store_true", help="fail if the plain case is over its bound")
    chosen = parser.parse_args()
    name, command = min(promised().items())
    with (
        Server(command, name=name) as server,
        Cache(server.url, namespace="bench", deadline=1.0) as cache,
        Cache(server.url, namespace="bench-near", deadline=1.0, near=Near()) as near,
    ):
        get = redis.Redis.from_url(server.url)
        get.set("bare", "x" * 1400)
        clients = {
            "alone": client(),
            "get": client(get=functools.partial(get.get, "bare")),
            "hit": client(cache),
            "near": client(near),
        }
        coalesced = {
            **clients,
            "hit": client(cache, replay="coalesced"),
            "near": client(near, replay="coalesced"),
        }
        long: list[Any] = [
            {"role": ("user", "assistant")[number % 2], "content": "hello there " * 10}
            for number in range(20)
        ]
        cases: dict[str, tuple[dict[str, openai.OpenAI], Callable[[openai.OpenAI], object], int]] = {
            "answer of 1.4 KB, 2 messages": (clients, lambda c: chat(c, MESSAGES), 20),
            "the same, 20 messages": (clients, lambda c: chat(c, long), 5),
            "stream of 201 chunks, as received": (
                clients,
                lambda c: list(chat(c, MESSAGES, stream=True, seed=1)),
                2,
            ),
            "the same, coalesced": (coalesced, lambda c: list(chat(c, MESSAGES, stream=True, seed=1)), 2),
            "embedding of 768 numbers": (clients, lambda c: c.embeddings.create(model="m", input="q"), 5),
        }
        print(
            f"openai {openai.__version__}, Python {sys.version.split()[0]}, {name}; medians in us, in turns"
        )
        heads = ("SDK alone", "with GET", "hit", "near", "hit adds", "beyond GET", "near adds")
        print(f"{'':34s}" + "".join(f"{head:>11s}" for head in heads))
        plain: tuple[float, ...] = ()
        for title, (asked, ask, calls) in cases.items():
            variants: dict[str, Callable[[], object]] = {
                kind: functools.partial(ask, one) for kind, one in asked.items()
            }
            for call in variants.values():
                for _ in range(3):
                    call()
            took = measure(variants, chosen.rounds, calls)
            alone = took["alone"]
            ratios = (took["hit"] - alone, took["hit"] - took["get"], took["near"] - alone)
            plain = plain or tuple(ratio / alone for ratio in ratios)
            print(
                f"{title:34s}"
                + "".join(f"{taken:11.1f}" for taken in took.values())
                + "".join(f"{ratio / alone:11.3f}" for ratio in ratios)
            )
        for kind, one in (("hit", cache), ("near", near)):
            stats = one.stats()
            print(f"{kind}: {stats.hits} hits, {stats.misses} misses")
    if chosen.check and max(plain[1:]) > BOUND:
        sys.exit(
            f"added to the SDK's own cost: {plain[1]:.3f} beyond a GET, {plain[2]:.3f} near; at most {BOUND}"
        )


def chat(client: openai.OpenAI, messages: list[Any], **words: Any) -> Any:
    """Ask for a chat completion."""
    return client.chat.completions.create(model="m", messages=messages, temperature=0, **words)


if __name__ == "__main__":
    main()
