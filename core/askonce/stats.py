"""
What happened, counted.

Counters move in the process and reach Redis within about a second, so that ``stats()`` speaks for the whole fleet.
Each field of ``Stats`` states the rule by which it moves.  Counters are not lost by a slow Redis, but those of the
last second are lost with a killed process, and an increment whose reply was lost is not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from threading import RLock
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """
    Counters of a namespace, since it exists, over all processes.

    While Redis is away they are those that this process has not yet been able to add, and ``fleet`` is False.
    """

    hits: int = 0  #: a fresh entry was served
    near_hits: int = (
        0  #: a near copy was read, and Redis not asked (what was served of it is counted as ever)
    )
    stale: int = 0  #: a stale entry was served while it is refreshed
    stale_if_error: int = 0  #: a stale entry was served because computing failed
    misses: int = 0  #: a request was looked up and nothing servable was found
    computed: int = 0  #: the caller's function returned, or a lease was finished with a value
    coalesced: int = 0  #: a caller was served with what another one computed at that time
    bypassed: int = 0  #: a call was made without the cache; ``bypass_reasons`` says why
    stored: int = 0  #: an entry was written
    replaced: int = 0  #: ... in place of another one (counted in ``stored`` too)
    rejected: int = 0  #: admission refused an answer; ``rejection_reasons`` says why
    uncacheable: int = 0  #: a value could not be encoded
    too_large: int = 0  #: an entry was larger than the bound
    fenced_off: int = 0  #: a late store was refused: a later leader, or an invalidation, was faster
    outdated: int = 0  #: a store was refused: the generation had moved
    evicted: int = 0  #: an entry was removed for room
    expired: int = 0  #: an expired entry left the books
    invalidated: int = 0  #: an entry was removed by request
    healed: int = 0  #: the books of an entry were corrected (deleted or evicted by somebody else)
    corrupt: int = 0  #: something stored was not readable and taken for a miss
    refresh_errors: int = 0  #: the caller's function failed behind a stale answer
    backend_errors: int = 0  #: Redis did not answer in time, or with an error
    bypass_reasons: Mapping[str, int] = field(default_factory=dict)
    rejection_reasons: Mapping[str, int] = field(default_factory=dict)
    fleet: bool = True

    @property
    def hit_rate(self) -> float:
        """The part of all look-ups that was served from the cache, 0.0 to 1.0; 0.0 before the first."""
        served = self.hits + self.stale + self.stale_if_error
        asked = self.hits + self.stale + self.misses
        return served / asked if asked else 0.0


_NAMES = frozenset(f.name for f in fields(Stats)) - {"bypass_reasons", "rejection_reasons", "fleet"}


def from_counters(counters: Mapping[str, int], *, fleet: bool) -> Stats:
    """Return the Stats in a mapping of counters; names that this version does not know are passed over."""
    known: dict[str, Any] = {name: count for name, count in counters.items() if name in _NAMES}
    reasons: dict[str, dict[str, int]] = {"bypassed": {}, "rejected": {}}
    for name, count in counters.items():
        word, _, reason = name.partition(":")
        if reason and word in reasons:
            reasons[word][reason] = count
    return Stats(
        **known, bypass_reasons=reasons["bypassed"], rejection_reasons=reasons["rejected"], fleet=fleet
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """
    What the books hold now.

    ``bytes`` counts 64-byte units of stored length plus overhead, which is what ``max_bytes`` bounds.  ``known`` is
    False while Redis cannot be asked: then both are 0.
    """

    entries: int
    bytes: int
    max_entries: int
    max_bytes: int
    known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryInfo:
    """
    One entry, as ``entries()`` lists it.

    ``digest`` is the fingerprint of its request, ``label`` what it was stored with, ``age`` and ``ttl`` (freshness
    left, 0.0 if it is stale) are seconds, ``bytes`` its stored length.
    """

    digest: str
    label: str | None
    age: float
    ttl: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Event:
    """
    Something an operator wants to hear of, once each time: given to ``Cache(on_event=)`` and logged as ``askonce``.

    ``kind``: breaker-opened, breaker-closed; disagreement: the namespace is laid out otherwise than this cache was made,
    which therefore does not use it; eviction: Redis may evict the books themselves.  ``server``: which, without credentials.  ``pause``: seconds for which nobody asks it.
    """

    kind: str
    server: str
    reason: str
    pause: float


class Counters:
    """Counters of this process that have not reached Redis yet."""

    __slots__ = ("_lock", "_pending")

    def __init__(self) -> None:
        self._lock = RLock()  # re-entrant: the garbage collector may count at any time
        self._pending: dict[str, int] = {}

    def add(self, name: str, count: int = 1) -> None:
        """Move a counter."""
        if count:
            with self._lock:
                self._pending[name] = self._pending.get(name, 0) + count

    def add_reason(self, name: str, reason: str) -> None:
        """Move a counter and the one of its reason."""
        self.add(name)
        self.add(f"{name}:{reason}")

    def take(self) -> dict[str, int]:
        """Return what is pending and start anew."""
        with self._lock:
            taken, self._pending = self._pending, {}
        return taken

    def give_back(self, counts: Mapping[str, int]) -> None:
        """Add counts that were taken and surely did not reach Redis."""
        for name, count in counts.items():
            self.add(name, count)

    def peek(self) -> dict[str, int]:
        """Return what is pending, and leave it."""
        with self._lock:
            return dict(self._pending)
