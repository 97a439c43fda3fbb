"""
Single-flight within one process.

The first caller to ask for a key leads; the others join its flight and share what it lands.  A flight holds a
``concurrent.futures.Future``, which a thread can block on and an event loop can await, so threads and the tasks of
any number of loops share one.  Nothing here blocks.
"""

from __future__ import annotations

from concurrent.futures import Future
from threading import RLock
from typing import Any, NamedTuple, TypeAlias

from ._tapes import Tape

#: The control word that was current at boarding, and the digest: who asks after an invalidation boards anew.
Key: TypeAlias = tuple[bytes, bytes]


class Landed(NamedTuple):
    """What a leader hands to its followers: the encoded value, or, where it cannot be encoded, the value itself."""

    flags: int
    payload: bytes | None
    value: Any
    ttl: float
    fence: int = 0  # of the lease it was computed under; 0 without one


class Flight:
    """One computation under way.  ``home`` is what must not block for it: the leader's event loop, if any."""

    __slots__ = ("elsewhere", "fence", "future", "home", "key", "tape")

    def __init__(self, key: Key, home: object) -> None:
        self.key = key
        self.home = home
        self.tape = Tape()  # of what the leader passes on while it computes, if it does
        self.fence = 0  # of the leader's lease, once it has one
        self.elsewhere = (
            0  # the fence of the lease that its leader found in other hands: of a stream to be followed
        )
        #: Landed; None if the leader gave up, so that a follower leads next; or the leader's error.
        self.future: Future[Landed | None] = Future()


class Flights:
    """The flights now in the air."""

    __slots__ = ("_flights", "_lock")

    def __init__(self) -> None:
        self._lock = RLock()  # re-entrant: the garbage collector may land an abandoned flight at any time
        self._flights: dict[Key, Flight] = {}

    def board(self, key: Key, home: object = None, least: int = 0) -> tuple[Flight, bool]:
        """
        Return the key's flight, and whether the caller is to lead it.

        A flight whose fence is below *least* began before an invalidation: nobody joins it any more.
        """
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None and not 0 < flight.fence < least:
                return flight, False
            flight = self._flights[key] = Flight(key, home)
            return flight, True

    def land(self, flight: Flight, landed: Landed | None = None, error: Exception | None = None) -> None:
        """Hand the leader's result to all who joined; once, later calls change nothing."""
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
        flight.tape.end(complete=landed is not None, error=error)
        if flight.future.done():
            return
        if error is not None:
            flight.future.set_exception(error)
        else:
            flight.future.set_result(landed)

    def ground(self, digest: bytes) -> None:
        """Let nobody join the flights of *digest* any more: what they compute was invalidated."""
        with self._lock:
            for key in [key for key in self._flights if key[1] == digest]:
                del self._flights[key]

    def __len__(self) -> int:
        return len(self._flights)
