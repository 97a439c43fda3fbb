"""
A stream under way, recorded while it is passed on.

The leader appends encoded chunks; followers in the process read from any place and wait for more, threads and the
tasks of any event loop alike.  Nothing here blocks.
"""

from __future__ import annotations

from concurrent.futures import Future
from threading import RLock


class Tape:
    """The chunks of one running stream, in order, and how it ended."""

    __slots__ = ("_lock", "_waiting", "chunks", "complete", "ended", "error", "size")

    def __init__(self) -> None:
        self._lock = RLock()  # re-entrant: the garbage collector may end an abandoned stream at any time
        self._waiting: list[Future[None]] = []
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
