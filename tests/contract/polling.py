"""Waiting for what others do: every wait has a deadline, and nothing sleeps in the hope that it was long enough."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Any, TypeVar

import redis

T = TypeVar("T")

_TIMES = struct.Struct(">3Q")  # created, fresh until, retained until: bytes 16 to 39 of the header


def until(condition: Callable[[], T], seconds: float = 10.0, pause: float = 0.005) -> T:
    """Return what *condition* returns as soon as it is true; fail after *seconds*."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"it did not happen within {seconds} s"
        time.sleep(pause)
    return value


def registered(namespace: Any) -> bool:
    """Return whether a caller of this process waits for a message from Redis, about whichever partition."""
    return any(node is not None and node.listener._waiting for node in namespace.nodes)


def tick(raw: redis.Redis, milliseconds: int = 3) -> None:
    """Return in a later millisecond of the server: what happens from now on is used later than all before."""

    def now() -> int:
        seconds, micros = raw.time()
        return seconds * 1000 + micros // 1000

    start = now()
    until(lambda: now() >= start + milliseconds, pause=0.0005)


def age(raw: redis.Redis, key: str, seconds: float) -> None:
    """Make the entry under *key* as old as if it had been stored *seconds* earlier; Redis keeps it as long."""
    data = raw.get(key)
    assert isinstance(data, bytes), f"nothing is stored under {key}"
    times = (time_ms - round(seconds * 1000) for time_ms in _TIMES.unpack_from(data, 16))
    raw.setrange(key, 16, _TIMES.pack(*times))
