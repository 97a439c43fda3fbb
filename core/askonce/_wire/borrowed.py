"""
A client of the user's own that is not plain redis-py: its commands go through its public API alone.

Its connections may be of any kind (instrumented, simulated, its own way of signing in), so nothing is known of them:
pipelines and pub/sub are what every client has.  Its own timeouts and retries hold instead of the deadline, and event
loops ask it from threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import hiredis
from redis.client import NEVER_DECODE, Redis
from redis.exceptions import RedisError

from ..errors import BackendUnavailable
from .breaker import Breaker
from .multiplexed import Read


def commands(packed: bytes) -> list[list[bytes]]:
    """Return packed commands as their words: in the protocol a command is an array of strings."""
    reader = hiredis.Reader()
    reader.feed(packed)
    found: list[list[bytes]] = []
    while isinstance(command := reader.gets(), list):
        found.append(command)
    return found


class BorrowedHeld:
    """Exchanges by the client's pipelines; see ``held.Held``."""

    def __init__(self, client: Redis, label: str, breaker: Breaker) -> None:
        self._client, self._label, self._breaker = client, label, breaker

    def exchange(self, packed: bytes, count: int) -> list[Any]:
        """Send *packed* commands together and return their *count* replies, errors of Redis among them."""
        if not self._breaker.allows():
            raise BackendUnavailable(f"{self._label}: not asked, it failed a moment ago")
        pipe: Any = self._client.pipeline(transaction=False)
        for command in commands(packed):
            # A name that is bytes has no callback in redis-py: replies stay as they are.
            pipe.execute_command(*command, **{NEVER_DECODE: True})
        try:
            replies: list[Any] = pipe.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            self._breaker.failed(str(error))
            raise BackendUnavailable(f"{self._label}: {error}") from error
        if len(replies) != count:
            raise BackendUnavailable(f"{self._label}: {len(replies)} replies to {count} commands")
        self._breaker.succeeded()
        return replies

    def drop(self) -> None:
        """Its connections are the user's."""


class BorrowedMultiplexers:
    """What event loops ask, in threads; see ``multiplexed.Multiplexers``."""

    def __init__(self, held: BorrowedHeld) -> None:
        self._held = held

    def here(self) -> BorrowedMultiplexers:
        """Return the same on every loop."""
        return self

    def exchange(self, packed: bytes, count: int) -> Awaitable[list[Any]]:
        """Do what ``BorrowedHeld.exchange`` does."""
        return asyncio.get_running_loop().run_in_executor(None, self._held.exchange, packed, count)

    def fetch(self, read: Read, member: bytes) -> Awaitable[list[Any]]:
        """Read *member*."""
        packed, touched = read.pack([member])
        return self.exchange(packed, 2 if touched else 1)

    async def drop(self) -> None:
        """Its connections are the user's."""

    async def aclose(self) -> None:
        """Its connections are the user's."""


class Push:
    """The client's pub/sub in the words of a connection, as far as ``listener`` speaks them."""

    def __init__(self, client: Redis) -> None:
        self._pubsub: Any = client.pubsub()  # type: ignore[no-untyped-call]
        self._message: Any = None

    def connect(self) -> None:
        """It connects with its first subscription."""

    def send_packed_command(self, packed: Sequence[bytes], check_health: bool = False) -> None:  # noqa: ARG002
        """Subscribe, unsubscribe or ping."""
        for name, *channels in commands(b"".join(packed)):
            getattr(self._pubsub, name.decode().lower())(*channels)

    def can_read(self, timeout: float) -> bool:
        """Wait for a message."""
        self._message = self._pubsub.get_message(timeout=timeout)
        return self._message is not None

    def read_response(self, disable_decoding: bool = True) -> list[Any]:  # noqa: ARG002
        """Return the message that there is, as it came."""
        words = self._message["type"], self._message["channel"], self._message["data"]
        return [word.encode() if isinstance(word, str) else word for word in words]

    def disconnect(self) -> None:
        """Give the subscription up."""
        self._pubsub.close()
