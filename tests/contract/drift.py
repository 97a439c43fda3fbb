"""
The drift audit: can the books of a namespace ever disagree with themselves, or in the end with the entries?

Six processes store (new answers, overwrites of another size, 1 byte to 60 kB, lifetimes from 20 ms), look up, delete
behind the cache's back, invalidate and ask for usage, while an auditor recomputes both books in one atomic script
every 20 ms.  Then everything that is left is asked for once, the books are healed and compared with the length of
every entry, and at last everything expires.

``python -m tests.contract.drift [seconds] [server]`` runs every scenario for that long (20) on one promised server.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import redis

from askonce import Cache, scripts

from ..servers import Server, promised
from .audit import OVERHEAD, UNIT, Auditor, Entries
from .processes import Crew, Stage

PROCESSES, LARGEST, REQUESTS = 6, 60_000, 3000
NAMESPACE = "drift"
_UNBOUND = {"max_entries": 100_000, "max_bytes": 1 << 40}


@dataclass(frozen=True)
class Scenario:
    """One server and one bound."""

    title: str
    bounds: dict[str, int] = field(default_factory=dict)
    maxmemory: str = "0"
    policy: str = "noeviction"
    lose: tuple[str, ...] = ()  # keys that a stranger deletes under load

    @property
    def words(self) -> dict[str, Any]:
        """The bounds of the cache."""
        return {**_UNBOUND, **self.bounds}

    @property
    def exact(self) -> bool:
        """Whether both books must agree at every moment: nobody but us removes keys."""
        return not self.policy.startswith("allkeys") and not self.lose


ENTRIES = Scenario("bound by entries", {"max_entries": 200})
BYTES = Scenario("bound by bytes", {"max_bytes": 300_000})
FULL = Scenario("out of memory", {"max_entries": 800}, "3mb")
ALLKEYS = Scenario("allkeys-lru under pressure", {"max_entries": 800}, "3mb", "allkeys-lru")
SWEEP = Scenario("no bound: sweep only")
VOLATILE = Scenario("volatile-lru under pressure", {"max_entries": 800}, "3mb", "volatile-lru")
RANDOM = Scenario("allkeys-random under pressure", {"max_entries": 800}, "3mb", "allkeys-random")
LOST = Scenario("books lost under load", {"max_entries": 800}, lose=("l", "x", "f"))
WORD = Scenario("control word lost under load", {"max_entries": 800}, lose=("c",))
ESSENTIAL = (ENTRIES, BYTES, FULL, ALLKEYS)
ALL = (*ESSENTIAL, SWEEP, VOLATILE, RANDOM, LOST, WORD)


# --- mutations: each must be found -------------------------------------------------------------------------------


def _swap(old: str, new: str) -> Callable[[str], str]:
    def mutate(source: str) -> str:
        return source.replace(old, new)

    return mutate


MUTATIONS: dict[str, tuple[Callable[[str], str], Scenario]] = {
    "record forgets the old size": (_swap("old % UNIT - units", "-units"), ENTRIES),
    "drop subtracts nothing": (_swap('  redis.call("ZINCRBY", x, score % UNIT, "#")\n', ""), ENTRIES),
    "evict leaves the entry": (
        _swap('      redis.call("UNLINK", KEYS[i])\n      evicted', "      evicted"),
        ENTRIES,
    ),
    "heal drops nothing": (_swap("dropped = dropped + drop(member)", "dropped = dropped + 0"), ENTRIES),
    "heal adopts nothing": (_swap("if not score or score % UNIT ~= units then", "if false then"), LOST),
}


def mutate(name: str) -> None:
    """Change the scripts of this process, as a mistake in their source would."""
    change, changed = MUTATIONS[name][0], 0
    for script in scripts.ALL:
        source = change(script.source)
        changed += source != script.source
        object.__setattr__(script, "source", source)
        object.__setattr__(script, "sha", hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
    assert changed, f"the mutation {name!r} finds nothing to change: its text has moved"


# --- one process -------------------------------------------------------------------------------------------------


def work(
    stage: Stage,
    *,
    url: str,
    words: dict[str, Any],
    seed: int,
    seconds: float,
    lives: float,
    mutation: str = "",
) -> dict[str, int]:
    """Use the cache in every way for *seconds*; return what was done."""
    originals = [(script, script.source, script.sha) for script in scripts.ALL]
    if mutation:
        mutate(mutation)
    try:
        return _work(stage, url, words, seed, seconds, lives)
    finally:
        for script, source, sha in originals:
            object.__setattr__(script, "source", source)
            object.__setattr__(script, "sha", sha)


def _work(
    stage: Stage, url: str, words: dict[str, Any], seed: int, seconds: float, lives: float
) -> dict[str, int]:
    rng, done, blob = random.Random(seed), Counter[str](), os.urandom(LARGEST)
    cache, stranger = Cache(url, namespace=NAMESPACE, deadline=5.0, **words), redis.Redis.from_url(url)
    cache.lookup("connect")
    stage.together(PROCESSES)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        request, dice = int(rng.paretovariate(0.6) * 50 % REQUESTS), rng.random()
        if dice < 0.45:
            size = int(rng.lognormvariate(7.3, 1.1)) % LARGEST + 1
            ttl = rng.choice([0.04, 0.15, 0.5, 2.0, 6.0]) * rng.uniform(0.5, 1.5) * lives
            done["stored" if cache.store(request, blob[:size], ttl=max(ttl, 0.02)) else "refused"] += 1
        elif dice < 0.90:
            done["misses" if cache.lookup(request) is None else "hits"] += 1
        elif dice < 0.93:
            done["many"] += len(cache.get_many([request + n for n in range(20)]))
        elif dice < 0.95:
            done["computed"] += len(cache.get_or_compute(request, lambda: blob[:100], ttl=0.5 * lives)) > 0
        elif dice < 0.975:
            key = cache.explain(request).key
            done["deleted"] += stranger.delete(key) if key else 0
        elif dice < 0.985:
            done["invalidated"] += cache.invalidate(request)
        elif dice < 0.995:
            done["usage"] += cache.usage().known
        elif dice < 0.9951:
            done["bumped"] += cache.bump() > 0
        else:
            lease = cache.begin(request)
            if hasattr(lease, "finish"):
                lease.finish(blob[:1000], ttl=0.5 * lives)
    stats = cache.stats()
    done.update({name: getattr(stats, name) for name in ("healed", "evicted", "expired", "backend_errors")})
    cache.close()
    stranger.close()
    return dict(done)


# --- the audit ---------------------------------------------------------------------------------------------------


@dataclass
class Findings:
    """What an audit found; *problems* is empty if the books kept their promise."""

    scenario: Scenario
    audits: int = 0
    left: int = 0  # entries, when the processes had finished
    differing: int = 0
    apart: int = 0
    most_entries: int = 0
    most_bytes: int = 0
    evicted_by_server: int = 0
    done: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        words = self.scenario.words
        return (
            f"{self.scenario.title}: {self.audits} atomic audits, counted != summed in {self.differing}, "
            f"l and x apart in {self.apart}; most entries {self.most_entries} (limit {words['max_entries']}), "
            f"most bytes {self.most_bytes} (limit {words['max_bytes']}); evicted by the server "
            f"{self.evicted_by_server}; {self.left} entries at the end; {self.done}; {'; '.join(self.problems) or 'ok'}"
        )


def audit(
    crew: Crew,
    server: Server,
    scenario: Scenario,
    seconds: float,
    mutation: str = "",
    lives: float | None = None,
) -> Findings:
    """
    Run *scenario* on *server*, which is the audit's alone, with the processes of *crew*.

    *lives* scales the lifetimes, 9 s at most: short runs have short ones, so that as much expires in them.
    """
    lives = min(1.0, seconds / 18) if lives is None else lives
    found = Findings(scenario)
    client = redis.Redis.from_url(server.url)
    client.flushall()
    client.config_set("maxmemory-policy", scenario.policy)
    client.config_set("maxmemory", scenario.maxmemory)
    client.config_resetstat()
    auditor = Auditor(client, NAMESPACE)
    members = crew.hire(PROCESSES)
    for seed, member in enumerate(members):
        words = {"seed": seed, "seconds": seconds, "lives": lives, "mutation": mutation}
        member.start(work, url=server.url, words=scenario.words, **words)
    _watch(found, auditor, members, scenario, seconds)
    totals = Counter[str]()
    for member in members:
        done = member.result(seconds + 60)
        for name in (
            "healed",
            "evicted",
            "expired",
            "backend_errors",
        ):  # the fleet's: the last one knows most
            totals[name] = max(totals[name], done.pop(name))
        totals.update(done)
    found.done = dict(totals)
    found.evicted_by_server = client.info("stats")["evicted_keys"]
    client.config_set("maxmemory", 0)
    client.config_set("maxmemory-policy", "noeviction")
    originals = [(script, script.source, script.sha) for script in scripts.ALL]
    try:
        if mutation:
            mutate(mutation)
        _judge(found, auditor, server.url, seconds)
    finally:
        for script, source, sha in originals:
            object.__setattr__(script, "source", source)
            object.__setattr__(script, "sha", sha)
        client.close()
    return found


def _watch(found: Findings, auditor: Auditor, members: list[Any], scenario: Scenario, seconds: float) -> None:
    """Audit until the processes are through; lose what the scenario says."""
    rng, end, lost = random.Random(9), time.monotonic() + seconds + 60, time.monotonic()
    while not all(member.pipe.poll() for member in members) and time.monotonic() < end:
        books = auditor.books()
        found.audits += 1
        found.differing += books.counted != books.summed
        found.apart += bool(books.only_x or books.only_l)
        found.most_entries = max(found.most_entries, books.in_x)
        found.most_bytes = max(found.most_bytes, books.counted * UNIT)
        if scenario.lose and time.monotonic() - lost > 0.2:
            lost = time.monotonic()
            auditor.client.delete(getattr(auditor.names, rng.choice(scenario.lose)))
        time.sleep(0.02)


def _judge(found: Findings, auditor: Auditor, url: str, seconds: float) -> None:
    """Hold what was seen, what is left after healing, and what is left in the end, against the promises."""
    scenario, problems = found.scenario, found.problems
    words = scenario.words
    if found.audits < seconds * 5:
        problems.append(f"only {found.audits} audits")
    if found.differing:
        problems.append(f"counted != summed in {found.differing} audits")
    if found.apart and scenario.exact:
        problems.append(f"l and x apart in {found.apart} audits")
    # Where books are lost, entries are adopted again before the next store makes room.
    if found.most_entries > words["max_entries"] + PROCESSES and not scenario.lose:
        problems.append(f"{found.most_entries} entries")
    if found.most_bytes > words["max_bytes"] + PROCESSES * (LARGEST + OVERHEAD + UNIT):
        problems.append(f"{found.most_bytes} bytes")
    if scenario.exact and (unrecorded := auditor.entries().unrecorded):
        problems.append(f"before healing: {unrecorded} entries in no book")
    found.left = auditor.books().in_x
    _spoil(auditor, scenario)
    with Cache(url, namespace=NAMESPACE, deadline=5.0, **words) as cache:
        if not problems:
            _heal(cache)
            _settle(cache, problems, "after healing", lambda: _healed(auditor), 0.0)
        if not problems:
            _settle(cache, problems, "when all has expired", lambda: _empty(auditor), 12.0)


def _spoil(auditor: Auditor, scenario: Scenario) -> None:
    """Be a stranger once more, so that there is something to heal in every run: take ten entries, and a book."""
    client, names = auditor.client, auditor.names
    keys = sorted(client.scan_iter(match=names.e + b"*", count=1000), key=client.pttl)
    client.delete(*[key for key in keys if client.strlen(key) > 48][-10:] or [b"nothing"])
    if "x" in scenario.lose:
        client.delete(names.x)


def _heal(cache: Cache) -> None:
    """Ask once for everything that may be left, as an application would; then sample the books."""
    for start in range(0, REQUESTS, 200):
        for request in range(start, start + 200):
            cache.lookup(request)
        cache.store("heal", "now", ttl=0.5)
    for _ in range(30):  # a third of what is wrong is found in each
        cache.usage()


def _settle(cache: Cache, problems: list[str], when: str, wrong: Callable[[], str], seconds: float) -> None:
    """Note what is still wrong after *seconds*; a few looks more, for what expires between two of them."""
    end, looks = time.monotonic() + seconds, 0
    while (told := wrong()) and (time.monotonic() < end or looks < 5):
        looks += 1
        cache.usage()
    if told:
        problems.append(f"{when}: {told}")


def _healed(auditor: Auditor) -> str:
    books, entries = auditor.books(), auditor.entries()
    sound = books.counted == books.summed and not books.only_x and not books.only_l
    # An entry may expire between the two looks: seconds in the books, milliseconds in Redis.  It is asked for again.
    return "" if sound and entries == Entries(dead=0, unrecorded=0, wrong=0) else f"{books}, {entries}"


def _empty(auditor: Auditor) -> str:
    books = auditor.books()
    return "" if (books.counted, books.in_x, books.in_l) == (0, 0, 0) else f"{books}"


def main() -> None:
    """Print what every scenario finds; leave with 1 if any found a problem."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    name = sys.argv[2] if len(sys.argv) > 2 else "valkey"
    crew, sound = Crew(), True
    try:
        for scenario in ALL:
            with Server(promised()[name], name=name) as server:
                found = audit(crew, server, scenario, seconds)
            print(f"{name}: {found}", flush=True)
            sound = sound and not found.problems
    finally:
        crew.dismiss()
    sys.exit(not sound)


if __name__ == "__main__":
    main()
