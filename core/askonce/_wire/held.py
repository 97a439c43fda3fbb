"""
The sync wire: one redis-py connection held per thread.

redis-py's client spends about half of a GET on its pool, retry closures and hooks; its ``Connection`` alone still
brings connecting, AUTH and TLS.  Public names only: ``ConnectionPool.make_connection``, ``Connection.connect``,
``send_packed_command``, ``read_response``, ``disconnect``, and the option ``parser_class``.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from redis.connection import DefaultParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..errors import BackendUnavailable
from .breaker import Breaker
from .endpoint import Endpoint

#: A connection that was idle for longer may have been closed by the other side: it gets one more try.
_IDLE: Final = 1.0


class _Local(threading.local):
    """What one thread holds."""

    connection: Any = None
    used: float = 0.0  # when the connection last answered
    due: float = 0.0  # when the exchange under way must have ended
    reads: int = 0  # how often the socket was read for it


def _parser_class(local: _Local) -> type:
    """Return a parser for which the deadline holds for an exchange, not for each part that arrives."""

    class Parser(DefaultParser):  # type: ignore[valid-type,misc]  # redis-py's choice, made at run time
        def read_from_socket(self, *args: Any, **kwargs: Any) -> Any:
            # The first read has the socket's own timeout, which is the deadline: no clock is asked on a plain hit.
            if local.reads and not args and "timeout" not in kwargs:
                kwargs["timeout"] = local.due - time.monotonic()
                if kwargs["timeout"] <= 0:
                    raise RedisTimeoutError("the answer comes in too slowly")
            local.reads += 1
            return super().read_from_socket(*args, **kwargs)

    return Parser


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
        connection, local.connection = local.connection, None
        now = time.monotonic()
        try:
            if connection is None:
                connection = self._connect()
                replies = self._exchange(connection, packed, count, time.monotonic())
            else:
                try:
                    replies = self._exchange(connection, packed, count, now)
                except RedisConnectionError:
                    if now - local.used < _IDLE:
                        raise
                    connection.disconnect()
                    connection = self._connect()
                    replies = self._exchange(connection, packed, count, time.monotonic())
        except BaseException as error:
            # Whatever it is (KeyboardInterrupt between write and read too), replies would be out of step.
            if connection is not None:
                connection.disconnect()
            if not isinstance(error, RedisError | OSError | BackendUnavailable):
                raise
            self._breaker.failed(str(error))
            raise BackendUnavailable(f"{self._endpoint.label}: {error}") from error
        self._breaker.succeeded()
        if local.connection is not None:
            self.drop()  # what a nested exchange has left
        local.connection, local.used = connection, now
        return replies

    def drop(self) -> None:
        """Close the calling thread's connection; those of other threads close as their threads end."""
        connection, self._local.connection = self._local.connection, None
        if connection is not None:
            connection.disconnect()

    def _connect(self) -> Any:
        if self._endpoint.prepare is not None:
            self._endpoint.prepare()
        connection: Any = self._pool.make_connection()
        self._local.due, self._local.reads = time.monotonic() + self._deadline, 0
        connection.connect()
        return connection

    def _exchange(self, connection: Any, packed: bytes, count: int, now: float) -> list[Any]:
        local = self._local
        local.due, local.reads = now + self._deadline, 0
        connection.send_packed_command([packed], check_health=False)
        replies: list[Any] = []
        for _ in range(count):
            try:
                replies.append(connection.read_response(disable_decoding=True))
            except ResponseError as error:
                replies.append(error)
        return replies
