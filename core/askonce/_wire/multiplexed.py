"""
The asyncio wire: all tasks of a loop share one redis-py connection; each burst of calls is one write.

redis-py's asyncio client is bound by about 40 us of CPU a command.  Here a command costs a future and a place in a
list, and what a burst reads of a partition is one command: 64 look-ups at once are one MGET and at most one ZADD.
One burst is under way at a time.  Who asks while there is none, and was alone the last time, writes at once; otherwise
a burst is written when all tasks that run now have asked.  Nobody waits in the way of a reply: a cancelled call leaves
its place, so that every later reply keeps its owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol, TypeAlias

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

from .._loops import detach, prune
from ..errors import BackendUnavailable
from .breaker import Breaker
from .endpoint import Endpoint
from .line import Line, line

_IDLE: Final = 1.0  # as in held.py

#: Members that one MGET reads: bounded, so that one deadline is enough for it.
_AT_ONCE: Final = 128

_Future: TypeAlias = asyncio.Future[list[Any]]


class Read(Protocol):
    """
    What can be read together.

    ``pack`` makes one write that reads members, and says which of them it touches: its first reply has a word before
    all, and there is a second one if any is touched.
    """

    def pack(self, members: Sequence[bytes]) -> tuple[bytes, list[bytes]]: ...


class _Call:
    """Commands of one caller."""

    __slots__ = ("count", "futures", "packed")

    def __init__(self, packed: bytes, count: int, *futures: _Future) -> None:
        self.packed, self.count, self.futures = packed, count, futures

    def answer(self, replies: list[Any]) -> None:
        """Give the replies to who asked."""
        for future in self.futures:
            if not future.done():
                future.set_result(replies)


#: One caller's reading, to be packed together with others.
_Fetch: TypeAlias = tuple[Read, bytes, _Future]


class _Group(_Call):
    """Readings that are one command."""

    __slots__ = ("_due", "_fetches", "_members")

    def __init__(self, fetches: list[_Fetch]) -> None:
        self._fetches = fetches
        self._members = list({member: None for _, member, _ in fetches})
        packed, self._due = fetches[0][0].pack(self._members)
        super().__init__(packed, 2 if self._due else 1, *[future for _, _, future in fetches])

    def answer(self, replies: list[Any]) -> None:
        members, found = self._members, replies[0]
        if len(members) == 1 or not isinstance(found, list) or len(found) != len(members) + 1:
            super().answer(replies)  # all asked for the same, or have met the same error
            return
        word, *entries = found
        if not self._due and len(members) == len(self._fetches):  # the same as below, in most cases
            for (_, _, future), entry in zip(self._fetches, entries, strict=True):
                if not future.done():
                    future.set_result([[word, entry]])
            return
        known = dict(zip(members, entries, strict=True))
        due = set(self._due)
        # Of several it says only how many were touched: of each one what is likely, if the numbers agree.
        agreed = bool(due) and replies[1] == sum([known[member] is not None for member in due])
        for _, member, future in self._fetches:
            if future.done():
                continue
            entry = known[member]
            mine: list[Any] = [[word, entry]]
            if member in due:
                mine.append(int(entry is not None) if agreed else None)
            future.set_result(mine)


class Multiplexed:
    """The connection of one event loop to one server."""

    def __init__(
        self, endpoint: Endpoint, deadline: float, breaker: Breaker, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._loop = loop
        self._endpoint = endpoint
        self._deadline = deadline
        self._breaker = breaker
        self._pool = endpoint.async_pool(deadline)
        self._connection: Any = None
        self._line: Line | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._late = False  # the connecting is cancelled by the timer
        self._calls: list[_Call] = []  # not yet written
        self._fetches: list[_Fetch] = []  # not yet written
        self._burst: tuple[list[_Call], list[_Fetch]] = [], []  # what was written last
        self._slots: deque[_Call] = deque()  # what of it is not yet answered
        self._replies: list[Any] = []  # those of the first slot that have come
        self._idle = False  # connected, nothing under way, nothing about to be written
        self._alone = True  # the last burst was one call
        self._retry = False  # the connection was idle for long before this burst, and may be dead
        self._written = -math.inf  # when the last burst was
        self._due = math.inf  # when the burst under way must have ended
        self._timer: asyncio.TimerHandle | None = None  # fires at ``_due`` or before

    def exchange(self, packed: bytes, count: int) -> _Future:
        """
        Send *packed* commands and return a future of their *count* replies; see ``Held.exchange``.

        The future may be cancelled at any time.
        """
        if not self._breaker.allows():
            raise self._refusal()
        future: _Future = self._loop.create_future()
        self._calls.append(_Call(packed, count, future))
        if self._idle or self._line is None:
            self._begin()
        return future

    def fetch(self, read: Read, member: bytes) -> _Future:
        """
        Read *member* together with whatever else is read like it; see ``exchange``.

        The replies are the word and the member's entry in a list, and, if it was touched, whether the books changed, 1
        or 0; None if others were touched by the same command and the reply does not tell.
        """
        if not self._breaker.allows():
            raise self._refusal()
        future: _Future = self._loop.create_future()
        self._fetches.append((read, member, future))
        if self._idle or self._line is None:
            self._begin()
        return future

    def _refusal(self) -> BackendUnavailable:
        return BackendUnavailable(f"{self._endpoint.label}: not asked, it failed a moment ago")

    def _begin(self) -> None:
        """Bring about that the queue is written: now, in a moment, or once there is a connection."""
        if self._idle:
            self._idle = False
            if self._alone:
                self._write()
            else:
                self._loop.call_soon(self._write)
        elif self._connecting is None:
            self._connecting = self._loop.create_task(self._connect())

    # --- a burst ------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        if self._line is None or self._slots:  # lost since this was called for, or made anew
            return
        calls, fetches = self._burst = self._calls, self._fetches
        if not calls and not fetches:
            self._idle, self._due = True, math.inf
            return
        self._calls, self._fetches = [], []
        self._alone = len(calls) + len(fetches) == 1
        now = self._loop.time()
        self._retry = now - self._written > _IDLE
        self._written = now
        if self._due == math.inf:  # else connecting has begun it
            self._arm(now)
        slots = [*calls, *_groups(fetches)] if fetches else calls
        self._slots.extend(slots)
        packed = slots[0].packed if len(slots) == 1 else b"".join([slot.packed for slot in slots])
        self._line.write(packed, sum([slot.count for slot in slots]))

    def received(self, reply: Any) -> None:
        """Take a reply: the next that is missing."""
        if not self._slots or isinstance(reply, RedisConnectionError):  # LOADING, or nobody asked
            self.lost(
                reply if isinstance(reply, Exception) else InvalidResponse("a reply that nobody asked for")
            )
            return
        self._retry = False
        replies, slot = self._replies, self._slots[0]
        replies.append(reply)
        if len(replies) < slot.count:
            return
        self._slots.popleft()
        self._replies = []
        slot.answer(replies)
        if not self._slots:
            self._due = math.inf
            self._breaker.succeeded()
            if self._calls or self._fetches:
                # Those who were answered run first, and what they ask now goes along.
                self._loop.call_soon(self._write)
            else:
                self._idle = True

    def lost(self, error: Exception | None) -> None:
        """Hear that no reply comes any more: fail all that wait, and connect anew at the next call."""
        if self._retry and self._slots and error is not None:
            self._retry = False
            self._slots.clear()
            calls, fetches = self._burst
            self._calls[:0], self._fetches[:0] = calls, fetches
            connection = self._take()
            if connection is not None:
                detach(_disconnect(connection))
            self._connecting = self._loop.create_task(self._connect())
        elif self._slots or self._calls or self._fetches:
            self._fail("closed" if error is None else _text(error), broken=error is not None)
        else:
            self._hang_up()  # the server has closed what nobody used

    def _fail(self, why: str, *, broken: bool = True) -> None:
        if broken:
            self._breaker.failed(why)
        waiting = [future for call in (*self._slots, *self._calls) for future in call.futures]
        waiting += [future for _, _, future in self._fetches]
        self._slots.clear()
        self._calls, self._fetches = [], []
        for future in waiting:
            if not future.done():
                future.set_exception(BackendUnavailable(f"{self._endpoint.label}: {why}"))
        self._hang_up()

    def _hang_up(self) -> None:
        self._due = math.inf
        connection = self._take()
        if connection is not None:
            detach(_disconnect(connection))

    # --- the connection -----------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        try:
            if self._endpoint.prepare is not None:
                await self._loop.run_in_executor(None, self._endpoint.prepare)
            if self._due == math.inf:
                self._arm(self._loop.time())
            self._connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            await self._connection.connect()
        except Exception as error:  # noqa: BLE001  a future that is never set is a caller that hangs
            self._connecting = None
            self._fail(_text(error))
        except asyncio.CancelledError:
            connection, self._connecting = self._take(), None
            late, self._late = self._late, False
            if late:
                self._fail(f"no answer within {self._deadline} s")
            else:  # the loop shuts down: that says nothing of Redis
                self._fail("closed", broken=False)
            if connection is not None:
                await _disconnect(connection)
            if not late:
                raise
        else:
            self._connecting = None
            self._line = line(self._connection, self)
            self._write()

    def _take(self) -> Any:
        """Return the connection, which is to be closed, and hear nothing more of it."""
        used, self._line = self._line, None
        connection, self._connection = self._connection, None
        self._idle, self._replies = False, []
        if used is not None:
            used.hang_up()
        return connection

    async def drop(self) -> None:
        """Close the connection; the next exchange connects anew."""
        if self._connecting is None:
            self._fail("closed", broken=False)

    def abandon(self) -> None:
        """Hang up for a loop that was closed over its connection; the rest is the garbage collector's."""
        writer = getattr(self._connection, "_writer", None)  # a closed loop cannot run redis-py's disconnect
        self._connection = self._line = None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    async def aclose(self) -> None:
        """Close on the loop that owns the connection: a loop that ends first leaves noise."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        connection = self._take()
        self._fail("closed", broken=False)
        if connection is not None:
            await connection.disconnect()

    # --- the deadline -------------------------------------------------------------------------------------------

    def _arm(self, now: float) -> None:
        """Begin the time of what is under way; its end is looked at by one timer, however many bursts there are."""
        self._due = now + self._deadline
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._expire, self._due)

    def _expire(self, at: float) -> None:
        self._timer = None
        now = self._loop.time()
        if self._due == math.inf:
            return
        if now - at > self._deadline / 4:
            # A timer that comes late itself shows that the loop was busy, not Redis: the replies may be there.
            self._arm(now)
        elif now < self._due:
            self._timer = self._loop.call_at(self._due, self._expire, self._due)
        elif self._connecting is not None:
            self._late = True
            self._connecting.cancel()
        else:
            self._fail(f"no answer within {self._deadline} s")


def _groups(fetches: list[_Fetch]) -> list[_Group]:
    """Return what is read by one command each."""
    of_read: dict[Read, list[_Fetch]] = {}
    for fetch in fetches:
        of_read.setdefault(fetch[0], []).append(fetch)
    return [
        _Group(alike[start : start + _AT_ONCE])
        for alike in of_read.values()
        for start in range(0, len(alike), _AT_ONCE)
    ]


async def _disconnect(connection: Any) -> None:
    with contextlib.suppress(Exception):  # it is given up already
        await connection.disconnect(nowait=True)


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


class Multiplexers:
    """One multiplexed connection a running event loop, made on demand."""

    def __init__(self, endpoint: Endpoint, deadline: float, breaker: Breaker) -> None:
        self._made = endpoint, deadline, breaker
        self._of_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Multiplexed] = (
            weakref.WeakKeyDictionary()
        )
        self._latest: tuple[asyncio.AbstractEventLoop | None, Multiplexed | None] = None, None

    def here(self) -> Multiplexed:
        """Return the connection of the running loop."""
        loop = asyncio.get_running_loop()
        known, found = self._latest
        if found is not None and known is loop:  # a weak mapping takes its time
            return found
        if (found := self._of_loop.get(loop)) is None:
            prune()
            # A connection refers to its loop: those of loops that were closed over it would never be collected.
            for closed in [other for other in self._of_loop if other.is_closed()]:
                if (left := self._of_loop.pop(closed, None)) is not None:
                    left.abandon()
            found = self._of_loop[loop] = Multiplexed(*self._made, loop)
        self._latest = loop, found
        return found

    async def drop(self) -> None:
        """Close the running loop's connection if it has one; the next exchange connects anew."""
        if (found := self._of_loop.get(asyncio.get_running_loop())) is not None:
            await found.drop()

    async def aclose(self) -> None:
        """Close the running loop's connection."""
        self._latest = None, None
        if (found := self._of_loop.pop(asyncio.get_running_loop(), None)) is not None:
            await found.aclose()
