"""
A stream under way, recorded while it is passed on.

The leader appends encoded chunks; followers in the process read from any place and wait for more, threads and the
tasks of any event loop alike.  Nothing here blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import RLock
from typing import Final
from weakref import WeakValueDictionary

#: Seconds after which a consumer who has chunks to go on with reads what was published meanwhile all the same: it
#: goes some time after the stream's end, and consumers may take theirs.
READ_AHEAD_S: Final = 1.0


class Tape:
    """The chunks of one running stream, in order, and how it ended."""

    __slots__ = (
        "__weakref__",
        "_followers",
        "_lock",
        "_waiting",
        "chunks",
        "complete",
        "ended",
        "error",
        "size",
    )

    def __init__(self) -> None:
        self._lock = RLock()  # re-entrant: the garbage collector may end an abandoned stream at any time
        self._waiting: list[Future[None]] = []
        self._followers = 0
        self.chunks: list[bytes] = []
        self.size = 0
        self.ended = False
        #: Whether the producer came to its end: only then is what was recorded an answer.
        self.complete = False
        self.error: Exception | None = None

    def append(self, chunk: bytes) -> None:
        """Record a chunk and wake who waits for it."""
        with self._lock:
            self.chunks.append(chunk)
            self.size += len(chunk)
        self._wake()

    def end(self, *, complete: bool = False, error: Exception | None = None) -> None:
        """Record how the stream ended; the first word counts."""
        with self._lock:
            if self.ended:
                return
            self.complete, self.error, self.ended = complete, error, True
        self._wake()

    @property
    def followed(self) -> bool:
        """Whether somebody of this process reads along."""
        return self._followers > 0

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Count as somebody who reads along while the code inside runs."""
        with self._lock:
            self._followers += 1
        try:
            yield
        finally:
            with self._lock:
                self._followers -= 1

    def more(self, count: int) -> Future[None]:
        """Return a future that is done when there are more than *count* chunks, or the stream has ended."""
        waiting: Future[None] = Future()
        with self._lock:
            if len(self.chunks) <= count and not self.ended:
                self._waiting.append(waiting)
                return waiting
        waiting.set_result(None)
        return waiting

    def _wake(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)


class Relay(Tape):
    """
    A stream that is led elsewhere, as far as this process has read it; those who follow it here read in turns.

    Who needs more than there is, while nobody is reading, reads for all: there is one reader a process, and none that
    the others depend on for longer than one read.
    """

    __slots__ = ("_read", "_reading", "stored")

    def __init__(self) -> None:
        super().__init__()
        self._reading = False
        self._read = 0.0
        #: The whole stream, if it was stored before all of it was read chunk by chunk.
        self.stored: list[bytes] | None = None

    def turn(self, count: int, now: float) -> Future[None] | None:
        """
        Return None if the caller is to read now, and then to call ``give``; else what is done when to look again.

        *now*: of a clock that counts seconds.
        """
        waiting: Future[None] = Future()
        with self._lock:
            if len(self.chunks) <= count and not self.ended:
                if not self._reading:
                    self._reading, self._read = True, now
                    return None
                self._waiting.append(waiting)
                return waiting
        waiting.set_result(None)
        return waiting

    def lags(self, now: float) -> bool:
        """Return whether the caller is to read ahead now, and then to call ``give``: nobody has read for a while."""
        if now - self._read < READ_AHEAD_S or self.ended:  # most of the time
            return False
        with self._lock:
            if self._reading or self.ended:
                return False
            self._reading, self._read = True, now
            return True

    def give(self, now: float) -> None:
        """Let another one read."""
        with self._lock:
            self._reading, self._read = False, now
        self._wake()


class Relays:
    """The relays of this process, by digest and fence; each lives as long as somebody follows it."""

    __slots__ = ("_lock", "_relays")

    def __init__(self) -> None:
        self._lock = RLock()
        self._relays: WeakValueDictionary[tuple[bytes, int], Relay] = WeakValueDictionary()

    def of(self, digest: bytes, fence: int) -> Relay:
        """Return the relay of a stream."""
        with self._lock:
            relay = self._relays.get((digest, fence))
            if relay is None:
                relay = self._relays[digest, fence] = Relay()
            return relay
