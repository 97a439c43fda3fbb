"""
The same chain and answers through askonce and the Redis caches of LangChain's users: ``make bench-langchain``.

Every round times each cache once, in random order, so that what else the machine does meets all of them alike.  Printed
are medians over the rounds and their ratio to langchain-community's ``RedisCache``; an absolute time proves nothing on
a shared machine.  The bounds are for what Redis answers; a near cache answers from this process.  Before anything is
timed, each cache has to give back what it was given; one that does not, or that the server has no commands for, is
left out with the reason.

The peers have an environment of their own, requirements/peers/langchain.txt, in which askonce is run from its sources.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import importlib.metadata
import itertools
import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from langchain_community.cache import AsyncRedisCache
from langchain_community.cache import RedisCache as CommunityRedisCache
from langchain_core.caches import BaseCache, InMemoryCache
from langchain_core.outputs import Generation
from langchain_redis import RedisCache as LangchainRedisCache

from askonce import Near
from askonce.keys import Fingerprints
from askonce_langchain import AskonceCache
from askonce_langchain._codec import GenerationsCodec
from askonce_langchain._keys import request
from tests.benchmarks.bench import Taken, ameasure, measure, report
from tests.benchmarks.chain import Canned, answer, chain_of
from tests.benchmarks.payloads import ANSWER
from tests.servers import Server, promised

TTL_S = 86_400
AT_ONCE = 200
BASE = "langchain_community RedisCache"
NEAR = "askonce, near=Near()"
#: Keeps the very objects in a dict: no fingerprint, no round trip, nothing to read.
MEMORY = "LangChain itself (InMemoryCache)"
#: What any cache of askonce's takes before and after it asks: telling the questions apart, making a new answer.
FLOOR = "fingerprint and decoding alone"
#: The most that a call through askonce may take, as a part of what it takes through BASE.
BOUNDS = {"lookup, hit": 0.6, "update": 0.6, f"{AT_ONCE} alookup at once": 0.1}


class Strings(BaseCache):
    """Never hits, and keeps the two strings by which LangChain asks."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def lookup(self, prompt: str, llm_string: str) -> None:
        """Note what is asked."""
        self.asked.append((prompt, llm_string))

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Keep nothing."""

    def clear(self, **kwargs: Any) -> None:
        """Forget what was asked."""
        self.asked.clear()


@functools.cache
def strings() -> list[tuple[str, str]]:
    """Return what LangChain tells a cache about the chain's questions."""
    cache = Strings()
    chain = chain_of(Canned(cache=cache))
    for number in range(AT_ONCE):
        chain.invoke({"number": number})
    return cache.asked


# --- the caches ---------------------------------------------------------------------------------------------------


def sync_caches(url: str) -> dict[str, Callable[[], BaseCache]]:
    """Return what makes each cache that has a synchronous side."""
    return {
        BASE: lambda: CommunityRedisCache(redis.Redis.from_url(url), ttl=TTL_S),
        "langchain_redis RedisCache": lambda: LangchainRedisCache(url, ttl=TTL_S),
        "askonce": lambda: AskonceCache(
            url, namespace="peers", deadline=2.0, max_entries=1_000_000, max_bytes="8gb"
        ),
        NEAR: lambda: AskonceCache(url, namespace="near", deadline=2.0, near=Near()),
    }


def async_caches(url: str) -> dict[str, Callable[[], BaseCache]]:
    """Return what makes each cache, with community's asynchronous one; redis-py's own pool raises at 100 callers."""

    def community() -> BaseCache:
        pool = redis.asyncio.BlockingConnectionPool.from_url(url, max_connections=32, timeout=20)
        return AsyncRedisCache(redis.asyncio.Redis(connection_pool=pool), ttl=TTL_S)

    made = sync_caches(url)
    return {BASE: made.pop(BASE), "langchain_community AsyncRedisCache, 32 connections": community, **made}


async def usable(makers: dict[str, Callable[[], BaseCache]]) -> dict[str, BaseCache]:
    """Return the caches that give back what they were given, filled; say which do not, and why."""
    caches = {}
    for name, make in makers.items():
        try:
            cache = make()
            await fill(cache)
            for number, asked in enumerate(strings()):
                found = await cache.alookup(*asked)
                if not found or found[0].text != answer(number).text:
                    raise LookupError("what was stored is not found")
        except Exception as error:
            print(f"  {name} does not run here: {type(error).__qualname__}: {str(error)[:120]}")
        else:
            caches[name] = cache
    return caches


async def fill(cache: BaseCache) -> BaseCache:
    """Return *cache* with an answer to each question."""
    for number, asked in enumerate(strings()):
        await cache.aupdate(*asked, [answer(number)])
    return cache


# --- the measurements ---------------------------------------------------------------------------------------------


def tell(title: str, medians: dict[str, Taken]) -> None:
    """Print medians and ratios, and whether askonce keeps its bound, if there is one."""
    report(title, medians, BASE)
    for task, bound in BOUNDS.items():
        if title.startswith(task):
            ratio = medians["askonce"].time / medians[BASE].time
            print(f"  bound x{bound}: {'kept' if ratio <= bound else 'MISSED'} (x{ratio:.3f})")


