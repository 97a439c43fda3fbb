"""
The push connection: one thread of the process sleeps on pub/sub and wakes who waits for a flight led elsewhere.

Messages are hints: a waiter looks again when it is woken, when the lease's time is over, and when the connection is
lost, so that a lost message costs one lease at most.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any, Final

import redis
from redis.exceptions import RedisError

from ..errors import BackendUnavailable
from .endpoint import Endpoint

#: How long to wait for messages before looking whether the listener is still wanted.
_TURN: Final = 1.0
_PAUSE: Final = 0.5
#: When nobody has waited for so long the connection is given up.
_IDLE_S: Final = 5.0


class Registration:
    """One waiter."""

    __slots__ = ("_listener", "_messages", "_woken")

    def __init__(self, listener: Listener, messages: tuple[bytes, ...]) -> None:
        self._listener = listener
        self._messages = messages
        self._woken: Future[None] = Future()

    @property
    def woken(self) -> Future[None]:
        """Done when there is reason to look again."""
        return self._woken

    def close(self) -> None:
        """Stop waiting."""
        self._listener.remove(self._messages, self)


class Listener:
    """The process's subscription to the channels of one namespace."""

    def __init__(self, endpoint: Endpoint, deadline: float, channels: tuple[bytes, ...]) -> None:
        self._endpoint = endpoint
        self._deadline = deadline
        self._channels = channels
        self._lock = threading.RLock()  # as in stats.Counters
        self._waiting: dict[bytes, list[Registration]] = {}
        self._subscribed = threading.Event()
        self._closed = False
        self._wanted = 0.0  # when somebody last waited
        self._thread: threading.Thread | None = None

    @property
    def ready(self) -> bool:
        """Whether messages arrive now, so that ``register`` does not have to wait."""
        return self._subscribed.is_set()

    def register(self, digest: bytes, chunks: bool = False) -> Registration:
        """
        Return a registration for the message that the flight of *digest* has landed; with *chunks* also for more of a
        running stream.  Raises BackendUnavailable if no message can arrive.
        """
        messages = (b"d" + digest, b"r" + digest) if chunks else (b"d" + digest,)
        with self._lock:
            self._wanted = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="askonce-listener", daemon=True)
                self._thread.start()
            registration = Registration(self, messages)
            for message in messages:
                self._waiting.setdefault(message, []).append(registration)
        if not self._subscribed.wait(self._deadline * 2):  # one deadline to connect, one to subscribe
            registration.close()
            raise BackendUnavailable(f"{self._endpoint.label}: no subscription within {self._deadline * 2} s")
        return registration

    def remove(self, messages: tuple[bytes, ...], registration: Registration) -> None:
        """Forget a registration."""
        with self._lock:
            for message in messages:
                waiting = self._waiting.get(message)
                if waiting and registration in waiting:
                    waiting.remove(registration)
                    if not waiting:
                        del self._waiting[message]

    def close(self) -> None:
        """Wake all and end the thread within a turn."""
        self._closed = True
        self._wake_all()

    def _run(self) -> None:
        while not self._ends():
            try:
                self._listen()
            except (RedisError, OSError, BackendUnavailable):
                self._subscribed.clear()
                self._wake_all()
                time.sleep(_PAUSE)

    def _ends(self) -> bool:
        """Return whether the thread is to end: nobody waits, or the cache was closed."""
        with self._lock:
            if self._waiting:
                self._wanted = time.monotonic()
            if not self._closed and time.monotonic() - self._wanted < _IDLE_S:
                return False
            self._subscribed.clear()
            self._thread = None
            return True

    def _listen(self) -> None:
        if self._endpoint.prepare is not None:
            self._endpoint.prepare()
        client = redis.Redis(connection_pool=self._endpoint.sync_pool(None, self._deadline))
        pubsub = client.pubsub()  # type: ignore[no-untyped-call]
        try:
            pubsub.subscribe(*self._channels)
            pending, asked = len(self._channels), 0.0
            while not self._closed and (self._waiting or time.monotonic() - self._wanted < _IDLE_S):
                message: Any = pubsub.get_message(timeout=self._deadline if asked else _TURN)
                if message is None:
                    if asked:
                        raise BackendUnavailable("the push connection does not answer")
                    if self._waiting:  # a silent connection may be a dead one
                        pubsub.ping()
                        asked = time.monotonic()
                    continue
                asked = 0.0
                if message["type"] == "subscribe":
                    pending -= 1
                    if pending <= 0:
                        self._subscribed.set()
                        self._wake_all()  # who registered in between may have missed a message
                elif message["type"] == "message" and message["data"][:1] in {b"d", b"r"}:
                    self._wake(message["data"])
        finally:
            self._subscribed.clear()
            pubsub.close()

    def _wake(self, message: bytes) -> None:
        with self._lock:
            woken = self._waiting.pop(message, [])
        for registration in woken:
            _done(registration.woken)

    def _wake_all(self) -> None:
        with self._lock:
            woken = [registration for waiting in self._waiting.values() for registration in waiting]
            self._waiting.clear()
        for registration in woken:
            _done(registration.woken)


def _done(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)
