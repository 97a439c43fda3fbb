"""
Compare askonce with other caches on Redis: ``make bench-peers``.

Starts a server and a worker for each peer, in the peer's own environment; each round times each peer once, in random
order, and the figures are ratios to the bare redis-py GET of the same round.  Prints Markdown; ``--write`` puts it into
docs/peers.md and draws docs/peers.svg.  A peer that does not run is named with the reason, and fails nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from tests.benchmarks.peers.figures import Figure, lru_hits, ratios
from tests.benchmarks.peers.peer import Lacks
from tests.benchmarks.peers.results import COLUMNS, SPEED, Results
from tests.benchmarks.peers.roster import BARE, BASE, OURS, ROSTER
from tests.benchmarks.peers.workers import ROOT, Failed, Remote
from tests.servers import Server, promised

PAGE, PLOT = ROOT / "docs" / "peers.md", ROOT / "docs" / "peers.svg"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

#: How many calls a turn of each measurement has: few, so that other work of the machine meets few turns.
HITS: dict[str, dict[str, Any]] = {
    "hit": {"do": "hits", "calls": 50},
    "ahit": {"do": "ahits", "calls": 50, "at_once": 1},
    "at once": {"do": "ahits", "calls": 320, "at_once": 64},
    "one key": {"do": "ahits", "calls": 320, "at_once": 64, "one_key": True},
    "framework": {"do": "framework_hits", "calls": 10},
}
THROUGHPUT = {"at once", "one key"}

STORED = 5_000  # entries of the comparison of memory
PROCESSES, CALLERS, TAKES_S, STAMPEDES = 4, 10, 0.5, 3
ROOM_FOR, ASKED, KEYS = 200, 5_000, 1_000  # of the comparison of bounds
OUTAGE_CALLS, OUTAGE_S = 5, 10.0


class Run:
    """A run on one server."""

    def __init__(self, server: Server, environments: Path, rounds: int) -> None:
        self._server, self._environments = server, environments
        self._client = redis.Redis.from_url(server.url)
        info = self._client.info("server")
        version = info.get("valkey_version") or info["redis_version"]
        self.results = Results(f"{'Valkey' if 'valkey_version' in info else 'Redis'} {version}", rounds)
        self._workers: dict[str, Remote] = {}

    def start(self, names: Sequence[str]) -> None:
        """Start the workers, and note what they say of themselves."""
        for name, worker in {name: self._worker(name) for name in names}.items():
            try:
                self.results.about[name] = worker.hello()
            except Failed as why:
                self.results.absent[name] = str(why)
                worker.end()
            else:
                self._workers[name] = worker
        if why := self.results.absent.get(BASE):
            raise SystemExit(f"the baseline {BASE} does not run here: {why}")

    def _worker(self, name: str) -> Remote:
        return Remote(name, self._server.url, self._environments)

    def end(self) -> None:
        """End the workers."""
        for worker in self._workers.values():
            worker.end()

    def fill(self) -> None:
        """Give every peer its answers; one that cannot give back what it was given is left out, with the reason."""
        for name, worker in list(self._workers.items()):
            try:
                _either(worker, "fill")
            except (Failed, Lacks) as why:
                self.results.absent[name] = str(why)
                del self._workers[name], self.results.about[name]
                worker.end()

    def time_hits(self, comparison: str) -> None:
        """Time a comparison, interleaved; its figures are ratios to the baseline of the same round."""
        base = {"one key": "one key", "at once": "at once", "ahit": "ahit"}.get(comparison, "hit")
        command = HITS[comparison]
        taking = dict(self._workers)
        times: dict[str, list[float]] = {name: [] for name in taking}
        missed = dict.fromkeys(taking, 0)
        for _ in range(self.results.rounds):
            for name in random.sample(list(taking), len(taking)):
                asked = HITS[base] if name == BASE else command
                with self._noted(comparison, name, taking):
                    said = taking[name].ask(**asked)
                    times[name].append(said["seconds"])
                    missed[name] += said["missed"]
        for name, figure in ratios(times, BASE, inverse=comparison in THROUGHPUT).items():
            if name != BASE or base == comparison:
                self.results.note(comparison, name, figure)
        for name, count in missed.items():
            if count:
                calls = self.results.rounds * command["calls"]
                self.results.remarks.append(
                    f"{count} of {calls} calls of {name} were no hits ({COLUMNS[comparison].title})."
                )
        if base != comparison:
            self.results.note(comparison, BASE, "of no framework")
        else:
            self.results.base_us[comparison] = Figure.of(times[BASE]).median * 1e6

    @contextlib.contextmanager
    def _noted(self, comparison: str, name: str, taking: dict[str, Remote]) -> Iterator[None]:
        """Note a peer that has no such feature, or fails, and take it out of the comparison."""
        try:
            yield
        except Lacks as lack:
            self.results.note(comparison, name, str(lack))
            del taking[name]
        except Failed as why:
            self.results.note(comparison, name, "failed")
            self.results.remarks.append(f"{name} failed ({COLUMNS[comparison].title}): `{why}`")
            del taking[name]

    def weigh(self) -> None:
        """Note the bytes an entry of each peer, all keys counted, on a server that holds nothing else."""
        for name, worker in self._workers.items():
            with self._noted("memory", name, dict(self._workers)):
                self._on_server(name)
                self._client.execute_command("FLUSHALL", "SYNC")
                before = self._client.info("memory")["used_memory"]
                _either(worker, "fill", count=STORED)
                used = self._client.info("memory")["used_memory"] - before
                keys = list(self._client.scan_iter(count=1000))
                with self._client.pipeline(transaction=False) as pipe:
                    for key in keys:
                        pipe.memory_usage(key, samples=0)
                    counted = sum(size or 0 for size in pipe.execute())
                self.results.note("memory", name, Figure.of([counted / STORED]))
                self.results.note("used", name, Figure.of([used / STORED]))

    def stampede(self) -> None:
        """Note how many calls reach the model when several processes ask one cold question."""
        for name, worker in self._workers.items():
            more: list[Remote] = []
            with self._noted("stampede", name, dict(self._workers)):
                worker.ask("stampede", name=f"probe {name}", callers=1, at=0.0, takes=0.0)
                more += [self._worker(name) for _ in range(PROCESSES - 1)]
                for one in more:
                    one.hello()
                counts = [self._one_stampede(name, number, [worker, *more]) for number in range(STAMPEDES)]
                self.results.note("stampede", name, Figure.between(counts))
            for one in more:
                one.end()

    def _one_stampede(self, name: str, number: int, crew: list[Remote]) -> int:
        at = time.time() + 0.2
        for worker in crew:
            worker.send("stampede", name=f"{name} {number}", callers=CALLERS, at=at, takes=TAKES_S)
        said = [worker.fetch() for worker in crew]
        for error in sorted({error for one in said for error in one["errors"]}):
            self.results.remarks.append(f"in the stampede {name} raised: `{error}`")
        return sum(one["computed"] for one in said)

    def bound(self) -> None:
        """Note the hit rates of those that keep a bound of their own, beside exact least recent use."""
        trace = zipf(ASKED, KEYS)
        for name, worker in self._workers.items():
            with self._noted("bounded", name, dict(self._workers)):
                self.results.note(
                    "bounded", name, Figure.of([worker.ask("bounded", entries=ROOM_FOR, trace=trace)])
                )
        exact = lru_hits(trace, ROOM_FOR)
        self.results.remarks.append(
            f"Exact least recent use has a hit rate of {exact:.3f} on the same questions."
        )

    def freeze(self) -> None:
        """Note what hits come to while the server is stopped and its connections stay."""
        enduring = []
        for name, worker in self._workers.items():
            with self._noted("outage", name, dict(self._workers)):
                self._on_server(name)
                worker.ask("connect")
                enduring.append(name)
        self._server.freeze()
        try:
            for name in enduring:
                self._workers[name].send("outage", calls=OUTAGE_CALLS, within=OUTAGE_S)
            for name in enduring:
                with self._noted("outage", name, dict(self._workers)):
                    for colour, came in self._workers[name].fetch().items():
                        self.results.endured(colour, name, came)
        finally:
            self._server.thaw()

    def _on_server(self, name: str) -> None:
        if not self.results.about[name]["on server"]:
            raise Lacks("in the process")


def _either(worker: Remote, do: str, **words: Any) -> None:
    """Ask by threads and by asyncio; Lacks only if a peer has neither."""
    try:
        worker.ask(do, **words)
    except Lacks:
        worker.ask(f"a{do}", **words)


def zipf(count: int, keys: int) -> list[int]:
    """Return questions as a popular few get most of (rank to the power of -1), the same in every run."""
    weights = [1 / rank for rank in range(1, keys + 1)]
    return random.Random(1).choices(range(keys), weights, k=count)


def written(page: str, measured: str) -> str:
    """Return *page* with *measured* between its markers."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{measured}\n{END}{tail}"


