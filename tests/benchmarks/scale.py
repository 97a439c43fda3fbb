"""
How far one Redis goes, and how many of them: ``make scale`` prints the tables of docs/scaling.md.

Capacity is what a call costs the server: its CPU time and the bytes it sends, read from INFO before and after some
thousands of calls.  CPU time depends on the machine, not on what else it does meanwhile, so the figures hold on a
shared one; what is left out is the kernel's own work on a real network card.  What partitions do to the hit rate and
to the load of each node is arithmetic on a simulated trace.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import selectors
import socket
import statistics
import zlib
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import hiredis
import redis

from askonce import Cache
from askonce._wire.commands import pack
from tests.servers import Server, promised

SIZES = (512, 2_048, 8_192, 32_768, 131_072)
CONNECTIONS, CALLS, ROUNDS, KEYS = 64, 6_400, 5, 500


# --- what a call costs the server ---------------------------------------------------------------------------------------


def spent(client: redis.Redis) -> tuple[float, int]:
    """Return the CPU seconds that the server has spent, and the bytes it has sent."""
    cpu, sent = client.info("cpu"), client.info("stats")["total_net_output_bytes"]
    return float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"]), int(sent)


class Load:
    """Connections that keep the server busy: each sends its next call when the last one was answered."""

    def __init__(self, server: Server) -> None:
        self._selector = selectors.DefaultSelector()
        for _ in range(CONNECTIONS):
            one = socket.create_connection(("127.0.0.1", server.port))
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(one, selectors.EVENT_READ, [hiredis.Reader(), 0])

    def run(self, calls: Iterator[tuple[bytes, int]]) -> None:
        """Send *calls* (a write, and how many replies it has) until there are no more."""
        busy = 0
        for key in self._selector.get_map().values():
            busy += self._send(key, calls)
        while busy:
            for key, _ in self._selector.select(5):
                reader, _ = key.data
                reader.feed(key.fileobj.recv(1 << 18))
                while key.data[1] and (reply := reader.gets()) is not False:
                    if isinstance(reply, hiredis.ReplyError):
                        raise RuntimeError(f"the server answered {reply}")
                    key.data[1] -= 1
                if not key.data[1]:
                    busy += self._send(key, calls) - 1

    @staticmethod
    def _send(key: selectors.SelectorKey, calls: Iterator[tuple[bytes, int]]) -> int:
        if (call := next(calls, None)) is None:
            return 0
        key.data[1] = call[1]
        key.fileobj.sendall(call[0])  # type: ignore[union-attr]
        return 1


def costs(server: Server, variants: dict[str, Callable[[], object]]) -> dict[str, tuple[float, float]]:
    """Return the server's CPU seconds and sent bytes of one call of each variant: medians, interleaved."""
    client = redis.Redis.from_url(server.url)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name in random.sample(list(variants), len(variants)):
            before = spent(client)
            variants[name]()
            after = spent(client)
            seen[name].append(((after[0] - before[0]) / CALLS, (after[1] - before[1]) / CALLS))
    return {
        name: (statistics.median(cpu for cpu, _ in each), statistics.median(sent for _, sent in each))
        for name, each in seen.items()
    }


def capacity(server: Server) -> None:
    """Print what a hit and a new answer cost the server by the size of the answer, and how many a core serves."""
    rows = [_row(server, Load(server), length) for length in SIZES]
    print(f"\nOne core of {server.name}: its CPU time a call in us\n")
    print("| answer | bare `GET` | hit | hit, touched a moment ago | new answer | new answer, one eviction |")
    print("|---|---|---|---|---|---|")
    for length, found in rows:
        print(f"| {length:,} B | " + " | ".join(f"{cpu * 1e6:.1f}" for cpu, _ in found.values()) + " |")
    print(f"\nQuestions a second that one core of {server.name} serves at its bound, by hit rate\n")
    print("| answer | 50 % | 80 % | 95 % | 100 % | Gbit/s sent at 100 % |")
    print("|---|---|---|---|---|---|")
    for length, found in rows:
        (hit, sent), (new, _) = found["hit"], found["eviction"]
        rates = [1 / (part * hit + (1 - part) * new) for part in (0.5, 0.8, 0.95, 1.0)]
        cells = " | ".join(f"{rate:,.0f}" for rate in rates)
        print(f"| {length:,} B | {cells} | {rates[-1] * sent * 8 / 1e9:.1f} |")


