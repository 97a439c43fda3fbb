"""
The heartbeat: one thread of the process renews the leases of computations under way, every third of their time.

A thread even for asyncio: a loop that a computation keeps busy could not renew its own lease.  It ends when there has
been nothing to renew for a while.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .._effects import Renewal
from ..errors import BackendUnavailable

#: A computation that takes longer has been forgotten by its caller: then somebody else may try.
_LONGEST_S: Final = 3600.0
_IDLE_S: Final = 5.0


@dataclass(slots=True)
class _Kept:
    due: float
    until: float


class Renewals:
    """The leases to be kept."""

    def __init__(self, renew: Callable[[Renewal], object], each_turn: Callable[[], object]) -> None:
        self._renew = renew
        self._each_turn = each_turn
        self._condition = threading.Condition()
        self._kept: dict[Renewal, _Kept] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self._poked = False

    def add(self, renewal: Renewal) -> None:
        """Keep a lease until it is discarded."""
        now = time.monotonic()
        with self._condition:
            self._kept[renewal] = _Kept(now + renewal.lease_ms / 3000, now + _LONGEST_S)
            if self._thread is None:
                self._closed = False
                self._thread = threading.Thread(target=self._run, name="askonce-renewals", daemon=True)
                self._thread.start()
            self._condition.notify()

    def discard(self, renewal: Renewal) -> None:
        """Let a lease go."""
        with self._condition:
            self._kept.pop(renewal, None)

    def poke(self) -> None:
        """Take a turn now.  May be called by the garbage collector."""
        with self._condition:
            self._poked = True
            self._condition.notify()

    def close(self) -> None:
        """End the thread, unless there is a lease to keep."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    def _run(self) -> None:
        while (due := self._next()) is not None:
            self._each_turn()
            for renewal in due:
                # The next turn tries again; a lost lease costs a second computation, never an answer.
                with contextlib.suppress(BackendUnavailable):
                    self._renew(renewal)

    def _next(self) -> list[Renewal] | None:
        """Wait for leases that are due and return them; None ends the thread."""
        idle_since = time.monotonic()
        with self._condition:
            while True:
                now = time.monotonic()
                due = self._due(now)
                if due or self._poked:
                    self._poked = False
                    return due
                soonest = min((kept.due for kept in self._kept.values()), default=None)
                if soonest is not None:
                    self._condition.wait(soonest - now)
                    idle_since = time.monotonic()
                elif self._closed or now - idle_since >= _IDLE_S:
                    self._thread = None
                    return None
                else:
                    self._condition.wait(_IDLE_S)

    def _due(self, now: float) -> list[Renewal]:
        due = []
        for renewal, kept in list(self._kept.items()):
            if kept.until < now:
                del self._kept[renewal]
            elif kept.due <= now:
                kept.due = now + renewal.lease_ms / 3000
                due.append(renewal)
        return due
