"""
What callers see while Redis is ill: ``make chaos`` prints, for each fault, what each call returned and how long it took.

Four threads and eight tasks ask for known and for new questions, before, during and after a fault of three seconds on a
real server.  Every answer is checked.  Exit code 1 if a call raised, answered wrongly, or took longer than two
deadlines and a half.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import redis
from rich.console import Console
from rich.table import Table

from askonce import AsyncCache, Cache, Source
from askonce.keys import partition_slot, partition_tags
from tests.servers import Cluster, Server, Watched, free_port, promised

DEADLINE = 0.1
KNOWN = 50
PHASES = ("before", "during", "after")


@dataclass
class Seen:
    """The calls of one phase."""

    sources: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    raised: int = 0
    wrong: int = 0


class Load:
    """Callers of both colours against one URL, who note what they see."""

    def __init__(self, url: str) -> None:
        self.phase = "before"
        self.seen = {phase: Seen() for phase in PHASES}
        self.first_hit_after: float | None = None
        self._recovered = 0.0
        self._stop = threading.Event()
        self._cache = Cache(url, namespace="chaos", deadline=DEADLINE, max_entries=5_000)
        for number in range(KNOWN):
            self._cache.store({"known": number}, f"answer {number}")
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]
        self._threads.append(threading.Thread(target=lambda: asyncio.run(self._aask_all(url))))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keep asking while the code inside runs."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()
            self._cache.close()

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self.phase = phase
        if phase == "after":
            self._recovered = time.monotonic()

    def _question(self, rng: random.Random) -> tuple[dict[str, object], str]:
        if rng.random() < 0.8:
            number = rng.randrange(KNOWN)
            return {"known": number}, f"answer {number}"
        new = rng.randrange(10**9)
        return {"new": new}, f"new answer {new}"

    def _note(self, phase: str, start: float, source: Source | None, right: bool) -> None:
        seen = self.seen[phase]
        seen.times.append(time.monotonic() - start)
        seen.raised += source is None
        seen.wrong += source is not None and not right
        if source is not None:
            seen.sources[source.value] += 1
        if phase == "after" and source is Source.HIT and self.first_hit_after is None:
            self.first_hit_after = time.monotonic() - self._recovered

    def _ask(self) -> None:
        rng = random.Random()
        while not self._stop.wait(0.005):
            request, answer = self._question(rng)
            phase, start, source, value = self.phase, time.monotonic(), None, None
            try:
                served = self._cache.serve(request, lambda answer=answer: answer)
                source, value = served.source, served.value
            except Exception as error:
                print(f"raised: {error!r}", file=sys.stderr)
            self._note(phase, start, source, value == answer)

    async def _aask_all(self, url: str) -> None:
        async with AsyncCache(url, namespace="chaos", deadline=DEADLINE, max_entries=5_000) as cache:
            await asyncio.gather(*[self._aask(cache) for _ in range(8)])

    async def _aask(self, cache: AsyncCache) -> None:
        rng = random.Random()
        while not self._stop.is_set():
            await asyncio.sleep(0.01)
            request, answer = self._question(rng)
            phase, start, source, value = self.phase, time.monotonic(), None, None
            try:
                served = await cache.serve(request, lambda answer=answer: answer)
                source, value = served.source, served.value
            except Exception as error:
                print(f"raised: {error!r}", file=sys.stderr)
            self._note(phase, start, source, value == answer)


class Switch:
    """A TCP address that leads to one server or another, as a virtual address does in a failover."""

    def __init__(self, port: int) -> None:
        self.port, self._target = free_port(), port
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def lead_to(self, port: int) -> None:
        """Lead new connections to *port*, and cut those that are open."""
        self._target = port
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self) -> None:
        while True:
            inner, _ = self._listening.accept()
            try:
                outer = socket.create_connection(("127.0.0.1", self._target), 1)
            except OSError:
                inner.close()
                continue
            self._open += [inner, outer]
            for one, other in ((inner, outer), (outer, inner)):
                threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for one in (source, sink):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)


Fault = Callable[[ExitStack, list[str]], tuple[str, Callable[[], None], Callable[[], None]]]


def frozen(stack: ExitStack, command: list[str]) -> tuple[str, Callable[[], None], Callable[[], None]]:
    """The server's process is stopped: connections stay, answers do not come."""
    server = stack.enter_context(Server(command))
    return server.url, server.freeze, server.thaw


def killed(stack: ExitStack, command: list[str]) -> tuple[str, Callable[[], None], Callable[[], None]]:
    """The server is gone, and started again empty."""
    server = stack.enter_context(Server(command))
    return server.url, server.kill, server.start


def full(stack: ExitStack, command: list[str]) -> tuple[str, Callable[[], None], Callable[[], None]]:
    """The server is out of memory (noeviction)."""
    server = stack.enter_context(Server(command, "--maxmemory-policy", "noeviction"))
    client = redis.Redis.from_url(server.url)

    def fill() -> None:
        client.config_set("maxmemory", 1)

    return server.url, fill, lambda: client.config_set("maxmemory", 0)


