"""
The sync wire: one redis-py connection held per thread.

redis-py's client spends about half of a GET on its pool, retry closures and hooks; its ``Connection`` alone still
brings connecting, AUTH and TLS.  Public names only: ``ConnectionPool.make_connection``, ``Connection.connect``,
``send_packed_command``, ``read_response``, ``disconnect``.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from ..errors import BackendUnavailable
from .breaker import Breaker
from .endpoint import Endpoint

#: A connection that was idle for longer may have been closed by the other side: it gets one more try.
_IDLE: Final = 1.0


class Held:
    """Exchanges with one server on a connection that belongs to the calling thread."""

    def __init__(self, endpoint: Endpoint, deadline: float, breaker: Breaker) -> None:
        self._endpoint = endpoint
        self._deadline = deadline
        self._breaker = breaker
        self.forget()

    def forget(self) -> None:
        """Start anew, without closing: in a forked child the connections are the parent's."""
        self._local = threading.local()
        self._pool = self._endpoint.sync_pool(self._deadline, self._deadline)

    def exchange(self, packed: bytes, count: int) -> list[Any]:
        """
        Send *packed* commands in one write and return their *count* replies.

        A reply may be a ``ResponseError``: a touch that meets -OOM does not fail a hit.  Raises BackendUnavailable.
        """
        if not self._breaker.allows():
            raise BackendUnavailable(f"{self._endpoint.label}: not asked, it failed a moment ago")
        local = self._local
        connection: Any = getattr(local, "connection", None)
        try:
            if connection is None:
                if self._endpoint.prepare is not None:
                    self._endpoint.prepare()
                connection = local.connection = self._pool.make_connection()
                connection.connect()
                replies = _exchange(connection, packed, count)
            else:
                idle = time.monotonic() - local.used > _IDLE
                try:
                    replies = _exchange(connection, packed, count)
                except RedisConnectionError:
                    if not idle:
                        raise
                    connection.disconnect()
                    if self._endpoint.prepare is not None:
                        self._endpoint.prepare()
                    replies = _exchange(connection, packed, count)  # connects again
        except BaseException as error:
            # Whatever it is (KeyboardInterrupt between write and read too), replies would be out of step.
            local.connection = None
            if connection is not None:
                connection.disconnect()
            if not isinstance(error, RedisError | OSError | BackendUnavailable):
                raise
            self._breaker.failed()
            raise BackendUnavailable(f"{self._endpoint.label}: {error}") from error
        self._breaker.succeeded()
        local.used = time.monotonic()
        return replies

    def close(self) -> None:
        """Close the calling thread's connection; those of other threads close as their threads end."""
        connection = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is not None:
            connection.disconnect()


def _exchange(connection: Any, packed: bytes, count: int) -> list[Any]:
    connection.send_packed_command([packed], check_health=False)
    replies: list[Any] = []
    for _ in range(count):
        try:
            replies.append(connection.read_response(disable_decoding=True))
        except ResponseError as error:
            replies.append(error)
    return replies
