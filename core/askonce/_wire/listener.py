"""
The push connection: one thread of the process sleeps on pub/sub and wakes who waits for a flight led elsewhere.

All caches of a process that use the same server share it, whatever their namespaces.  To who waits messages are hints:
a waiter looks again when it is woken, when the lease's time is over, and when the connection is lost, so that a lost
message costs one lease at most.  A watcher (the near cache) relies on them: it is told when they begin and when they may
have been missed.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Hashable
from concurrent.futures import Future
from typing import Any, Final, Protocol, TypeAlias

from redis.exceptions import RedisError, ResponseError

from ..errors import BackendUnavailable
from .borrowed import Push
from .commands import pack
from .endpoint import Endpoint

#: How long to wait for messages before looking whether the listener is still wanted.
_TURN: Final = 1.0
_PAUSE: Final = 0.5
#: When nobody has waited for so long the connection is given up.
_IDLE_S: Final = 5.0

#: A channel, and what is said there.
Message: TypeAlias = tuple[bytes, bytes]


class Registration:
    """One waiter."""

    __slots__ = ("_listener", "_messages", "_woken")

    def __init__(self, listener: Listener, messages: tuple[Message, ...]) -> None:
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


class Watcher(Protocol):
    """Who hears every message of a channel, and knows when there may be others."""

    def opened(self, channel: bytes) -> None:
        """Messages arrive from now on."""

    def heard(self, message: bytes) -> None:
        """Take one."""

    def lost(self, channel: bytes) -> None:
        """Messages may be missed from now on."""


class Listener:
    """
    The process's push connection to one server: what it is subscribed to, and who waits for what.

    *sharded*: the channels belong to slots of a cluster (SSUBSCRIBE), and leave the server together with them.
    """

    def __init__(self, endpoint: Endpoint, deadline: float, *, sharded: bool = False) -> None:
        self._sharded = b"s" if sharded else b""
        self._endpoint = endpoint
        self._deadline = deadline
        self._pool = endpoint.sync_pool(deadline, deadline) if endpoint.own is None else None
        self._changed = threading.Condition(threading.RLock())  # re-entrant: as in stats.Counters
        self._waiting: dict[Message, list[Registration]] = {}
        self._watchers: dict[bytes, weakref.WeakSet[Watcher]] = {}
        self._channels: set[bytes] = set()  # wanted
        self._subscribed: set[bytes] = set()  # confirmed on this connection
        self._asked: deque[bytes] = deque()  # not yet answered on this connection, in order
        self._refused: dict[bytes, float] = {}  # when the server last would not have it
        self._connection: Any = None
        self._wanted = 0.0  # when somebody last waited
        self._thread: threading.Thread | None = None

    def ready(self, channel: bytes) -> bool:
        """Return whether messages arrive now, so that ``register`` does not have to wait."""
        return channel in self._subscribed

    def register(self, channel: bytes, digest: bytes, chunks: bool = False) -> Registration:
        """
        Return a registration for the message that the flight of *digest* has landed; with *chunks* also for more of a
        running stream.  Raises BackendUnavailable if no message can arrive.
        """
        kinds = (b"d", b"r") if chunks else (b"d",)
        messages = tuple((channel, kind + digest) for kind in kinds)
        with self._changed:
            self._want(channel)
            registration = Registration(self, messages)
            for message in messages:
                self._waiting.setdefault(message, []).append(registration)
            # one deadline to connect, one to subscribe
            answered = self._changed.wait_for(
                lambda: channel in self._subscribed or channel not in self._channels, self._deadline * 2
            )
            if channel not in self._subscribed:
                registration.close()
                why = "was refused" if answered else f"within {self._deadline * 2} s"
                raise BackendUnavailable(f"{self._endpoint.label}: no subscription: {why}")
        return registration

    def watch(self, channel: bytes, watcher: Watcher) -> None:
        """Tell *watcher*, as long as it lives, what is said on *channel*.  Does not wait for the subscription."""
        with self._changed:
            watchers = self._watchers.setdefault(channel, weakref.WeakSet())
            self._want(channel)
            watchers.add(watcher)
            if channel in self._subscribed:
                watcher.opened(channel)

    def unwatch(self, channel: bytes, watcher: Watcher) -> None:
        """Tell *watcher* no more."""
        with self._changed:
            watchers = self._watchers.get(channel)
            if watchers is not None and watcher in watchers:
                watchers.discard(watcher)
                watcher.lost(channel)

    def _want(self, channel: bytes) -> None:
        self._wanted = time.monotonic()
        if channel not in self._channels and self._wanted - self._refused.get(channel, -_PAUSE) >= _PAUSE:
            self._channels.add(channel)
            self._subscribe(channel)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="askonce-listener", daemon=True)
            self._thread.start()

    def remove(self, messages: tuple[Message, ...], registration: Registration) -> None:
        """Forget a registration."""
        with self._changed:
            for message in messages:
                waiting = self._waiting.get(message)
                if waiting and registration in waiting:
                    waiting.remove(registration)
                    if not waiting:
                        del self._waiting[message]

    def leave(self, channels: tuple[bytes, ...]) -> None:
        """Wake who waits for something on *channels*, and hear them no more, but for others who watch."""
        with self._changed:
            self._wake(*(message for message in self._waiting if message[0] in channels))
            for channel in self._channels.intersection(channels):
                if self._watchers.get(channel):
                    continue
                self._watchers.pop(channel, None)
                self._channels.discard(channel)
                self._subscribed.discard(channel)
                self._send(self._sharded + b"UNSUBSCRIBE", channel)
            if not self._channels:  # nobody is left: do not sleep on
                self._wanted = 0.0
                self._send("PING")

    def _run(self) -> None:
        while not self._ends():
            try:
                self._listen()
            except (RedisError, OSError, BackendUnavailable):
                with self._changed:
                    self._wake(*self._waiting)
                time.sleep(_PAUSE)

    def _ends(self) -> bool:
        """Return whether the thread is to end: nobody waits or watches any more."""
        with self._changed:
            if self._is_wanted():
                return False
            self._channels.clear()
            self._watchers.clear()
            self._thread = None
            return True

    def _is_wanted(self) -> bool:
        if self._waiting or self._is_watched():
            self._wanted = time.monotonic()
        return time.monotonic() - self._wanted < _IDLE_S

    def _is_watched(self) -> bool:
        return any(self._watchers.values())

    def _listen(self) -> None:
        if self._endpoint.prepare is not None:
            self._endpoint.prepare()
        connection: Any = self._pool.make_connection() if self._pool else Push(self._endpoint.own)
        connection.connect()
        try:
            with self._changed:
                self._connection = connection
                self._asked.clear()
                for channel in self._channels:
                    self._subscribe(channel)
            asked = False
            while self._is_wanted():
                if connection.can_read(self._deadline if asked else _TURN):
                    asked = False
                    try:
                        self._heard(connection.read_response(disable_decoding=True))
                    except ResponseError:
                        with self._changed:
                            if self._asked:
                                self._give_up(self._asked.popleft())
                elif asked:
                    raise BackendUnavailable("the push connection does not answer")
                elif self._waiting or self._is_watched():  # a silent connection may be a dead one
                    asked = True
                    with self._changed:
                        self._send("PING")
        finally:
            with self._changed:
                self._connection = None
                self._subscribed.clear()
                for channel, watchers in self._watchers.items():
                    for watcher in watchers:
                        watcher.lost(channel)
            connection.disconnect()

    def _send(self, *command: bytes | str) -> None:
        """Send a command if there is a connection; who reads will notice if that fails."""
        if self._connection is not None:
            with contextlib.suppress(RedisError, OSError):
                self._connection.send_packed_command([pack(command)], check_health=False)

    def _subscribe(self, channel: bytes) -> None:
        # One command a channel: channels of several slots may not be asked for together.
        self._asked.append(channel)
        self._send(self._sharded + b"SUBSCRIBE", channel)

    def _give_up(self, channel: bytes) -> None:
        """Leave a channel that is another server's now, or is not permitted."""
        with self._changed:
            self._refused[channel] = time.monotonic()
            self._channels.discard(channel)
            self._subscribed.discard(channel)
            self._changed.notify_all()
            self._wake(*(message for message in self._waiting if message[0] == channel))
            for watcher in self._watchers.pop(channel, ()):
                watcher.lost(channel)

    def _heard(self, message: Any) -> None:
        if not isinstance(message, list) or len(message) != 3:
            return  # the answer to a PING
        kind, channel, _ = message
        if kind in {b"message", b"smessage"}:
            with self._changed:
                for watcher in self._watchers.get(channel, ()):
                    watcher.heard(message[2])
            if message[2][:1] in {b"d", b"r"}:
                self._wake((channel, message[2]))
        elif kind == b"sunsubscribe" and channel in self._channels and channel not in self._asked:
            self._give_up(channel)  # its slot has left this server
        elif kind in {b"subscribe", b"ssubscribe"}:
            with self._changed:
                if self._asked:
                    self._asked.popleft()
                if channel in self._channels:
                    self._subscribed.add(channel)
                    self._changed.notify_all()
                    for watcher in self._watchers.get(channel, ()):
                        watcher.opened(channel)
                # who registered before may have missed a message
                self._wake(*(message for message in self._waiting if message[0] == channel))

    def _wake(self, *messages: Message) -> None:
        with self._changed:
            woken = [registration for message in messages for registration in self._waiting.pop(message, [])]
        for registration in woken:
            _done(registration.woken)


def _done(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Listeners:
    """The listeners of this process, one for each server that it asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[Hashable, Listener] = {}

    def of(self, endpoint: Endpoint, deadline: float, *, sharded: bool = False) -> Listener:
        """Return the listener of a server."""
        options = tuple(
            (name, value if isinstance(value, Hashable) else id(value))
            for name, value in sorted(endpoint.options.items())
        )
        with self._lock:
            key = (endpoint.connection_class, options, id(endpoint.own), deadline, sharded)
            if key not in self._listeners:
                self._listeners[key] = Listener(endpoint, deadline, sharded=sharded)
            return self._listeners[key]

    def start_anew(self) -> None:
        """Forget all, in a forked child: their locks, sockets and threads are the parent's."""
        self.__init__()  # type: ignore[misc]


LISTENERS: Final = Listeners()