def failover(stack: ExitStack, command: list[str]) -> tuple[str, Callable[[], None], Callable[[], None]]:
    """The master is killed; for three seconds its address leads to a replica that refuses writes; then it is promoted."""
    master = stack.enter_context(Server(command))
    replica = stack.enter_context(Server(command, "--replicaof", "127.0.0.1", str(master.port)))
    client = redis.Redis.from_url(replica.url)
    while client.info("replication")["master_link_status"] != "up":
        time.sleep(0.05)
    switch = Switch(master.port)

    def lose() -> None:
        master.kill()
        switch.lead_to(replica.port)

    return f"redis://127.0.0.1:{switch.port}/0", lose, lambda: client.replicaof("NO", "ONE")


def cluster(stack: ExitStack, command: list[str]) -> tuple[str, Callable[[], None], Callable[[], None]]:
    """One of three masters of a cluster is killed; its replica takes over; then it comes back as a replica."""
    running = stack.enter_context(Cluster(command))
    victim = running.servers[0]
    return running.url, victim.kill, victim.start


def cluster_frozen(
    stack: ExitStack, command: list[str]
) -> tuple[str, Callable[[], None], Callable[[], None]]:
    """One of three masters of a cluster is frozen; its replica takes over; then it goes on and finds that out."""
    running = stack.enter_context(Cluster(command))
    victim = running.servers[0]
    return running.url, victim.freeze, victim.thaw


def sentinel(stack: ExitStack, command: list[str]) -> tuple[str, Callable[[], None], Callable[[], None]]:
    """A master that Sentinels watch is killed; they promote its replica; then it comes back and is made one."""
    watched = Watched(stack, command)
    return watched.url, watched.servers[0].kill, watched.servers[0].start


def slot(stack: ExitStack, command: list[str]) -> tuple[str, Callable[[], None], Callable[[], None]]:
    """The slot of a partition moves to another master, key by key."""
    running = stack.enter_context(Cluster(command))
    slot = partition_slot("chaos", partition_tags("chaos", 16)[0])
    return running.url, lambda: running.move(slot), lambda: None


FAULTS: dict[str, Fault] = {
    "frozen": frozen,
    "killed": killed,
    "full": full,
    "failover": failover,
    "cluster": cluster,
    "cluster frozen": cluster_frozen,
    "slot moves": slot,
    "sentinel": sentinel,
}


def run(fault: Fault, command: list[str]) -> Load:
    """Play one fault and return what was seen."""
    with ExitStack() as stack:
        url, fall_ill, recover = fault(stack, command)
        load = Load(url)
        with load.running():
            time.sleep(1.0)
            load.enter("during")
            fall_ill()
            time.sleep(3.0)
            recover()
            load.enter("after")
            time.sleep(5.0)
        return load


def report(console: Console, server: str, loads: dict[str, Load]) -> bool:
    """Print the table; return whether all held."""
    table = Table(title=f"{server}: what callers saw, deadline {DEADLINE * 1000:.0f} ms")
    for name in (
        "fault",
        "phase",
        "calls",
        "hit",
        "computed",
        "bypassed",
        "raised",
        "wrong",
        "p50 ms",
        "slowest ms",
    ):
        table.add_column(name, justify="left" if name in {"fault", "phase"} else "right")
    table.add_column("hits again after s", justify="right")
    good = True
    for fault, load in loads.items():
        for phase in PHASES:
            seen = load.seen[phase]
            times = sorted(seen.times) or [0.0]
            slowest = times[-1]
            good = good and not seen.raised and not seen.wrong and slowest <= 2.5 * DEADLINE
            back = (
                f"{load.first_hit_after:.2f}" if phase == "after" and load.first_hit_after is not None else ""
            )
            table.add_row(
                fault if phase == "before" else "", phase, str(len(seen.times)), str(seen.sources["hit"]),
                str(seen.sources["computed"] + seen.sources["coalesced"]), str(seen.sources["bypassed"]),
                str(seen.raised), str(seen.wrong), f"{times[len(times) // 2] * 1000:.1f}", f"{slowest * 1000:.0f}", back,
            )  # fmt: skip
        good = good and load.first_hit_after is not None
        table.add_section()
    console.print(table)
    return good


def main() -> int:
    """Run every fault on every promised server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fault", choices=sorted(FAULTS), action="append")
    options = parser.parse_args()
    logging.getLogger("askonce").setLevel(logging.ERROR)
    console = Console(width=120)
    good = True
    for name, command in sorted(promised().items()):
        chosen = options.fault or list(FAULTS)
        good &= report(console, name, {fault: run(FAULTS[fault], command) for fault in chosen})
    console.print("all held" if good else "NOT all held")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
