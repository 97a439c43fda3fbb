"""
What a call through askonce costs, beside a bare redis-py GET of the same answer: ``make bench``.

Every round times each variant once, in random order, so that what else the machine does meets all of them alike.
Printed are medians over the rounds and their ratio to the median of the bare GET of the same colour: an absolute time
proves nothing on a shared machine.  Beside the time stands the CPU time of this process, which the server's is not in.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import redis
import redis.asyncio
from langchain_core.outputs import Generation

from askonce import AsyncCache, Cache, Near
from askonce._wire import held
from askonce_langchain import AskonceCache
from tests.benchmarks.payloads import ANSWER, LLM_STRING, prompt, request
from tests.servers import Server, promised

#: On a busy machine too every call is to be made with the cache: without it is faster.
DEADLINE = 5.0


class Taken(NamedTuple):
    """What a call takes, in seconds: on the clock, and of this process's CPU."""

    time: float
    cpu: float


class Watch:
    """Notes what the calls of a block take, one by one on average."""

    def __init__(self, names: Iterable[str]) -> None:
        self._taken: dict[str, list[Taken]] = {name: [] for name in names}

    @contextmanager
    def __call__(self, name: str, calls: int) -> Iterator[None]:
        start, cpu = time.perf_counter(), time.process_time()
        yield
        cpu = time.process_time() - cpu
        taken = Taken((time.perf_counter() - start) / calls, cpu / calls)
        self._taken[name].append(taken)

    def medians(self) -> dict[str, Taken]:
        """Return the medians of each name."""
        return {
            name: Taken(*map(statistics.median, zip(*taken, strict=True)))
            for name, taken in self._taken.items()
        }


def measure(variants: dict[str, Callable[[int], object]], rounds: int, calls: int) -> dict[str, Taken]:
    """Return what a call of each variant takes, interleaved."""
    watch = Watch(variants)
    for _ in range(rounds):
        for name in random.sample(list(variants), len(variants)):
            call = variants[name]
            with watch(name, calls):
                for number in range(calls):
                    call(number)
    return watch.medians()