def _row(server: Server, load: Load, length: int) -> tuple[int, dict[str, tuple[float, float]]]:
    client = redis.Redis.from_url(server.url)
    client.flushall()
    answer = os.urandom(length)  # nothing to compress
    client.set("bare", answer)
    with (
        Cache(server.url, namespace="scale", max_entries=10**6, max_bytes="16gb", deadline=1.0) as cache,
        Cache(server.url, namespace="bound", max_entries=KEYS, max_bytes="16gb", deadline=1.0) as bound,
        ThreadPoolExecutor(16) as pool,
    ):
        for number in range(KEYS):
            cache.store(number, answer)
            bound.store(number, answer)
        fresh = itertools.count(KEYS)

        def answers(asked: Cache) -> None:
            for _ in pool.map(
                lambda number: asked.serve(number, lambda: answer), itertools.islice(fresh, CALLS)
            ):
                pass

        hit = [read(cache, number, touch=True) for number in range(KEYS)]
        touched = [read(cache, number, touch=False) for number in range(KEYS)]
        variants: dict[str, Callable[[], object]] = {
            "get": lambda: load.run((pack(("GET", "bare")), 1) for _ in range(CALLS)),
            "hit": lambda: load.run(itertools.islice(itertools.cycle(hit), CALLS)),
            "touched": lambda: load.run(itertools.islice(itertools.cycle(touched), CALLS)),
            "new": lambda: answers(cache),
            "eviction": lambda: answers(bound),
        }
        return length, costs(server, variants)


def read(cache: Cache, number: int, *, touch: bool) -> tuple[bytes, int]:
    """Return the write of one hit, and how many replies it has."""
    part = cache._namespace.state.partitions[0]
    assert part.word is not None
    member = part.word.prefix + cache.fingerprint(number).encode()
    packed = pack(("MGET", part.names.c, part.names.e + member))
    if touch:
        packed += pack(("ZADD", part.names.l, "XX", "CH", b"1750000000000.000", member))
    return packed, 1 + touch


# --- memory -------------------------------------------------------------------------------------------------------------


def memory(name: str, entries: int) -> None:
    """Print what *entries* answers take, all keys counted, beside a bare SET, and what the books say."""
    print(f"\nMemory of {name}: {entries:,} entries of each size\n")
    print("| answer | bare `SET PX` | bytes an entry | the books count | a million entries |")
    print("|---|---|---|---|---|")
    for length in (512, 1_980, 2_048, 8_192):
        bare = _bytes_each(name, entries, length, bare=True)[0]
        used, counted = _bytes_each(name, entries, length, bare=False)
        million = f"{used * 1e6 / 2**30:.1f} GiB"
        print(f"| {length:,} B | {bare:,.0f} | {used:,.0f} | {counted:,.0f} | {million} |")


def _bytes_each(name: str, entries: int, length: int, *, bare: bool) -> tuple[float, float]:
    with (
        Server(promised()[name], name=name) as server,
        redis.Redis.from_url(server.url) as client,
        Cache(server.url, namespace="memory", max_entries=10**7, max_bytes="64gb", deadline=1.0) as cache,
    ):
        cache.store("warm", "up")
        before, books = client.info("memory")["used_memory"], cache.usage().bytes
        for start in range(0, entries, 100):
            answers = [os.urandom(length) for _ in range(100)]
            if bare:
                with client.pipeline(transaction=False) as pipe:
                    for number, answer in enumerate(answers, start):
                        pipe.set(f"bare:{cache.fingerprint(number)}", answer, px=86_400_000)
                    pipe.execute()
            else:
                cache.store_many(range(start, start + 100), answers)
        used = client.info("memory")["used_memory"] - before
        return used / entries, (cache.usage().bytes - books) / entries


