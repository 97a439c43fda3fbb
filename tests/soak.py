"""
Mixed load for minutes: ``make soak`` shows that memory stays flat and that the books of Redis stay exact.

Three processes store, look up, compute, stream, tag, invalidate and bump, by threads and by tasks; every answer is
checked.  Every half minute a line is printed: calls, wrong answers, exceptions, memory of the processes, and an atomic
audit of the books.  Exit code 1 if an answer was wrong, a call raised, the books disagreed with themselves, a bound was
broken, or memory grew by more than a fifth after the first two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import redis

from askonce import AsyncCache, Cache, Hot, Policy
from tests.contract.audit import UNIT, Auditor
from tests.servers import Server, promised

MAX_ENTRIES, PROCESSES = 2_000, 3
POLICY = Policy(
    ttl="5s", stale_while_revalidate="2s", jitter=0.2, early=1.0, hot=Hot(threshold=5, window="1m", ttl="10s", max_age="30s")
)  # fmt: skip


def answer(number: int) -> str:
    """Return the one right answer to a question; its size varies by question."""
    return f"{number}:" + "answer " * (number % 400)


def _turn(rng: random.Random) -> tuple[str, int]:
    dice, number = rng.random(), int(rng.paretovariate(0.7) * 40) % 6_000
    for share, name in (
        (0.55, "serve"),
        (0.75, "lookup"),
        (0.87, "stream"),
        (0.95, "many"),
        (0.985, "store"),
    ):
        if dice < share:
            return name, number
    return ("invalidate" if dice < 0.995 else "tag" if dice < 0.9995 else "bump"), number


def _check(name: str, value: object, number: int, counts: Counter[str]) -> None:
    counts["calls"] += 1
    if name in {"serve", "lookup", "stream"} and value is not None and value != answer(number):
        counts["wrong"] += 1


def _threads(cache: Cache, until: float, counts: Counter[str]) -> None:
    rng = random.Random()
    while time.monotonic() < until:
        name, number = _turn(rng)
        tags = [f"t{number % 50}"]
        value: Any = None
        try:
            if name == "serve":
                value = cache.serve(number, lambda n=number: answer(n), tags=tags).value
            elif name == "lookup":
                value = getattr(cache.lookup(number), "value", None)
            elif name == "stream":
                value = "".join(cache.stream(number, lambda n=number: iter([answer(n)])))
            elif name == "many":
                wanted = list(range(number, number + 5))
                if cache.get_or_compute_many(wanted, lambda some: [answer(n) for n in some]) != [
                    answer(n) for n in wanted
                ]:
                    counts["wrong"] += 1
            elif name == "store":
                cache.store(number, answer(number), tags=tags, ttl=rng.choice([0.05, 1, 4]))
            elif name == "invalidate":
                cache.invalidate(number)
            elif name == "tag":
                cache.invalidate_tag(tags[0])
            else:
                cache.bump()
        except Exception as error:
            counts["raised"] += 1
            print(f"raised: {name} {error!r}", file=sys.stderr)
        _check(name, value, number, counts)


async def _task(cache: AsyncCache, until: float, counts: Counter[str]) -> None:
    rng = random.Random()
    while time.monotonic() < until:
        _, number = _turn(rng)
        try:
            value = (await cache.serve(number, lambda n=number: answer(n))).value
            _check("serve", value, number, counts)
        except Exception as error:
            counts["raised"] += 1
            print(f"raised: {error!r}", file=sys.stderr)
        await asyncio.sleep(0)


def _memory_kb() -> int:
    return int(
        next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line).split()[
            1
        ]
    )


def work(url: str, seconds: float, reports: Any) -> None:
    """Be one process of the fleet: two threads and four tasks; report every second."""
    counts: Counter[str] = Counter()
    until = time.monotonic() + seconds
    words: dict[str, Any] = {
        "namespace": "soak",
        "policy": POLICY,
        "max_entries": MAX_ENTRIES,
        "deadline": 1.0,
    }
    cache = Cache(url, **words)

    async def tasks() -> None:
        async with AsyncCache(url, **words) as twin:
            await asyncio.gather(*[_task(twin, until, counts) for _ in range(4)])

    threads = [threading.Thread(target=_threads, args=(cache, until, counts)) for _ in range(2)]
    threads.append(threading.Thread(target=lambda: asyncio.run(tasks())))
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(1.0)
        reports.put((multiprocessing.current_process().name, dict(counts), _memory_kb()))
    cache.close()


def main() -> int:
    """Run the soak on the embedded Valkey, or the server that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--server", choices=sorted(promised()), default="valkey")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with Server(promised()[options.server], name=options.server) as server:
        reports: Any = context.Queue()
        seconds = options.minutes * 60
        crew = [context.Process(target=work, args=(server.url, seconds, reports)) for _ in range(PROCESSES)]
        for process in crew:
            process.start()
        good = watch(Auditor(redis.Redis.from_url(server.url), "soak"), crew, reports, seconds)
        for process in crew:
            process.join(30)
    print("all held" if good else "NOT all held")
    return 0 if good else 1


def watch(auditor: Auditor, crew: list[Any], reports: Any, seconds: float) -> bool:
    """Print a line every half minute until the crew has ended; return whether all held."""
    start, latest, settled = time.monotonic(), {}, 0
    audits = apart = most = 0
    shown, good = start, True
    while any(process.is_alive() for process in crew):
        while not reports.empty():
            name, counts, memory = reports.get()
            latest[name] = counts, memory
        books = auditor.books()
        audits += 1
        apart += books.counted != books.summed or books.in_l != books.in_x
        most = max(most, books.in_x)
        now = time.monotonic()
        if now - shown >= (30 if now - start < seconds else 5):
            shown = now
            total: Counter[str] = sum((Counter(counts) for counts, _ in latest.values()), Counter())
            memory = max((memory for _, memory in latest.values()), default=0)
            if now - start >= min(120, seconds / 3) and not settled:
                settled = memory
            good &= (
                not total["wrong"]
                and not total["raised"]
                and not apart
                and most <= MAX_ENTRIES + PROCESSES * 7
            )
            good &= not settled or memory <= settled * 1.2
            print(
                f"{now - start:5.0f} s  {total['calls']:9,} calls  {total['wrong']} wrong  {total['raised']} raised  "
                f"largest process {memory / 1024:.1f} MB  {books.in_x} entries ({most} at most)  "
                f"{books.counted * UNIT / 1024:.0f} KB  {audits} audits, {apart} apart",
                flush=True,
            )
        time.sleep(0.1)
    return good


if __name__ == "__main__":
    sys.exit(main())
