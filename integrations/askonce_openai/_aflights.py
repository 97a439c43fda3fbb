"""
Answers that are coming in, read by tasks of one event loop.  ``_flights`` is the twin for threads; keep them side by side.

One task, the *pump*, reads for all: a reader may be cancelled while it waits, upstream's body may not.  Flights are not
shared between loops here (an event belongs to one); the core passes the chunks on from one loop to another.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Hashable
from typing import Any, Final

from . import wire
from ._call import AsyncCall

#: How long a reader that leaves lets the pump look for the end of the body, so that the connection can be used again.
_DRAIN_S: Final = 0.1
#: How long it waits for what was received to be stored.
_STORE_S: Final = 1.0


class AsyncFlight:
    """One answer that is coming in, as this loop reads it."""

    def __init__(
        self, table: AsyncFlights, key: Hashable | None, call: AsyncCall, source: AsyncIterator[Any]
    ) -> None:
        self.call = call
        #: A head: the answer is running.  Rendered: it was there as a whole.  None: not known yet, or it came to nothing.
        self.first: wire.Head | wire.Rendered | None = None
        self.chunks: list[bytes] = []
        self.error: BaseException | None = None
        #: No more is coming; and whether that is because the answer is complete.
        self.done = self.complete = False
        self.readers = 1
        self.key = key
        self.loop = asyncio.get_running_loop()
        self._table, self._source = table, source
        self._whole = False  # the core has seen the end
        self._waiting: list[asyncio.Future[None]] = []
        self._pump = self.loop.create_task(self._run())

    async def wait(self, seconds: float | None) -> bool:
        """Wait for the beginning; return whether it came before *seconds* were over."""
        return await self._more(lambda: self.first is not None, seconds)

    async def more(self, count: int, seconds: float | None) -> bool:
        """Wait for more than *count* chunks, or the end; return whether that came before *seconds* were over."""
        return await self._more(lambda: len(self.chunks) > count, seconds)

    async def _more(self, there: Callable[[], bool], seconds: float | None) -> bool:
        while not self.done and not there():
            waiting = self.loop.create_future()
            self._waiting.append(waiting)
            # Not wait_for: before Python 3.12 it swallows a cancellation that comes together with the result.
            done, _ = await asyncio.wait({waiting}, timeout=seconds)
            if not done:
                return False
        return True

    def _news(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)

    async def _run(self) -> None:
        try:
            async for item in self._source:
                if self.call.left and not self.call.over:
                    break  # the core reads on if somebody follows, else it closes what produces
                if self.call.over:
                    await self._end()  # stored before it is passed on: SDKs stop at the last event, and close
                self._take(item)
            else:
                self._whole = self.complete = True
            if self.call.over:
                async for chunk in self.call.rest():
                    self._take(chunk)
        except BaseException as error:
            self.error, self.complete = error, False
            if not isinstance(error, Exception) and not isinstance(error, asyncio.CancelledError):
                raise  # an interrupt belongs to the loop
        finally:
            self.done = True
            self._table.remove(self)
            self._news()
            close = getattr(self._source, "aclose", None)
            if close is not None:
                with contextlib.suppress(Exception):
                    await close()
            if not self.call.refused and not self.call.left:
                await self.call.close()

    async def _end(self) -> None:
        """Let the core see the end."""
        async for _ in self._source:
            pass
        self._whole = True

    def _take(self, item: Any) -> None:
        if self.first is None:
            self.first = item
        else:
            self.chunks.append(item)
        self._news()

    def leave(self) -> bool:
        """Have one reader less; return whether it was the last one, and the pump has something to conclude."""
        self.readers -= 1
        if self.readers:
            return False
        self._table.remove(self)  # in the same breath: nobody may join what nobody reads
        return not self._pump.done()

    async def conclude(self) -> None:
        """Store what came, if it is an answer (the caller may have stopped at its last word), else give it up."""
        if self._whole:
            await asyncio.wait({self._pump}, timeout=_DRAIN_S)
            self._pump.cancel()
        else:
            self.give_up()
            await asyncio.wait({self._pump}, timeout=_STORE_S)

    def give_up(self) -> None:
        """Have the pump end."""
        if not self._whole:
            self.call.left = True
            self.call.stop = isinstance(self.first, wire.Head) and self.call.is_whole(self.first, self.chunks)
        self._pump.cancel()


class AsyncFlights:
    """The answers that are coming in, of one cache.  The loops refer to their pumps, the pumps to their flights."""

    def __init__(self) -> None:
        self._shared: dict[Hashable, AsyncFlight] = {}
        self._running: set[AsyncFlight] = set()

    def join(
        self, key: Hashable | None, begin: Callable[[Hashable | None], AsyncFlight]
    ) -> tuple[AsyncFlight, bool]:
        """Return the flight of *key*, and whether the caller has just begun it; with no key it is not shared."""
        flight = None if key is None else self._shared.get(key)
        if flight is not None and not flight.done:
            flight.readers += 1
            return flight, False
        flight = begin(key)
        self._running.add(flight)
        if key is not None:
            self._shared[key] = flight
        return flight, True

    def remove(self, flight: AsyncFlight) -> None:
        """Let nobody join *flight* any more."""
        if flight.key is not None and self._shared.get(flight.key) is flight:
            del self._shared[flight.key]
        if flight.done:
            self._running.discard(flight)

    def __len__(self) -> int:
        return len(self._running)


class AsyncFlightReader:
    """One reader of a flight."""

    def __init__(self, flight: AsyncFlight, timeout: float | None, *, own: bool) -> None:
        self._flight, self._timeout, self._own = flight, timeout, own
        self._count = 0
        self._closed = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield what comes.  Raises the library's error, as upstream's own silence or failure would."""
        flight, lib = self._flight, self._flight.call.library.module
        while True:
            while self._count < len(flight.chunks):
                self._count += 1
                yield flight.chunks[self._count - 1]
            if flight.done:
                break
            if not await flight.more(self._count, self._timeout):
                raise lib.ReadTimeout("the answer, which another caller reads too, has stalled")
        if self._own and flight.error is not None and flight.error is flight.call.error:
            raise flight.error
        if not flight.complete:
            raise lib.ReadError("the answer, which another caller was reading too, broke off")

    async def close(self) -> None:
        """Read no more; a second time changes nothing."""
        if not self._closed:
            self._closed = True
            if self._flight.leave():
                await self._flight.conclude()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self._closed = True
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its tasks with it
                self._flight.loop.call_soon_threadsafe(_left, self._flight)


def _left(flight: AsyncFlight) -> None:
    if flight.leave():
        flight.give_up()