# --- partitions, by simulation --------------------------------------------------------------------------------------------


def trace(keys: int, skew: float, length: int, seed: int = 7) -> list[int]:
    """Return *length* requests for *keys* questions, the n-th most popular asked as often as n to the power -*skew*."""
    rng = random.Random(seed)
    sums = list(itertools.accumulate((rank + 1) ** -skew for rank in range(keys)))
    return [bisect_left(sums, rng.random() * sums[-1]) for _ in range(length)]


def home(number: int, partitions: int) -> int:
    """Return the partition of a question, as askonce spreads digests."""
    return zlib.crc32(b"%d" % number) % partitions


def lru(requests: Iterable[int], bound: int, partitions: int) -> float:
    """Return the hit rate of an exact LRU whose bound is divided by *partitions*."""
    books: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(partitions)]
    hits = asked = 0
    for number in requests:
        book = books[home(number, partitions)]
        asked += 1
        if number in book:
            hits += 1
            book.move_to_end(number)
        else:
            book[number] = None
            if len(book) > bound // partitions:
                book.popitem(last=False)
    return hits / asked


def partitions_and_hit_rate() -> None:
    """Print what dividing the bound costs."""
    print("\nHit rate of an exact LRU by partitions: 16,000 questions, Zipf 0.9, 400,000 requests\n")
    print("| bound, entries | 1 | 4 | 16 | 64 | 256 |")
    print("|---|---|---|---|---|---|")
    requests = trace(16_000, 0.9, 400_000)
    for bound in (512, 2_048, 8_192):
        rates = [f"{lru(requests, bound, partitions):.4f}" for partitions in (1, 4, 16, 64, 256)]
        print(f"| {bound:,} | {' | '.join(rates)} |")


def busiest_node() -> None:
    """Print how unevenly requests and entries fall on the nodes of a cluster."""
    print("\nThe busiest node's load over the average: 100,000 questions, 400,000 requests\n")
    print("| nodes | partitions | entries | requests, Zipf 0.7 | requests, Zipf 0.9 | requests, Zipf 1.1 |")
    print("|---|---|---|---|---|---|")
    traces = [trace(100_000, skew, 400_000) for skew in (0.7, 0.9, 1.1)]
    for nodes, partitions in ((3, 3), (3, 16), (3, 64), (8, 16), (8, 32), (8, 128), (16, 64)):
        cells = [f"{over(range(100_000), nodes, partitions):.2f}"]
        cells += [f"{over(requests, nodes, partitions):.2f}" for requests in traces]
        print(f"| {nodes} | {partitions} | {' | '.join(cells)} |")


def over(requests: Iterable[int], nodes: int, partitions: int) -> float:
    """Return the busiest node's share of *requests*, as a multiple of the average."""
    load = Counter(home(number, partitions) * nodes // partitions for number in requests)
    return max(load.values()) * nodes / load.total()


def hottest() -> None:
    """Print the share of the most asked questions: what one node serves however many there are."""
    print("\nShare of all requests that the most asked questions have, of 100,000\n")
    print("| | Zipf 0.7 | Zipf 0.9 | Zipf 1.1 |")
    print("|---|---|---|---|")
    weights = [[(rank + 1) ** -skew for rank in range(100_000)] for skew in (0.7, 0.9, 1.1)]
    for most in (1, 100, 1_000):
        cells = [f"{sum(each[:most]) / sum(each):.3f}" for each in weights]
        print(f"| the first {most:,} | {' | '.join(cells)} |")


def main() -> None:
    """Print all tables, those of a server for each that is promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=sorted(promised()), action="append")
    parser.add_argument("--entries", type=int, default=50_000, help="for the memory table")
    options = parser.parse_args()
    for name in options.server or sorted(promised()):
        with Server(promised()[name], name=name) as server:
            capacity(server)
        memory(name, options.entries)
    partitions_and_hit_rate()
    busiest_node()
    hottest()


if __name__ == "__main__":
    main()
