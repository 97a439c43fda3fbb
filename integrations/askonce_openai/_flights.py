"""
Answers that are coming in, read by threads.  ``_aflights`` is the twin for asyncio; keep them side by side.

The core leads a stream for one consumer a process, and passes it on to other processes.  Here that consumer is a
*flight* with any number of equal readers: whoever needs the next chunk pulls it, the others read what was pulled.  The
reader who began may leave; the last one to leave closes upstream, and in the same moment nobody can join any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from . import wire
from ._call import Call
from ._detached import detached


class Flight:
    """One answer that is coming in, as this process reads it."""

    def __init__(self, table: Flights, key: Hashable | None, call: Call, source: Iterator[Any]) -> None:
        self.call = call
        #: A head: the answer is running.  Rendered: it was there as a whole.  None: not known yet, or it came to nothing.
        self.first: wire.Head | wire.Rendered | None = None
        self.chunks: list[bytes] = []
        self.error: BaseException | None = None
        #: No more is coming; and whether that is because the answer is complete.
        self.done = self.complete = False
        self.readers = 1
        self.key = key
        self._table, self._source = table, source
        self._whole = False  # the core has seen the end
        self._turn = (
            threading.Condition()
        )  # a plain Lock lets the puller barge in again, and starves the others
        self._pulling = False

    def wait(self, seconds: float | None) -> bool:
        """Wait for the beginning, pulling it if nobody does; return whether it came before *seconds* were over."""
        return self._more(lambda: self.first is not None, seconds)

    def more(self, count: int, seconds: float | None) -> bool:
        """Wait for more than *count* chunks, or the end; return whether that came before *seconds* were over."""
        return self._more(lambda: len(self.chunks) > count, seconds)

    def _more(self, there: Callable[[], bool], seconds: float | None) -> bool:
        while True:
            with self._turn:
                while self._pulling and not self.done and not there():
                    if not self._turn.wait(seconds):
                        return False
                if self.done or there():
                    return True
                self._pulling = True
            try:
                self._pull()
            finally:
                with self._turn:
                    self._pulling = False
                    self._turn.notify_all()

    def _pull(self) -> None:
        try:
            item: Any = next(self._source)
            if self.call.over and not self._whole:
                self._end()  # stored before it is passed on: SDKs stop at the last event, and close
            elif isinstance(item, wire.Rendered):
                self._whole = self.done = self.complete = True
        except StopIteration:
            self._whole = self.done = self.complete = True
        except BaseException as error:
            self.error, self.done = error, True
            if not isinstance(error, Exception):
                raise  # an interrupt belongs to this thread
        else:
            self._take(item)
        finally:
            if self.done:
                self._table.remove(self)

    def _take(self, item: Any) -> None:
        if self.first is None:
            self.first = item
        else:
            self.chunks.append(item)

    def _end(self) -> None:
        """Let the core see the end; go on with what upstream sends behind it."""
        for _ in self._source:
            pass
        self._whole, self._source = True, self.call.rest()

    def leave(self) -> None:
        """Have one reader less.  Called by the garbage collector too: it takes re-entrant locks, and asks nothing of Redis."""
        with self._table.lock:
            self.readers -= 1
            if self.readers:
                return
            self._table.remove(self)  # in the same breath: nobody may join what nobody reads
        if self._whole or self.done:
            if not self.call.refused:
                self.call.close()
        else:
            self.call.left = True
            self._table.leaving(self)
            detached.put(self._conclude)

    def _conclude(self) -> None:
        """Store what came, if it is an answer (the caller may have stopped at its last word), else give it up."""
        with self._turn:  # a reader that another thread has closed may be pulling yet
            self._turn.wait_for(lambda: not self._pulling)
        try:
            if isinstance(self.first, wire.Head) and self.call.is_whole(self.first, self.chunks):
                self.call.stop = True
                for _ in self._source:
                    pass
            else:
                close = getattr(self._source, "close", None)
                if close is not None:
                    close()  # the core reads on if somebody follows, else it closes what produces
        finally:
            self.done = True
            self._table.left(self)


class Flights:
    """The answers that are coming in, of one cache.  They are referred to here, so that none is collected under way."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # re-entrant: a collection may close a reader at any time
        self._shared: dict[Hashable, Flight] = {}
        self._others: set[Flight] = set()

    def join(self, key: Hashable | None, begin: Callable[[Hashable | None], Flight]) -> tuple[Flight, bool]:
        """Return the flight of *key*, and whether the caller has just begun it; with no key it is not shared."""
        detached.start()
        with self.lock:
            flight = None if key is None else self._shared.get(key)
            if flight is not None and not flight.done:
                flight.readers += 1
                if self._shared.get(key) is flight:  # or a collection has closed its last reader meanwhile
                    return flight, False
            flight = begin(key)
            if key is None:
                self._others.add(flight)
            else:
                self._shared[key] = flight
            return flight, True

    def remove(self, flight: Flight) -> None:
        """Let nobody join *flight* any more."""
        with self.lock:
            if flight.key is not None and self._shared.get(flight.key) is flight:
                del self._shared[flight.key]
            self._others.discard(flight)

    def leaving(self, flight: Flight) -> None:
        """Refer to *flight* until it is concluded."""
        with self.lock:
            self._others.add(flight)

    def left(self, flight: Flight) -> None:
        """Forget *flight*."""
        with self.lock:
            self._others.discard(flight)

    def __len__(self) -> int:
        return len(self._shared) + len(self._others)


class FlightReader:
    """One reader of a flight."""

    def __init__(self, flight: Flight, timeout: float | None, *, own: bool) -> None:
        self._flight, self._timeout, self._own = flight, timeout, own
        self._count = 0
        self._closed = False

    def chunks(self) -> Iterator[bytes]:
        """Yield what comes.  Raises the library's error, as upstream's own silence or failure would."""
        flight, lib = self._flight, self._flight.call.library.module
        while True:
            while self._count < len(flight.chunks):
                self._count += 1
                yield flight.chunks[self._count - 1]
            if flight.done:
                break
            if not flight.more(self._count, self._timeout):
                raise lib.ReadTimeout("the answer, which another caller reads too, has stalled")
        if self._own and flight.error is not None and flight.error is flight.call.error:
            raise flight.error
        if not flight.complete:
            raise lib.ReadError("the answer, which another caller was reading too, broke off")

    def close(self) -> None:
        """Read no more; a second time changes nothing."""
        if not self._closed:
            self._closed = True
            self._flight.leave()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()
