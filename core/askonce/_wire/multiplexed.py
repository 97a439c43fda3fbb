"""
The asyncio wire: all tasks of a loop share one redis-py connection; each burst of calls is one write.

redis-py's asyncio client is bound by about 40 us of CPU a command.  Here a command costs a future and a slot in a
list, and what a burst reads of a partition is one command: 64 look-ups at once are one MGET and one ZADD.  A task of its own writes and reads, which no caller can cancel: a cancelled call leaves its slot in place, so
that every later reply keeps its owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import weakref
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from .._loops import prune
from ..errors import BackendUnavailable
from .breaker import Breaker
from .endpoint import Endpoint

_IDLE: Final = 1.0  # as in held.py


#: Members that one MGET reads: bounded, so that one deadline is enough for it.
_AT_ONCE: Final = 128


class _Call(NamedTuple):
    packed: bytes
    replies: int
    future: asyncio.Future[list[Any]]


class Read(Protocol):
    """What can be read together: ``pack`` makes one write of two commands, whose first reply has a word before all."""

    def pack(self, members: Sequence[bytes]) -> bytes: ...


class _Fetch(NamedTuple):
    read: Read
    member: bytes
    future: asyncio.Future[list[Any]]


class Multiplexed:
    """The connection of one event loop to one server."""

    def __init__(self, endpoint: Endpoint, deadline: float, breaker: Breaker) -> None:
        self._endpoint = endpoint
        self._deadline = deadline
        self._breaker = breaker
        self._pool = endpoint.async_pool(deadline)
        self._queue: list[_Call | _Fetch] = []
        self._task: asyncio.Task[None] | None = None
        self._connection: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._late = False
        self._used = 0.0

    def exchange(self, packed: bytes, count: int) -> asyncio.Future[list[Any]]:
        """
        Queue *packed* commands and return a future of their *count* replies; see ``Held.exchange``.

        The future may be cancelled at any time.
        """
        future = self._future()
        self._queue.append(_Call(packed, count, future))
        return future

    def fetch(self, read: Read, member: bytes) -> asyncio.Future[list[Any]]:
        """
        Queue the reading of *member* together with whatever else is read like it; see ``exchange``.

        The replies are the word and the member's entry in a list, and how many members were touched, None if there
        were several.
        """
        future = self._future()
        self._queue.append(_Fetch(read, member, future))
        return future

    def _future(self) -> asyncio.Future[list[Any]]:
        if not self._breaker.allows():
            raise BackendUnavailable(f"{self._endpoint.label}: not asked, it failed a moment ago")
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._run())
        return loop.create_future()

    async def _run(self) -> None:
        burst: list[_Call | _Fetch] = []
        loop = asyncio.get_running_loop()
        try:
            while self._queue:
                if self._connection is None:
                    await self._prepare()
                burst, self._queue = self._queue, []
                self._arm()  # one timer for the burst, not one a command
                idle = self._connection is not None and loop.time() - self._used > _IDLE
                try:
                    await self._exchange(burst)
                except RedisConnectionError:
                    if not idle or any(call.future.done() and not call.future.cancelled() for call in burst):
                        raise
                    await self.drop()
                    await self._prepare()
                    await self._exchange(burst)
                self._used = loop.time()
                self._breaker.succeeded()
        except Exception as error:  # noqa: BLE001  a future that is never set is a caller that hangs
            await self._fail(burst, str(error) or type(error).__name__)
        except asyncio.CancelledError:
            if not self._late:  # the loop is shutting down: that says nothing of Redis
                await self._fail(burst, "closed", broken=False)
                raise
            self._late = False
            await self._fail(burst, f"no answer within {self._deadline} s")
        finally:
            self._disarm()
            # Calls that came while a failed connection was being dropped are nobody's burst yet.
            self._task = loop.create_task(self._run()) if self._queue and not loop.is_closed() else None

    async def _prepare(self) -> None:
        if self._endpoint.prepare is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._endpoint.prepare)

    async def _exchange(self, burst: list[_Call | _Fetch]) -> None:
        connection = self._connection
        if connection is None:
            connection = self._connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            await connection.connect()
        calls = [item for item in burst if isinstance(item, _Call)]
        groups = _groups([item for item in burst if isinstance(item, _Fetch)])
        written = [call.packed for call in calls]
        written += [read.pack(list(members)) for read, members in groups]
        await connection.send_packed_command([b"".join(written)], check_health=False)
        for call in calls:
            replies = [await _reply(connection) for _ in range(call.replies)]
            if not call.future.done():
                call.future.set_result(replies)
        for _, members in groups:
            found, touched = await _reply(connection), await _reply(connection)
            _hand_out(members, found, touched)

    def _arm(self) -> None:
        self._disarm()
        loop = asyncio.get_running_loop()
        due = loop.time() + self._deadline
        self._timer = loop.call_at(due, self._expire, due)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self, due: float) -> None:
        # A timer that comes late itself shows that the loop was busy, not Redis: the replies may be there.
        if asyncio.get_running_loop().time() - due > self._deadline / 4:
            self._arm()
        elif self._task is not None:
            self._late = True
            self._task.cancel()

    async def _fail(self, burst: list[_Call | _Fetch], why: str, *, broken: bool = True) -> None:
        """The connection is out of step or gone: fail all that wait, and connect anew at the next call."""
        if broken:
            self._breaker.failed(why)
        calls, self._queue = burst + self._queue, []
        for call in calls:
            if not call.future.done():
                call.future.set_exception(BackendUnavailable(f"{self._endpoint.label}: {why}"))
        await self.drop()

    async def drop(self) -> None:
        """Close the connection; the next exchange connects anew."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    def abandon(self) -> None:
        """Hang up for a loop that was closed over its connection; the rest is the garbage collector's."""
        writer = getattr(self._connection, "_writer", None)  # a closed loop cannot run redis-py's disconnect
        self._connection = None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    async def aclose(self) -> None:
        """Close on the loop that owns the connection: a loop that ends first leaves noise."""
        if self._task is not None:
            self._task.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect()


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


#: Who asked for each member.
_Askers: TypeAlias = dict[bytes, list[_Fetch]]


def _groups(fetches: list[_Fetch]) -> list[tuple[Read, _Askers]]:
    """Return what is read by one command each."""
    groups: list[tuple[Read, _Askers]] = []
    latest: dict[Read, _Askers] = {}
    for one in fetches:
        members = latest.get(one.read)
        if members is None or (len(members) >= _AT_ONCE and one.member not in members):
            members = latest[one.read] = {}
            groups.append((one.read, members))
        members.setdefault(one.member, []).append(one)
    return groups


def _hand_out(members: _Askers, found: Any, touched: Any) -> None:
    several = len(members) > 1
    for place, askers in enumerate(members.values(), start=1):
        for one in askers:
            if not one.future.done():
                mine = [found[0], found[place]] if isinstance(found, list) else found
                one.future.set_result([mine, None if several else touched])


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
