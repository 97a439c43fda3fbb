"""
One peer in its own environment: reads a command a line, answers a line, both JSON, until its input ends.

``python -m tests.benchmarks.peers.worker NAME URL``.  A command is ``{"do": name, ...words}``; the answer is
``{"said": value}``, ``{"lacks": reason}`` for a feature that the peer has not, or ``{"failed": error}``.  Whatever
the peer itself prints goes to stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.metadata
import inspect
import json
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.benchmarks.payloads import answer
from tests.benchmarks.peers.peer import Lacks, Peer
from tests.benchmarks.peers.roster import ROSTER

#: How many questions the calls of a measurement go round.
QUESTIONS = 200
#: The part of a turn that comes before the clock starts: the others' turns have cooled caches and connections.
WARM = 0.2


class Worker:
    """What can be asked of a peer."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._framework: Callable[[int], object] | None = None
        self._fresh: dict[str, Callable[[], Awaitable[object]]] = {}
        # One thread for all that blocks: the loop stays free for what a peer does behind its callers.
        self._thread = ThreadPoolExecutor(1)

    async def carry_out(self, command: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a command."""
        words = dict(command)
        do = getattr(self, words.pop("do"))
        try:
            if inspect.iscoroutinefunction(do):
                return {"said": await do(**words)}
            loop = asyncio.get_running_loop()
            return {"said": await loop.run_in_executor(self._thread, functools.partial(do, **words))}
        except Lacks as lack:
            return {"lacks": str(lack)}
        except Exception as error:
            return {"failed": _told(error)}

    def hello(self) -> dict[str, Any]:
        """Return versions and what is to be known of the measured call."""
        versions = {package: importlib.metadata.version(package) for package in self._peer.packages}
        return {
            "versions": versions,
            "asked by": self._peer.asked_by,
            "note": self._peer.note,
            "on server": self._peer.on_server,
        }

    # --- hits -------------------------------------------------------------------------------------------------

    def fill(self, count: int = QUESTIONS) -> None:
        """Store *count* answers, and find the first and the last as they were."""
        for number in range(count):
            self._peer.store(number, answer(number))
        for number in (0, count - 1):
            _check(self._peer.hit(number), number)

    async def afill(self, count: int = QUESTIONS) -> None:
        """Do what ``fill`` does, by asyncio."""
        for number in range(count):
            await self._peer.astore(number, answer(number))
        for number in (0, count - 1):
            _check(await self._peer.ahit(number), number)

    def hits(self, calls: int) -> dict[str, float]:
        """Return the seconds a call, one caller, and how many calls were no hits."""
        hit = self._peer.hit
        return _timed(lambda number: hit(number % QUESTIONS) is None, calls)

    def framework_hits(self, calls: int) -> dict[str, float]:
        """Return the seconds a call of the peer's framework, whose model never has to answer."""
        if self._framework is None:
            self._framework = self._peer.framework()
            for number in range(QUESTIONS):
                self._framework(number)
        call = self._framework
        return _timed(lambda number: call(number % QUESTIONS) is None, calls)

    async def ahits(self, calls: int, at_once: int, one_key: bool = False) -> dict[str, float]:
        """Return the seconds a call with *at_once* tasks, and how many calls were no hits."""
        hit, missed = self._peer.ahit, 0

        async def task(first: int, count: int) -> None:
            nonlocal missed
            for number in range(first, first + count):
                missed += await hit(0 if one_key else number % QUESTIONS) is None

        async def together(count: int) -> None:
            await asyncio.gather(*[task(first * 3, count) for first in range(at_once)])

        each = max(1, calls // at_once)
        await together(max(1, round(WARM * each)))
        missed = 0
        start = time.perf_counter()
        await together(each)
        return {"seconds": (time.perf_counter() - start) / (each * at_once), "missed": missed}

    # --- what else is compared --------------------------------------------------------------------------------

    def bounded(self, entries: int, trace: list[int]) -> float:
        """Return the hit rate of a cache of *entries* that is asked the *trace*, and stores what it misses."""
        peer, hits = self._peer.bounded(entries), 0
        for number in trace:
            if peer.hit(number) is None:
                peer.store(number, "an answer")
            else:
                hits += 1
        return hits / len(trace)

    async def stampede(self, name: str, callers: int, at: float, takes: float) -> dict[str, Any]:
        """Let *callers* ask for *name* at the time *at*; return how often it was computed here, and the errors."""
        computed: list[str] = []

        async def acompute() -> str:
            computed.append(name)
            await asyncio.sleep(takes)
            return answer(0)

        def compute() -> str:
            computed.append(name)
            time.sleep(takes)
            return answer(0)

        await asyncio.sleep(max(0.0, at - time.time()))
        if type(self._peer).aask is not Peer.aask:
            asked = [self._peer.aask(name, acompute) for _ in range(callers)]
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
        else:
            outcomes = await asyncio.to_thread(_by_threads, callers, lambda: self._peer.ask(name, compute))
        if lack := next((outcome for outcome in outcomes if isinstance(outcome, Lacks)), None):
            raise lack
        errors = [_told(outcome) for outcome in outcomes if isinstance(outcome, BaseException)]
        return {"computed": len(computed), "errors": errors}

    async def connect(self) -> list[str]:
        """
        Make a new peer for each colour that has hits, and let it have some; return the colours.

        With a pause between them: a copy in the process may not be kept before its connection for invalidations stands.
        """
        loop = asyncio.get_running_loop()
        peers = {"threads": type(self._peer)(self._peer.url), "asyncio": type(self._peer)(self._peer.url)}
        hits = {
            "threads": lambda: loop.run_in_executor(self._thread, peers["threads"].hit, 0),
            "asyncio": lambda: peers["asyncio"].ahit(0),
        }
        for colour, hit in hits.items():
            with contextlib.suppress(Lacks):
                for _ in range(3):
                    if await hit() is None:
                        raise LookupError("no hit before the outage")
                    await asyncio.sleep(0.2)
                self._fresh[colour] = hit
        return list(self._fresh)

    async def outage(self, calls: int, within: float) -> dict[str, list[tuple[float, str]]]:
        """
        Let the peers that ``connect`` made have hits, each colour one after the other.

        Return for each colour how long each call took, and what came of it: of *calls*, those that ended *within*
        seconds.
        """
        endured = [_endure(hit, calls, within) for hit in self._fresh.values()]
        return dict(zip(self._fresh, await asyncio.gather(*endured), strict=True))


async def _endure(hit: Callable[[], Awaitable[object]], calls: int, within: float) -> list[tuple[float, str]]:
    came: list[tuple[float, str]] = []
    end = time.perf_counter() + within
    for _ in range(calls):
        start = time.perf_counter()
        call = asyncio.ensure_future(hit())
        done, _ = await asyncio.wait({call}, timeout=max(0.0, end - start))
        if not done:
            break
        error = call.exception()
        outcome = type(error).__name__ if error else "miss" if call.result() is None else "hit"
        came.append((time.perf_counter() - start, outcome))
    return came


def _timed(call: Callable[[int], bool], calls: int) -> dict[str, float]:
    for number in range(round(WARM * calls)):
        call(number)
    missed, start = 0, time.perf_counter()
    for number in range(calls):
        missed += call(number)
    return {"seconds": (time.perf_counter() - start) / calls, "missed": missed}


def _by_threads(callers: int, call: Callable[[], object]) -> list[object]:
    outcomes: list[object] = []

    def one() -> None:
        try:
            outcomes.append(call())
        except Exception as error:
            outcomes.append(error)

    threads = [threading.Thread(target=one) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def _check(found: str | bytes | None, number: int) -> None:
    text = found.decode() if isinstance(found, bytes) else found
    if text != answer(number):
        raise LookupError("it does not give back what was stored")


def _told(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first if len(first) <= 80 else first[:77] + '...'}"


async def serve(name: str, url: str, answers: int) -> None:
    """Answer commands until there are no more."""
    loop = asyncio.get_running_loop()
    try:
        worker = Worker(ROSTER[name].load()(url))
        _write(answers, await worker.carry_out({"do": "hello"}))
    except Exception as error:
        _write(answers, {"failed": _told(error)})
        return
    # A thread of its own: a peer may have filled the loop's.
    with ThreadPoolExecutor(1) as reading:
        while line := await loop.run_in_executor(reading, sys.stdin.readline):
            _write(answers, await worker.carry_out(json.loads(line)))


def _write(answers: int, said: dict[str, Any]) -> None:
    os.write(answers, json.dumps(said).encode() + b"\n")


def main() -> None:
    """Serve, and end at once: a peer's threads and exit hooks are not waited for."""
    answers = os.dup(1)
    os.dup2(2, 1)
    asyncio.run(serve(sys.argv[1], sys.argv[2], answers))
    os._exit(0)


if __name__ == "__main__":
    main()
