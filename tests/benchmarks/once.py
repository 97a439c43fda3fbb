"""
What waiting for another caller costs: ``make bench`` runs this after the hit path.

Eight processes of 25 callers ask one cold question whose answer takes 0.6 s; then the same as a stream.  Printed are
the calls that reached the model, how long after the store the callers had the answer, how long after the leader a
follower in another process had the first chunk, and what passing through adds to the first chunk of the leader's own
consumer.  Last comes how long after an invalidation another process still serves its near copy.  A fourth run is watched by MONITOR and counts the commands that a caller sends: those that scripts call and
those that set up a connection are left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import redis

from askonce import Cache, Near
from tests.servers import Server, promised

PROCESSES, CALLERS, UPSTREAM_S, PUSHES = 8, 25, 0.6, 100


def _ask(url: str, number: int, barrier: Any, out: Any, stream: bool) -> None:
    """Be one process: all callers ask at once; say when each had its answer, or its first chunk."""
    cache = Cache(url, namespace="once", deadline=1.0)
    cache.lookup("connect")

    def compute() -> float:
        out.put(("computed", 0.0))
        time.sleep(UPSTREAM_S)
        return time.monotonic()

    def produce() -> Iterator[float]:
        out.put(("computed", 0.0))
        for _ in range(4):
            time.sleep(UPSTREAM_S / 4)
            yield time.monotonic()

    def call() -> None:
        if stream:
            chunks = cache.stream(("stream", number), produce)
            began = next(chunks)
            out.put(("had", time.monotonic() - began))
            list(chunks)
        else:
            ended = cache.get_or_compute(("value", number), compute)
            out.put(("had", time.monotonic() - ended))

    threads = [threading.Thread(target=call) for _ in range(CALLERS)]
    barrier.wait()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.close()


class Sent:
    """The commands that clients send while the block runs, counted by MONITOR."""

    _SETTING_UP = frozenset({"HELLO", "AUTH", "SELECT", "CLIENT", "PING", "INFO"})

    def __init__(self, url: str) -> None:
        self.count, self._url = 0, url
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        # redis-py 8 gives up after 5 s in which nobody has said anything.
        with redis.Redis.from_url(self._url, socket_timeout=None) as client, client.monitor() as monitor:
            self._ready.set()
            for command in monitor.listen():
                name = command["command"].partition(" ")[0].upper()
                if name == "ECHO":
                    return
                self.count += command["client_type"] != "lua" and name not in self._SETTING_UP

    def __enter__(self) -> Sent:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        with redis.Redis.from_url(self._url) as client:
            client.echo("the end")
        self._thread.join(10)


def play(server: Server, number: int, *, stream: bool) -> tuple[int, float]:
    """Return calls upstream, and the median delay in ms."""
    context = multiprocessing.get_context("spawn")
    barrier, out = context.Barrier(PROCESSES + 1), context.Queue()
    crew = [
        context.Process(target=_ask, args=(server.url, number, barrier, out, stream))
        for _ in range(PROCESSES)
    ]
    for process in crew:
        process.start()
    barrier.wait()
    said = [out.get(timeout=60) for _ in range(PROCESSES * CALLERS + 1)]
    for process in crew:
        process.join()
    delays = [delay for what, delay in said if what == "had"]
    calls = sum(what == "computed" for what, _ in said)
    return calls, statistics.median(delays) * 1000


def pass_through(server: Server) -> float:
    """Return the median milliseconds that recording adds to the first chunk, interleaved with a bare generator."""
    cache, added, fresh = Cache(server.url, namespace="through"), [], iter(range(10**6))
    for _ in range(60):
        for bare in (True, False):
            chunks: Iterator[float] = iter(_one())
            start = time.perf_counter()
            first = chunks if bare else cache.stream(("through", next(fresh)), _one)
            next(first)
            taken = time.perf_counter() - start
            added.append(-taken if bare else taken)
            list(first)
    cache.close()
    return (statistics.median(added[1::2]) + statistics.median(added[::2])) * 1000


def _hold(url: str, ready: Any, missed: Any) -> None:
    """Be a process with a near copy: say each time that it is there, and when it was gone."""
    cache = Cache(url, namespace="push", near=Near(), deadline=1.0)
    for turn in range(PUSHES):
        near = cache.stats().near_hits
        while cache.lookup(turn) is None or cache.stats().near_hits - near < 3:
            time.sleep(0.002)
        ready.put(turn)
        while cache.lookup(turn) is not None:
            time.sleep(0.0001)  # who computes on holds the message up for 5 ms, sys.getswitchinterval()
        missed.put(time.monotonic())
    cache.close()


def push(server: Server) -> list[float]:
    """Return for how many milliseconds after ``invalidate`` had returned another process served its near copy."""
    context = multiprocessing.get_context("spawn")
    ready, missed = context.Queue(), context.Queue()
    cache, served = Cache(server.url, namespace="push", deadline=1.0), []
    for turn in range(PUSHES):
        cache.store(turn, "answer")
    holder = context.Process(target=_hold, args=(server.url, ready, missed))
    holder.start()
    for turn in range(PUSHES):
        ready.get(timeout=60)
        cache.invalidate(turn)
        done = time.monotonic()
        served.append(max(missed.get(timeout=60) - done, 0.0) * 1000)
    holder.join()
    cache.close()
    return sorted(served)


def _one() -> Iterator[float]:
    yield 1.0


def main() -> None:
    """Run on each promised server; three times, for one run measures the scheduler as well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=sorted(promised()), action="append")
    options, _ = parser.parse_known_args()
    for name in options.server or sorted(promised()):
        with Server(promised()[name], name=name) as server:
            print(f"\n=== {name}: {PROCESSES} processes x {CALLERS} callers, one cold question, three times")
            for stream in (False, True):
                runs = [play(server, number, stream=stream) for number in range(3)]
                with Sent(server.url) as sent:
                    play(server, 3, stream=stream)
                what = "first chunk after the leader's" if stream else "answer after the store"
                print(
                    f"  {'stream' if stream else 'value ':6s} upstream calls {[calls for calls, _ in runs]}, "
                    f"{what}, median ms {[round(delay, 1) for _, delay in runs]}, "
                    f"commands sent a caller {sent.count / (PROCESSES * CALLERS):.1f}"
                )
            print(f"  passing through adds {pass_through(server):.2f} ms to the first chunk (median)")
            served = push(server)
            print(
                f"  near: another process serves its copy for {statistics.median(served):.2f} ms after invalidate() "
                f"has returned (median of {PUSHES}, worst {served[-1]:.1f} ms)"
            )


if __name__ == "__main__":
    main()
