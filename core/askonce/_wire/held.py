"""
The sync wire: one redis-py connection held per thread.

redis-py's client spends about half of a GET on its pool, retry closures and hooks; its ``Connection`` alone still
brings connecting, AUTH and TLS.  What is sent and read then goes over the connection's socket, as ``Direct`` does it.
redis-py has no public name for the socket; where there is none to be found, ``Slow`` does the same by public names
alone: ``ConnectionPool.make_connection``, ``Connection.connect``, ``send_packed_command``, ``read_response``,
``disconnect``, and the option ``parser_class``.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Final, Protocol

from redis.connection import DefaultParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..errors import BackendUnavailable
from .breaker import Breaker
from .commands import MORE, READ_SIZE, reader
from .endpoint import Endpoint

#: A connection that was idle for longer may have been closed by the other side: it gets one more try.
_IDLE: Final = 1.0


class _Line(Protocol):
    """A connection in use."""

    connection: Any

    def exchange(self, packed: bytes, count: int, due: float) -> list[Any]:
        """Send commands and return their *count* replies; an error of Redis is one too."""
        ...


class Direct:
    """Exchanges over the socket of a connection."""

    __slots__ = ("_buffer", "_reader", "_socket", "connection")

    def __init__(self, connection: Any, socket: Any) -> None:
        self.connection, self._socket = connection, socket
        self._buffer = bytearray(READ_SIZE)
        self._reader = reader()

    def exchange(self, packed: bytes, count: int, due: float) -> list[Any]:
        """See ``_Line``."""
        socket, parser, buffer = self._socket, self._reader, self._buffer
        replies: list[Any] = []
        # Sending, and the first read, have the socket's own timeout, which is the deadline: for a plain hit it is not
        # set anew.
        socket.sendall(packed)
        timeout = None
        while True:
            size = socket.recv_into(buffer)
            if not size:
                raise RedisConnectionError("Connection closed by server.")
            parser.feed(buffer, 0, size)  # type: ignore[arg-type]  # its stub says bytes
            while (reply := parser.gets(False)) is not MORE:
                if isinstance(reply, RedisConnectionError):  # LOADING
                    raise reply
                replies.append(reply)
            if len(replies) >= count:
                break
            if timeout is None:
                timeout = socket.gettimeout()
            if (left := due - time.monotonic()) <= 0:
                raise TimeoutError  # bit by bit is too slow as well
            socket.settimeout(left)
        if timeout is not None:
            socket.settimeout(timeout)
        if len(replies) > count or parser.has_data():
            raise InvalidResponse("a reply that nobody asked for")
        return replies


class Slow:
    """Exchanges by redis-py's own means."""

    __slots__ = ("_local", "connection")

    def __init__(self, connection: Any, local: _Local) -> None:
        self.connection, self._local = connection, local

    def exchange(self, packed: bytes, count: int, due: float) -> list[Any]:
        """See ``_Line``."""
        self._local.due, self._local.reads = due, 0
        self.connection.send_packed_command([packed], check_health=False)
        replies: list[Any] = []
        for _ in range(count):
            try:
                replies.append(self.connection.read_response(disable_decoding=True))
            except ResponseError as error:
                replies.append(error)
        return replies


class _Local(threading.local):
    """What one thread holds."""

    line: _Line | None = None
    used: float = 0.0  # when the last exchange that was answered began
    due: float = 0.0  # when what redis-py does must have ended
    reads: int = 0  # how often the socket was read for it


def _parser_class(local: _Local) -> type:
    """Return a parser for which the deadline holds for an exchange, not for each part that arrives."""

    class Parser(DefaultParser):  # type: ignore[valid-type,misc]  # redis-py's choice, made at run time
        def read_from_socket(self, *args: Any, **kwargs: Any) -> Any:
            # The first read has the socket's own timeout, which is the deadline; redis-py gives a mark for that, or
            # nothing.
            if local.reads and not args and not isinstance(kwargs.get("timeout"), int | float):
                kwargs["timeout"] = local.due - time.monotonic()
                if kwargs["timeout"] <= 0:
                    raise RedisTimeoutError("the answer comes in too slowly")
            local.reads += 1
            return super().read_from_socket(*args, **kwargs)

    return Parser


def _line(connection: Any, local: _Local) -> _Line:
    """Return the line over *connection*, which is connected."""
    socket = getattr(connection, "_sock", None)
    if hasattr(socket, "recv_into") and hasattr(socket, "sendall"):
        return Direct(connection, socket)
    return Slow(connection, local)


def _is_dead(connection: Any) -> bool:
    """Return whether a connection that nobody waits on was closed, or says what nobody asked."""
    try:
        return bool(connection.can_read(0))
    except (RedisError, OSError):
        return True


class Held:
    """Exchanges with one server on a connection that belongs to the calling thread."""

    def __init__(self, endpoint: Endpoint, deadline: float, breaker: Breaker) -> None:
        self._endpoint = endpoint
        self._deadline = deadline
        self._breaker = breaker
        self._local = _Local()
        self._pool = endpoint.sync_pool(deadline, deadline, parser_class=_parser_class(self._local))

    def exchange(self, packed: bytes, count: int) -> list[Any]:
        """
        Send *packed* commands in one write and return their *count* replies.

        A reply may be a ``ResponseError``: a touch that meets -OOM does not fail a hit.  Raises BackendUnavailable.
        """
        if not self._breaker.allows():
            raise BackendUnavailable(f"{self._endpoint.label}: not asked, it failed a moment ago")
        local = self._local
        # Taken out for the exchange: the garbage collector may run another one in this thread, between write and read.
        line, local.line = local.line, None
        now = time.monotonic()
        try:
            if line is not None and now - local.used >= _IDLE and _is_dead(line.connection):
                line.connection.disconnect()
                line = None
            if line is None:
                line = self._connect()
                replies = line.exchange(packed, count, time.monotonic() + self._deadline)
            else:
                try:
                    replies = line.exchange(packed, count, now + self._deadline)
                except (RedisConnectionError, OSError) as error:
                    if isinstance(error, TimeoutError) or now - local.used < _IDLE:
                        raise
                    line.connection.disconnect()
                    line = None
                    line = self._connect()
                    replies = line.exchange(packed, count, time.monotonic() + self._deadline)
        except BaseException as error:
            # Whatever it is (KeyboardInterrupt between write and read too), replies would be out of step.
            if line is not None:
                line.connection.disconnect()
            if not isinstance(error, RedisError | OSError | BackendUnavailable):
                raise
            late = isinstance(error, TimeoutError | RedisTimeoutError)
            why = f"no answer within {self._deadline} s" if late else str(error)
            self._breaker.failed(why)
            raise BackendUnavailable(f"{self._endpoint.label}: {why}") from error
        self._breaker.succeeded()
        if local.line is not None:
            self.drop()  # what a nested exchange has left
        local.line, local.used = line, now
        return replies

    def drop(self) -> None:
        """Close the calling thread's connection; those of other threads close as their threads end."""
        line, self._local.line = self._local.line, None
        if line is not None:
            line.connection.disconnect()

    def _connect(self) -> _Line:
        if self._endpoint.prepare is not None:
            self._endpoint.prepare()
        connection: Any = self._pool.make_connection()
        self._local.due, self._local.reads = time.monotonic() + self._deadline, 0
        connection.connect()
        return _line(connection, self._local)
