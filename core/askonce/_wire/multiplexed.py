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

    __slots__ = ("count", "future", "packed")

    def __init__(self, packed: bytes, count: int, future: _Future) -> None:
        self.packed, self.count, self.future = packed, count, future

    def answer(self, replies: list[Any]) -> None:
        if not self.future.done():
            self.future.set_result(replies)

    def fail(self, why: str) -> None:
        if not self.future.done():
            self.future.set_exception(BackendUnavailable(why))


class _Fetch(_Call):
    """A reading of one caller, to be packed together with others."""

    __slots__ = ("member", "read")

    def __init__(self, read: Read, member: bytes, future: _Future) -> None:
        self.read, self.member, self.future = read, member, future


class _Group:
    """Readings that are one command."""

    __slots__ = ("_askers", "_due", "count", "packed")

    def __init__(self, read: Read, askers: dict[bytes, list[_Fetch]]) -> None:
        self._askers = askers
        self.packed, self._due = read.pack(list(askers))
        self.count = 2 if self._due else 1

    def answer(self, replies: list[Any]) -> None:
        if len(self._askers) == 1:
            (askers,) = self._askers.values()
            for asker in askers:
                asker.answer(replies)
            return
        found = replies[0]
        if not isinstance(found, list) or len(found) != len(self._askers) + 1:  # an error, of all
            for askers in self._askers.values():
                for asker in askers:
                    asker.answer(replies)
            return
        entries = dict(zip(self._askers, found[1:], strict=True))
        due = set(self._due)
        # Of several it says only how many were touched: of each one what is likely, if the numbers agree.
        agreed = due and replies[1] == sum(entries[member] is not None for member in due)
        for member, askers in self._askers.items():
            entry = entries[member]
            mine: list[Any] = [[found[0], entry]]
            if member in due:
                mine.append(int(entry is not None) if agreed else None)
            for asker in askers:
                asker.answer(mine)

    def fail(self, why: str) -> None:
        for askers in self._askers.values():
            for asker in askers:
                asker.fail(why)