def sync_part(url: str, rounds: int) -> None:
    """One caller: the two calls of a cache, and a chain whose model is answered by it."""
    caches = asyncio.run(usable(sync_caches(url)))
    asked, count = strings(), itertools.count()

    def lookup(cache: BaseCache) -> Callable[[int], object]:
        return lambda number: cache.lookup(*asked[number])

    def update(cache: BaseCache, answers: list[list[Generation]]) -> Callable[[int], object]:
        def call(number: int) -> None:
            prompt, model = asked[number]
            fresh = prompt.replace(f'"{number}: ', f'"{next(count)}, {number}: ', 1)
            cache.update(fresh, model, answers[number])

        return call

    def invoke(cache: BaseCache) -> Callable[[int], object]:
        chain = chain_of(Canned(cache=cache))
        return lambda number: chain.invoke({"number": number})

    bare = redis.Redis.from_url(url)
    bare.set("bare", ANSWER)
    lookups = {name: lookup(cache) for name, cache in caches.items()}
    lookups["redis-py GET of 2 KB"] = lambda _: bare.get("bare")
    tell("lookup, hit", measure(lookups, rounds, AT_ONCE))
    made: list[list[Generation]] = [[answer(number)] for number in range(AT_ONCE)]
    updates = {
        name: update(cache, made) for name, cache in caches.items() if name != NEAR
    }  # Redis's part alone
    updates["redis-py SET EX of 2 KB"] = lambda _: bare.set("bare", ANSWER, ex=TTL_S)
    tell("update", measure(updates, rounds, AT_ONCE))
    others = {
        "askonce, hooks=False": AskonceCache(url, namespace="unhooked", deadline=2.0, hooks=False),
        MEMORY: InMemoryCache(),
    }
    chains = {name: invoke(cache) for name, cache in {**caches, **others}.items()}
    measure(chains, 1, AT_ONCE)  # fills those that are empty
    tell("chain.invoke, hit", measure(chains, rounds, AT_ONCE))


async def async_part(url: str, far: str, rounds: int, distance_ms: float) -> None:
    """Many callers of one loop, beside the server and away from it."""
    for where, place in ((url, "on this machine"), (far, f"{distance_ms:g} ms away")):
        caches = await usable(async_caches(where))
        lookups = {name: _alookup(cache) for name, cache in caches.items()}
        if where == url:
            lookups[MEMORY] = _alookup(await fill(InMemoryCache()))
            lookups[FLOOR] = _fingerprint_and_decode()
            tell("alookup, hit, one caller", await ameasure(lookups, 1, rounds, AT_ONCE))
        medians = await ameasure(lookups, AT_ONCE, rounds, AT_ONCE)
        tell(f"{AT_ONCE} alookup at once, {place} (time a call)", medians)
    batches = {name: _abatch(cache) for name, cache in caches.items()}
    medians = await ameasure(batches, 1, max(5, rounds // 4), 1)
    tell(f"chain.abatch of {AT_ONCE}, hits, {place} (time a batch)", medians)


def _alookup(cache: BaseCache) -> Callable[[int], Any]:
    asked, turn = strings(), itertools.cycle(range(AT_ONCE))  # each caller another question
    return lambda _: cache.alookup(*asked[next(turn)])


def _fingerprint_and_decode() -> Callable[[int], Any]:
    """Return what does the work of a hit that is not looking up."""
    asked, turn, codec = strings(), itertools.cycle(range(AT_ONCE)), GenerationsCodec()
    stored = [codec.encode([answer(number)]) for number in range(AT_ONCE)]
    fingerprint = Fingerprints("", {}).of

    async def call(_: int) -> list[Generation]:
        number = next(turn)
        fingerprint(request(*asked[number]))
        return codec.decode(stored[number])

    return call


def _abatch(cache: BaseCache) -> Callable[[int], Any]:
    chain, questions = chain_of(Canned(cache=cache)), [{"number": number} for number in range(AT_ONCE)]
    return lambda _: chain.abatch(questions)


# --- a server far away --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def away(url: str, seconds: float) -> Iterator[str]:
    """Give the URL of the same server, whose answers come that much later: a relay in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    parts = urlsplit(url)
    relay = context.Process(
        target=_relay, args=(parts.hostname, parts.port or 6379, seconds, theirs), daemon=True
    )
    relay.start()
    try:
        yield f"redis://127.0.0.1:{ours.recv()}/0"
    finally:
        relay.terminate()
        relay.join()


def _relay(host: str, port: int, seconds: float, ready: Any) -> None:
    asyncio.run(_relay_forever(host, port, seconds, ready))


async def _relay_forever(host: str, port: int, seconds: float, ready: Any) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(_carry(reader, upstream_writer, 0), _carry(upstream_reader, writer, seconds))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1000)
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Pass everything on, each piece *seconds* after it came: a distance, not a narrow line."""
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]]()

    async def deliver() -> None:
        while True:
            due, data = await pieces.get()
            await asyncio.sleep(due - loop.time())
            writer.write(data)
            if not data:
                writer.close()
                return

    delivering = asyncio.create_task(deliver())
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            pieces.put_nowait((loop.time() + seconds, data))
    pieces.put_nowait((loop.time() + seconds, b""))
    await delivering


def main() -> None:
    """Run all parts on each promised server, or on one that is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--server", choices=sorted(promised()), action="append")
    parser.add_argument(
        "--url", help="a server that runs already, one with RedisJSON say; its database is emptied"
    )
    parser.add_argument("--distance", type=float, default=20.0, help="of the far server, in milliseconds")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of peers that are about to be deprecated
    packages = ("langchain-core", "langchain-community", "langchain-redis", "redis")
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    for name in ["--url"] if options.url else options.server or sorted(promised()):
        with contextlib.ExitStack() as stack:
            url = options.url or stack.enter_context(Server(promised()[name], name=name)).url
            redis.Redis.from_url(url).flushdb()
            far = stack.enter_context(away(url, options.distance / 1000))
            print(f"\n=== {name}; {versions}; {options.rounds} interleaved rounds")
            sync_part(url, options.rounds)
            asyncio.run(async_part(url, far, options.rounds, options.distance))


if __name__ == "__main__":
    main()