def draw(results: Results, environments: Path) -> str | None:
    """Draw the plot in its own environment; return why not, if it could not be."""
    panels = [
        {
            "title": COLUMNS[name].title,
            "higher": COLUMNS[name].higher,
            "figures": {
                peer: [figure.median, figure.low, figure.high]
                for peer, figure in results.figures.get(name, {}).items()
            },
        }
        for name in SPEED
    ]
    given = {"panels": panels, "names": results.present, "ours": OURS, "bare": BARE}
    try:
        done = subprocess.run(
            [environments / "plot" / "bin" / "python", "-m", "tests.benchmarks.peers.plot", PLOT],
            input=json.dumps(given), text=True, capture_output=True, check=False, cwd=ROOT,
        )  # fmt: skip
    except FileNotFoundError:
        return "its environment was not set up"
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def main() -> None:
    """Run, print, and write if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--server", choices=sorted(promised()), default="valkey")
    parser.add_argument("--environments", type=Path, default=ROOT / ".venv-peers")
    parser.add_argument("--peer", choices=list(ROSTER), action="append", help="these alone, and the baseline")
    parser.add_argument("--write", action="store_true", help="into docs/peers.md and docs/peers.svg")
    options = parser.parse_args()
    names = [name for name in ROSTER if not options.peer or name == BASE or name in options.peer]
    began, load = time.monotonic(), os.getloadavg()[0]
    with Server(promised()[options.server], name=options.server) as server:
        run = Run(server, options.environments.absolute(), options.rounds)
        try:
            for say, step in {
                "start": lambda: run.start(names),
                "fill": run.fill,
                **{f"time: {name}": lambda name=name: run.time_hits(name) for name in HITS},
                "stampede": run.stampede,
                "bound": run.bound,
                "memory": run.weigh,
                "fill again": run.fill,
                "frozen server": run.freeze,
            }.items():
                print(f"{time.monotonic() - began:4.0f} s  {say}", file=sys.stderr, flush=True)
                step()
        finally:
            run.end()
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores (load {load:.1f} before), loopback"
    measured = run.results.markdown(datetime.datetime.now(datetime.UTC).date().isoformat(), machine)
    print(measured)
    if options.write:
        PAGE.write_text(written(PAGE.read_text(), measured))
        if why := draw(run.results, options.environments.absolute()):
            print(f"no plot: {why}", file=sys.stderr)
    print(f"{time.monotonic() - began:4.0f} s in all", file=sys.stderr)


if __name__ == "__main__":
    main()
