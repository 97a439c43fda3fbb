"""
The near cache: copies in the process of entries that Redis holds.

A copy is served without asking Redis, for as long as nothing can have changed unheard: the push connection is up, no
message has named the entry, ``Near.ttl`` has not passed.  Copies are the stored bytes, so that every hit decodes a
value of its own, and is judged as if Redis had just sent it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import RLock
from typing import Final, NamedTuple

from .entry import Entry
from .keys import DIGEST_LENGTH
from .policy import Duration, Size, seconds, size, whole

_MOST_ENTRIES: Final = 10_000_000
#: What a copy takes beside its bytes: keys, tuple, the dict's own (``sys.getsizeof``, CPython 3.11).
_OVERHEAD: Final = 400
#: Drops that are remembered one by one, to refuse a copy that was read before its drop.
_MOST_DROPS: Final = 4096
#: Between two times that Redis is told what was used here.
_TELL_MS: Final = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """
    Bounds of a near cache: copies, their bytes, and how long one is served without asking Redis.

    ``ttl`` bounds what push cannot tell: an entry that Redis evicted, or that somebody deleted past askonce.
    """

    max_entries: int = 1_000
    max_bytes: Size = "64mb"
    ttl: Duration = 30.0

    def __post_init__(self) -> None:
        whole("near max_entries", self.max_entries, _MOST_ENTRIES)
        object.__setattr__(self, "max_bytes", size("near max_bytes", self.max_bytes))
        object.__setattr__(self, "ttl", seconds("near ttl", self.ttl, at_least=0.001))


class _Copy(NamedTuple):
    member: bytes  # of another generation: no copy of what is asked for
    data: bytes
    until: float  # by the server's clock, milliseconds


class NearCache:
    """
    The copies of one namespace in one process, least recently used first; safe to share between threads.

    What is read from Redis may be out of date by the time it arrives: who reads takes a ``mark`` first, and ``keep``
    refuses what was dropped since.
    """

    def __init__(self, bounds: Near) -> None:
        self._max_entries = bounds.max_entries
        self._max_bytes = size("max_bytes", bounds.max_bytes)
        self._ttl_ms = seconds("ttl", bounds.ttl) * 1000
        self._lock = RLock()  # re-entrant: as in stats.Counters
        self._copies: OrderedDict[bytes, _Copy] = OrderedDict()
        self._bytes = 0
        self._open: set[bytes] = set()
        #: Counts what was dropped; the last drops by digest, and the last one that no digest is known of.
        self._moves = 0
        self._drops: dict[bytes, int] = {}
        self._cleared = 0
        self._used: dict[bytes, float] = {}
        self._told = 0.0

    # --- the hit path -----------------------------------------------------------------------------------------

    def get(self, member: bytes, now_ms: float) -> bytes | None:
        """Return the stored bytes of *member*, or None."""
        digest = member[-DIGEST_LENGTH:]
        copy = self._copies.get(digest)
        if copy is None or copy.until <= now_ms or copy.member != member:
            return None
        try:
            self._copies.move_to_end(digest)
        except KeyError:  # dropped this very moment
            return None
        self._used[member] = now_ms
        return copy.data

    @property
    def mark(self) -> int:
        """Where the drops stand: to be taken before Redis is asked for what is to be kept."""
        return self._moves

    def keep(self, channel: bytes, member: bytes, entry: Entry, now_ms: float, mark: int) -> None:
        """Keep a copy of a fresh entry read since *mark*, unless nothing would tell on *channel* if it changes."""
        weight = len(entry.data) + _OVERHEAD
        until = min(entry.fresh_until, now_ms + self._ttl_ms)
        if weight > self._max_bytes or until <= now_ms:
            return
        digest = member[-DIGEST_LENGTH:]
        with self._lock:
            if channel not in self._open or self._cleared > mark or self._drops.get(digest, 0) > mark:
                return
            self._remove(digest)
            self._copies[digest] = _Copy(member, entry.data, until)
            self._bytes += weight
            while self._bytes > self._max_bytes or len(self._copies) > self._max_entries:
                self._remove(next(iter(self._copies)))

    # --- what has changed -------------------------------------------------------------------------------------

    def drop(self, digest: bytes) -> None:
        """Drop the copy of *digest*, and refuse what was read of it before."""
        with self._lock:
            self._moves += 1
            self._drops.pop(digest, None)
            self._drops[digest] = self._moves
            if len(self._drops) > _MOST_DROPS:
                # Forgotten with this one are all that came before it.
                self._cleared = self._drops.pop(next(iter(self._drops)))
            self._remove(digest)

    def clear(self) -> None:
        """Drop all copies, and refuse whatever was read before."""
        with self._lock:
            self._moves += 1
            self._cleared = self._moves
            self._drops.clear()
            self._copies.clear()
            self._bytes = 0

    def _remove(self, digest: bytes) -> None:
        copy = self._copies.pop(digest, None)
        if copy is not None:
            self._bytes -= len(copy.data) + _OVERHEAD

    # --- the push connection (see _wire/listener.py) ------------------------------------------------------------

    def hears(self, channel: bytes) -> bool:
        """Return whether messages arrive on *channel*: while they do not, nothing of its partition is kept."""
        return channel in self._open

    def opened(self, channel: bytes) -> None:
        """Begin: messages arrive from now on."""
        with self._lock:
            self.clear()
            self._open.add(channel)

    def lost(self, channel: bytes) -> None:
        """End: messages may be missed from now on."""
        with self._lock:
            self._open.discard(channel)
            self.clear()

    def heard(self, message: bytes) -> None:
        """Drop what a message names: an entry that was stored or invalidated, or all, as the control word moved."""
        kind = message[:1]
        if kind == b"d":
            self.drop(message[1:])
        elif kind == b"x":
            self.drop(message[1:].partition(b":")[2])
        elif kind == b"c":
            self.clear()

    # --- recency ----------------------------------------------------------------------------------------------

    def is_due(self, now_ms: float) -> bool:
        """Return True once a second: Redis is to be told of what was used here."""
        if now_ms - self._told < _TELL_MS:
            return False
        self._told = now_ms
        return True

    def take_used(self) -> dict[bytes, float]:
        """Return the members that were served since the last time, and when last."""
        taken, self._used = self._used, {}
        return taken

    # --- for tests and reports ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._copies)

    @property
    def weight(self) -> int:
        """What the copies take, in bytes."""
        return self._bytes
