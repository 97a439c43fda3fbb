"""What the programs of one process know: partitions and their control words, flights, counters, limits."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from .._flights import Flights, Key
from .._tapes import Relays
from ..entry import FORMAT, OVERHEAD
from ..keys import Names
from ..near import NearCache
from ..policy import Policy
from ..stats import Counters

T = TypeVar("T")

_WORD = re.compile(rb"(\d{1,10}):(\d{1,15})")
_LARGEST_GENERATION = 0xFFFFFFFF  # four bytes of the header

#: How long what has expired may stay in the books while nothing is near a limit.
_SWEEP_MS: Final = 1_000

#: Members whose books look wrong are healed by the next store; more than this wait for the sample of ``heal``.
_MOST_SUSPECTS = 256

#: A use is told to Redis unless this process told it of another one of the same entry within so many milliseconds...
TOUCH_MS: Final = 1_000.0
#: ... or, while entries are evicted soon after their last use, within this part of the time between: the order of
#: eviction stays that of use.
_TOUCH_PART: Final = 1 / 16
#: Members whose last touch is remembered; they are forgotten together.
_MOST_TOUCHED: Final = 4_096

#: Requests in one round trip: bounded, so that one deadline is enough for it.
AT_ONCE: Final = 128


#: In place of a partition's index: what all partitions share.
META: Final = -1


class Word(NamedTuple):
    """A control word: replaced as a whole, so that threads never see half of one."""

    raw: bytes
    generation: int
    sequence: int
    prefix: bytes  # of members: "<generation>:"


def parse_word(raw: bytes) -> Word | None:
    """Return the control word in *raw*, or None if it is none."""
    match = _WORD.fullmatch(raw)
    if match is None or int(match[1]) > _LARGEST_GENERATION:
        return None
    return Word(raw, int(match[1]), int(match[2]), match[1] + b":")


@dataclass(slots=True, eq=False)
class Partition:
    """One hash tag of a namespace, as this process knows it."""

    index: int
    names: Names
    word: Word | None = None
    #: The greatest generation ever seen: Redis must never go back behind it.
    newest: int = 0
    newest_raw: bytes = b""
    publish: bytes = b"PUBLISH"
    #: Eviction candidates that a store or a trim has named: member, score, member, score ...
    victims: list[bytes] = field(default_factory=list)
    #: A store left the partition over a limit; somebody here makes room already.
    over: bool = False
    making_room: bool = False
    #: Members whose touch disagreed with their entry.
    suspects: set[bytes] = field(default_factory=set)
    #: Tag hash (hex) -> sequence of its last invalidation, as far as ``tags_until``; below the floor all are refused.
    tags: dict[bytes, int] = field(default_factory=dict)
    tags_until: int = 0
    tags_floor: int = 0
    #: Members whose use Redis was told of since ``touched_ms``; it is not told again before ``touch_ms`` have passed.
    touched: set[bytes] = field(default_factory=set)
    touched_ms: float = 0.0
    touch_ms: float = TOUCH_MS
    #: Uses not yet counted in Redis, towards ``Policy.hot``.
    uses: dict[bytes, int] = field(default_factory=dict)
    #: When Redis last said that nothing is left to sweep.
    swept_ms: int = 0
    #: When a sample of the books was last compared with its entries.
    healed_ms: int = 0
    #: When entries were last shed because Redis was out of memory.
    shed_ms: int = 0

    def note(self, word: Word) -> None:
        """Remember the greatest generation seen."""
        if word.generation >= self.newest:
            self.newest, self.newest_raw = word.generation, word.raw

    def touched_lately(self, now_ms: float) -> set[bytes]:
        """Return the members of whose use Redis need not be told now."""
        if not 0 <= now_ms - self.touched_ms < self.touch_ms or len(self.touched) >= _MOST_TOUCHED:
            self.touched, self.touched_ms = set(), now_ms
        return self.touched

    def note_pressure(self, victims: list[bytes], now_ms: int) -> None:
        """Learn from the victims that a script has named how soon after their last use entries are evicted."""
        self.touch_ms = TOUCH_MS
        if victims:
            self.touch_ms = min(TOUCH_MS, max(0.0, now_ms - float(victims[1])) * _TOUCH_PART)

    def is_to_sweep(self, now_ms: int) -> bool:
        """Return whether the store under way is to sweep what has expired: about once a second."""
        return not 0 <= now_ms - self.swept_ms < _SWEEP_MS

    def suspect(self, member: bytes) -> None:
        """Note a member whose books need healing."""
        if len(self.suspects) < _MOST_SUSPECTS:
            self.suspects.add(member)

    def take_suspects(self) -> set[bytes]:
        """Return the suspects and start anew."""
        taken, self.suspects = self.suspects, set()
        return taken

    def take_victims(self, most: int) -> list[bytes]:
        """Return at most *most* of the named victims, the first to go; no other store need pass them again."""
        taken, self.victims = self.victims[: 2 * most], self.victims[2 * most :]
        return taken


@dataclass(slots=True, eq=False)
class State:
    """What all programs of a namespace share in this process."""

    partitions: Sequence[Partition]
    flights: Flights
    counters: Counters
    max_entries: int  # of one partition
    max_units: int  # of one partition
    meta: bytes  # the name of the hash in which the layout of the namespace is fixed
    strict: bool = False
    near: NearCache | None = None
    #: Whether the layout of this process was found to be the namespace's.
    agreed: bool = False
    #: Whether it was looked at how Redis evicts.
    looked: bool = False
    #: What was found instead, for people.
    disagreement: str = ""
    #: Streams led elsewhere that are followed here.
    relays: Relays = field(default_factory=Relays)
    #: Refreshes that failed in a row, by digest: each doubles the pause before the next.
    refresh_failures: dict[bytes, int] = field(default_factory=dict)

    @property
    def layout(self) -> dict[str, int]:
        """What all processes that use the namespace must have alike."""
        return {"partitions": len(self.partitions), "overhead": OVERHEAD, "format": FORMAT}

    def drop_near(self, digests: Iterable[bytes]) -> None:
        """Drop the near copies of what this process has changed: its own callers do not wait for the message."""
        if self.near is not None:
            for digest in digests:
                self.near.drop(digest)

    def clear_near(self) -> None:
        """Drop all near copies."""
        if self.near is not None:
            self.near.clear()

    def partition_of(self, digest: bytes) -> Partition:
        """Return the partition of a digest."""
        count = len(self.partitions)
        return self.partitions[0] if count == 1 else self.partitions[zlib.crc32(digest) % count]


@dataclass(slots=True, kw_only=True)
class Ask:
    """
    One request, with everything that the caller, the block around it and the cache decided about it.

    Nothing changes it; ``frozen`` would take longer to say so than a fingerprint takes.
    """

    partition: Partition
    digest: bytes
    policy: Policy
    token: bytes
    draw: float  # 0.0 to 1.0: this entry's share of the jitter
    ttl_ms: int | None = None
    max_age: float | None = None
    tags: tuple[bytes, ...] = ()
    label: bytes | None = None
    read: bool = True
    write: bool = True
    only_if_cached: bool = False
    waits: bool = True
    refreshes: bool = False  # behind a caller: never waits, and keeps away after a failure
    share_errors: bool = True
    index: int = 0  # the place among the requests of one call
    home: object = None  # what must not block for this flight, see _flights.Flight
    now_ms: int = 0  # by a clock that follows the server's
    leading: frozenset[bytes] = frozenset()  # digests whose computation this call is part of

    @property
    def flight_key(self) -> Key:
        """The key of this request's flight."""
        word = self.partition.word
        return (word.raw if word else b"", self.digest)


def by_partition(asks: Iterable[Ask]) -> list[tuple[Partition, list[Ask]]]:
    """Return the partitions that *asks* belong to, each with its own."""
    groups: dict[int, tuple[Partition, list[Ask]]] = {}
    for wanted in asks:
        groups.setdefault(wanted.partition.index, (wanted.partition, []))[1].append(wanted)
    return list(groups.values())


def together(asks: Sequence[Ask]) -> Iterator[list[Ask]]:
    """Return *asks* in lists of at most what one round trip takes, each of as few partitions as can be."""
    return chunks(sorted(asks, key=lambda wanted: wanted.partition.index))


def chunks(items: Sequence[T], size: int = AT_ONCE) -> Iterator[list[T]]:
    """Return *items* in lists of at most *size*, so many as one round trip takes."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