class Multiplexed:
    """The connection of one event loop to one server."""

    def __init__(self, endpoint: Endpoint, deadline: float, breaker: Breaker) -> None:
        self._endpoint = endpoint
        self._deadline = deadline
        self._breaker = breaker
        self._pool = endpoint.async_pool(deadline)
        self._connection: Any = None
        self._line: Line | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._late = False  # the connecting is cancelled by the timer
        self._queue: list[_Call] = []  # not yet written
        self._burst: list[_Call] = []  # what was written last
        self._slots: deque[_Call | _Group] = deque()  # what of it is not yet answered
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
        loop = self._loop()
        future: _Future = loop.create_future()
        self._ask(loop, _Call(packed, count, future))
        return future

    def fetch(self, read: Read, member: bytes) -> _Future:
        """
        Read *member* together with whatever else is read like it; see ``exchange``.

        The replies are the word and the member's entry in a list, and, if it was touched, whether the books changed, 1
        or 0; None if others were touched by the same command and the reply does not tell.
        """
        loop = self._loop()
        future: _Future = loop.create_future()
        self._ask(loop, _Fetch(read, member, future))
        return future

    def _loop(self) -> asyncio.AbstractEventLoop:
        if not self._breaker.allows():
            raise BackendUnavailable(f"{self._endpoint.label}: not asked, it failed a moment ago")
        return asyncio.get_running_loop()

    def _ask(self, loop: asyncio.AbstractEventLoop, call: _Call) -> None:
        self._queue.append(call)
        if self._idle:
            self._idle = False
            if self._alone:
                self._write()
            else:
                loop.call_soon(self._write)
        elif self._line is None and self._connecting is None:
            self._connecting = loop.create_task(self._connect())

    # --- a burst ------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        if self._line is None or self._slots:  # lost since this was called for, or made anew
            return
        burst, self._queue = self._queue, []
        self._burst, self._alone = burst, len(burst) == 1
        now = asyncio.get_running_loop().time()
        self._retry = now - self._written > _IDLE
        self._written = now
        if self._due == math.inf:  # else connecting has begun it
            self._arm(now)
        slots = _slots(burst)
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
            self._burst = []
            self._due = math.inf
            self._breaker.succeeded()
            if self._queue:
                # Those who were answered run first, and what they ask now goes along.
                asyncio.get_running_loop().call_soon(self._write)
            else:
                self._idle = True

    def lost(self, error: Exception | None) -> None:
        """Hear that no reply comes any more: fail all that wait, and connect anew at the next call."""
        if self._retry and self._slots and error is not None:
            self._retry = False
            self._slots.clear()
            self._queue[:0] = self._burst
            connection = self._take()
            if connection is not None:
                detach(_disconnect(connection))
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
        elif self._slots or self._queue:
            self._fail("closed" if error is None else _text(error), broken=error is not None)
        else:
            self._hang_up()  # the server has closed what nobody used

    def _fail(self, why: str, *, broken: bool = True) -> None:
        if broken:
            self._breaker.failed(why)
        waiting: list[_Call | _Group] = [*self._slots, *self._queue]
        self._slots.clear()
        self._queue, self._burst, self._replies = [], [], []
        for slot in waiting:
            slot.fail(f"{self._endpoint.label}: {why}")
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
                await asyncio.get_running_loop().run_in_executor(None, self._endpoint.prepare)
            if self._due == math.inf:
                self._arm(asyncio.get_running_loop().time())
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
            self._timer = asyncio.get_running_loop().call_at(self._due, self._expire, self._due)

    def _expire(self, at: float) -> None:
        loop, self._timer = asyncio.get_running_loop(), None
        now = loop.time()
        if self._due == math.inf:
            return
        if now - at > self._deadline / 4:
            # A timer that comes late itself shows that the loop was busy, not Redis: the replies may be there.
            self._arm(now)
        elif now < self._due:
            self._timer = loop.call_at(self._due, self._expire, self._due)
        elif self._connecting is not None:
            self._late = True
            self._connecting.cancel()
        else:
            self._fail(f"no answer within {self._deadline} s")


def _slots(burst: list[_Call]) -> list[_Call | _Group]:
    """Return what is written for a burst: the commands of each caller, then what is read by one command each."""
    if len(burst) == 1 and type(burst[0]) is _Call:
        return [burst[0]]
    slots: list[_Call | _Group] = []
    groups: list[tuple[Read, dict[bytes, list[_Fetch]]]] = []
    latest: dict[Read, dict[bytes, list[_Fetch]]] = {}
    for one in burst:
        if not isinstance(one, _Fetch):
            slots.append(one)
            continue
        askers = latest.get(one.read)
        if askers is None or (len(askers) >= _AT_ONCE and one.member not in askers):
            askers = latest[one.read] = {}
            groups.append((one.read, askers))
        askers.setdefault(one.member, []).append(one)
    return slots + [_Group(read, askers) for read, askers in groups]


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

    def here(self) -> Multiplexed:
        """Return the connection of the running loop."""
        loop = asyncio.get_running_loop()
        if (found := self._of_loop.get(loop)) is None:
            prune()
            # A connection refers to its loop: those of loops that were closed over it would never be collected.
            for closed in [other for other in self._of_loop if other.is_closed()]:
                if (left := self._of_loop.pop(closed, None)) is not None:
                    left.abandon()
            found = self._of_loop[loop] = Multiplexed(*self._made)
        return found

    async def drop(self) -> None:
        """Close the running loop's connection if it has one; the next exchange connects anew."""
        if (found := self._of_loop.get(asyncio.get_running_loop())) is not None:
            await found.drop()

    async def aclose(self) -> None:
        """Close the running loop's connection."""
        if (found := self._of_loop.pop(asyncio.get_running_loop(), None)) is not None:
            await found.aclose()
