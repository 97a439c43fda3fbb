"""
How bytes go over an asyncio connection that redis-py has made: connected, encrypted, authenticated.

redis-py reads each reply through a chain of coroutines, which a task must await.  ``Direct`` takes the transport over
instead: a reply is parsed in the callback in which its bytes arrive, and its caller runs next.  redis-py has no public
name for the transport; where there is none to be found, ``Slow`` does the same by public names alone.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError

from .commands import MORE, READ_SIZE, reader


class Owner(Protocol):
    """Who hears of what comes in over a line."""

    def received(self, reply: Any) -> None:
        """Take the next reply; an error of Redis is one too."""

    def lost(self, error: Exception | None) -> None:
        """Expect no further reply; None if the event loop shuts down, which says nothing of Redis."""


class Line(Protocol):
    """A connection in use."""

    def write(self, packed: bytes, count: int) -> None:
        """Send commands, which have *count* replies; all those of the last write must have come."""

    def hang_up(self) -> None:
        """Tell the owner nothing more, and break off; who made the connection still has to close it."""


def line(connection: Any, owner: Owner) -> Line:
    """Return the line over *connection*, which is connected."""
    transport = getattr(getattr(connection, "_writer", None), "transport", None)
    if hasattr(transport, "set_protocol") and hasattr(transport, "get_protocol"):
        return Direct(transport, owner)
    return Slow(connection, owner)


class Direct(asyncio.BufferedProtocol):
    """A line that is the protocol of its transport."""

    def __init__(self, transport: Any, owner: Owner) -> None:
        self._transport, self._owner = transport, owner
        self._buffer = bytearray(READ_SIZE)
        self._view = memoryview(self._buffer)  # the encrypting transport slices it, and would slice a copy
        self._reader = reader()
        self._gone = False
        self._former: asyncio.BaseProtocol = transport.get_protocol()
        transport.set_protocol(self)

    def write(self, packed: bytes, count: int) -> None:  # noqa: ARG002  the owner counts them
        """Send commands."""
        self._transport.write(packed)

    def hang_up(self) -> None:
        """Break off."""
        self._gone = True
        self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Return where the transport is to put what comes."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on what has come, as far as it is whole replies."""
        parser, received = self._reader, self._owner.received
        try:
            parser.feed(self._buffer, 0, nbytes)  # type: ignore[arg-type]  # its stub says bytes
            while not self._gone and (reply := parser.gets(False)) is not MORE:
                received(reply)
        except InvalidResponse as error:
            self._lose(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Hear that the other side, or redis-py, has closed."""
        self._former.connection_lost(exc)  # redis-py waits for that when it closes
        self._lose(exc or RedisConnectionError("Connection closed by server."))

    def _lose(self, error: Exception) -> None:
        if not self._gone:
            self._gone = True
            self._owner.lost(error)


class Slow:
    """A line that redis-py writes and reads."""

    def __init__(self, connection: Any, owner: Owner) -> None:
        self._connection, self._owner = connection, owner
        self._task: asyncio.Task[None] | None = None
        self._gone = False

    def write(self, packed: bytes, count: int) -> None:
        """Send commands, and read in a task of its own, which no caller can cancel."""
        self._task = asyncio.get_running_loop().create_task(self._exchange(packed, count))

    def hang_up(self) -> None:
        """Break off."""
        self._gone = True
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    async def _exchange(self, packed: bytes, count: int) -> None:
        error: Exception | None = None
        try:
            await self._connection.send_packed_command([packed], check_health=False)
            for _ in range(count):
                reply = await self._reply()
                if self._gone:
                    return
                self._owner.received(reply)
        except Exception as exc:  # noqa: BLE001  whatever it is, nobody else would hear of it
            error = exc
        except asyncio.CancelledError:
            if self._gone:
                return
        else:
            return
        if not self._gone:
            self._gone = True
            self._owner.lost(error)

    async def _reply(self) -> Any:
        try:
            return await self._connection.read_response(disable_decoding=True)
        except ResponseError as error:
            return error