async def ameasure(
    variants: dict[str, Callable[[int], Awaitable[object]]], at_once: int, rounds: int, calls: int
) -> dict[str, Taken]:
    """Return what a call of each variant takes with *at_once* callers, who ask for different things, interleaved."""
    watch, each = Watch(variants), max(1, calls // at_once)
    for _ in range(rounds):
        for name in random.sample(list(variants), len(variants)):
            call = variants[name]

            async def worker(place: int, call: Callable[[int], Awaitable[object]] = call) -> None:
                for number in range(each):
                    await call(3 * place + number)

            with watch(name, at_once * each):
                await asyncio.gather(*[worker(place) for place in range(at_once)])
    return watch.medians()


def report(title: str, medians: dict[str, Taken], base: str) -> None:
    """Print medians in microseconds and ratios to *base*."""
    print(f"\n{title}")
    for name, taken in medians.items():
        print(
            f"  {name:46s} {taken.time * 1e6:8.1f} us   x{taken.time / medians[base].time:5.2f}"
            f"   CPU {taken.cpu * 1e6:6.1f} us   x{taken.cpu / medians[base].cpu:5.2f}"
        )


def fill(cache: Cache, ask: Callable[[], object]) -> None:
    """Ask until the near cache answers: it keeps nothing before its push connection stands."""
    asked = 0
    while cache.stats().near_hits - asked < 200:
        asked = cache.stats().near_hits
        ask()
        time.sleep(0.01)


def sync_part(server: Server, rounds: int) -> None:
    """Hit, store, miss, LangChain and the fingerprint, by threads."""
    client = redis.Redis.from_url(server.url)
    cache = Cache(server.url, namespace="bench", max_entries=1_000_000, max_bytes="8gb", deadline=DEADLINE)
    at_bound = Cache(server.url, namespace="bound", max_entries=200, max_bytes="8gb", deadline=DEADLINE)
    chains = AskonceCache(Cache(server.url, namespace="chains", deadline=DEADLINE))
    # Apart from the others: whoever holds copies hears of every store, and here that is the same process.
    near = Cache(server.url, namespace="near", near=Near(), deadline=DEADLINE)
    near_chains = AskonceCache(Cache(server.url, namespace="near-chains", near=Near(), deadline=DEADLINE))
    requests = [request(number) for number in range(200)]
    body, answer = ANSWER.encode(), [Generation(text=ANSWER)]
    prompts = [prompt(number) for number in range(200)]
    for number in range(200):
        client.set(f"bare:{number}", body)
        cache.store(requests[number], ANSWER)
        at_bound.store(requests[number], ANSWER)
        near.store(requests[number], ANSWER)
        chains.update(prompts[number], LLM_STRING, answer)
        near_chains.update(prompts[number], LLM_STRING, answer)
    fill(near, lambda: [near.lookup(one) for one in requests])
    fill(near_chains.cache, lambda: [near_chains.lookup(one, LLM_STRING) for one in prompts])
    public = Cache(server.url, namespace="bench", deadline=DEADLINE)
    with patch.object(held, "_line", held.Slow):  # this thread's connection is made now
        public.lookup(requests[0])
    fresh = iter(range(10**9))
    absent = iter(range(10**9, 2 * 10**9))
    medians = measure(
        {
            "redis-py GET": lambda n: client.get(f"bare:{n}"),
            "lookup, hit": lambda n: cache.lookup(requests[n]),
            "lookup, hit, by redis-py's public names": lambda n: public.lookup(requests[n]),
            "lookup, near hit": lambda n: near.lookup(requests[n]),
            "get_or_compute, hit": lambda n: cache.get_or_compute(requests[n], str),
            "lookup, miss": lambda _: cache.lookup({"n": next(absent)}),
            "fingerprint of a 1.5 KB request": lambda n: cache._fingerprints.of(requests[n]),
            "LangChain lookup, hit": lambda n: chains.lookup(prompts[n], LLM_STRING),
            "LangChain lookup, near hit": lambda n: near_chains.lookup(prompts[n], LLM_STRING),
            "LangChain update": lambda n: chains.update("new " + prompts[n], LLM_STRING, answer),
            "redis-py SET PX": lambda n: client.set(f"bare:{n}", body, px=86_400_000),
            "store, below the bound": lambda _: cache.store({"n": next(fresh)}, ANSWER),
            "store, at the bound, one eviction": lambda _: at_bound.store({"n": next(fresh)}, ANSWER),
        },
        rounds,
        200,
    )
    report("threads: one caller", medians, "redis-py GET")
    plain = medians["redis-py SET PX"].time
    ratio = medians["store, below the bound"].time / plain
    bound = medians["store, at the bound, one eviction"].time / plain
    print(f"  store against SET PX: below the bound x{ratio:.2f}, at the bound x{bound:.2f}")
    for one in (cache, public, at_bound, near, chains.cache, near_chains.cache):
        one.close()


async def async_part(server: Server, rounds: int) -> None:
    """Hits by asyncio, one and 64 at once."""
    client = redis.asyncio.Redis.from_url(server.url, max_connections=100)
    cache = AsyncCache(server.url, namespace="abench", deadline=DEADLINE)
    requests = [request(number) for number in range(200)]
    for number in range(200):
        await client.set(f"bare:{number}", ANSWER)
        await cache.store(requests[number], ANSWER)
        await cache.store({"n": number}, ANSWER)
    part = cache._namespace.state.partitions[0]
    assert part.word is not None  # it has stored
    members = [(part.word.prefix + cache.fingerprint(one).encode(),) for one in requests]
    for at_once in (1, 64):
        medians = await ameasure(
            {
                "redis-py asyncio GET": lambda n: client.get(f"bare:{n % 200}"),
                "lookup, hit": lambda n: cache.lookup(requests[n % 200]),
                "... of a short request": lambda n: cache.lookup({"n": n % 200}),
                "... but for fingerprint and decoding": lambda n: cache._read(part, members[n % 200]),
            },
            at_once,
            rounds,
            640,
        )
        report(
            f"asyncio: {at_once} at once (time a call; throughput is its inverse)",
            medians,
            "redis-py asyncio GET",
        )
    await client.aclose()
    await cache.aclose()


def memory_part(server: Server) -> None:
    """Bytes of Redis an entry of 2 KB, all keys of the namespace counted, against what the books say."""
    client = redis.Redis.from_url(server.url)
    client.flushall()
    cache = Cache(server.url, namespace="memory", max_entries=1_000_000, deadline=DEADLINE)
    cache.store("warm", "up")
    before, books, count = client.info("memory")["used_memory"], cache.usage().bytes, 20_000
    for number in range(count):
        cache.store({"n": number}, os.urandom(2048))  # nothing to compress
    used = (client.info("memory")["used_memory"] - before) / count
    counted = (cache.usage().bytes - books) / count
    print(f"\nmemory: {used:.0f} bytes an entry of 2 KB in {server.name}; the books count {counted:.0f}")
    cache.close()


def entries_part(server: Server, rounds: int, entries: int) -> None:
    """A hit on one of a thousand entries, in a namespace that holds no more, and in one of as many as asked for."""
    asked: dict[str, Callable[[int], object]] = {}
    for count in (1_000, entries):
        cache = Cache(
            server.url, namespace=f"of-{count}", max_entries=2 * count, max_bytes="64gb", deadline=DEADLINE
        )
        for start in range(0, count, 1_000):
            numbers = range(start, min(start + 1_000, count))
            cache.store_many([{"n": number} for number in numbers], ["answer " * 20] * len(numbers))
        chosen = random.sample(range(count), 1_000)
        asked[f"lookup, hit, {count:,} entries"] = partial(_ask, cache, chosen)
    report("entries in the namespace", measure(asked, rounds, 1_000), next(iter(asked)))


def _ask(cache: Cache, chosen: list[int], number: int) -> None:
    if cache.lookup({"n": chosen[number]}) is None:
        raise LookupError("what was stored is not found")


def import_part(rounds: int) -> None:
    """What importing askonce adds to importing redis, by the clock, in processes of their own."""
    plain, ours = "redis, redis.asyncio", "redis, redis.asyncio, askonce"
    watch = Watch((plain, ours))
    with tempfile.TemporaryDirectory() as folder:
        # Compiled once, as what is installed is.
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}
        for turn in range(rounds + 1):
            for modules in (plain, ours):
                with watch(modules, 1) if turn else nullcontext():
                    subprocess.run([sys.executable, "-c", f"import {modules}"], check=True, env=environment)
    medians = watch.medians()
    least = medians[plain].time
    print(f"\nimport redis {least * 1000:.0f} ms; askonce adds {(medians[ours].time - least) * 1000:.0f} ms")


def main() -> None:
    """Run all parts on each promised server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--server", choices=sorted(promised()), action="append")
    parser.add_argument("--entries", type=int, help="how long a hit takes among so many, too")
    options, _ = parser.parse_known_args()
    import_part(max(3, options.rounds // 4))
    for name in options.server or sorted(promised()):
        with Server(promised()[name], name=name) as server:
            print(f"\n=== {name}, redis-py {redis.__version__}, {options.rounds} interleaved rounds")
            sync_part(server, options.rounds)
            asyncio.run(async_part(server, options.rounds))
            if options.entries:
                entries_part(server, options.rounds, options.entries)
        with Server(
            promised()[name], name=name
        ) as server:  # what the other has freed, it frees in its own time
            memory_part(server)


if __name__ == "__main__":
    main()
