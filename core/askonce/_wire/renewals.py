"""
The heartbeat: one thread of the process renews the leases of computations under way, every third of their time.

A thread even for asyncio: a loop that a computation keeps busy could not renew its own lease.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from .._effects import Renewal
from ..errors import BackendUnavailable

#: A computation that takes longer has been forgotten by its caller: then somebody else may try.
_LONGEST_S: Final = 3600.0


class Renewals:
    """The leases to be kept."""

    def __init__(self, renew: Callable[[Renewal], object], each_turn: Callable[[], object]) -> None:
        self._renew = renew
        self._each_turn = each_turn
        self._condition = threading.Condition()
        self._due: dict[Renewal, float] = {}
        self._until: dict[Renewal, float] = {}
        self._thread: threading.Thread | None = None

    def add(self, renewal: Renewal) -> None:
        """Keep a lease until it is discarded."""
        with self._condition:
            now = time.monotonic()
            self._due[renewal] = now + renewal.lease_ms / 3000
            self._until[renewal] = now + _LONGEST_S
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="askonce-renewals", daemon=True)
                self._thread.start()
            self._condition.notify()

    def discard(self, renewal: Renewal) -> None:
        """Let a lease go."""
        with self._condition:
            self._due.pop(renewal, None)
            self._until.pop(renewal, None)

    def _run(self) -> None:
        while True:
            due = self._next()
            try:
                self._each_turn()
                for renewal in due:
                    self._renew(renewal)
            except BackendUnavailable:
                pass  # the next turn tries again; a lost lease costs a second computation, never an answer

    def _next(self) -> list[Renewal]:
        with self._condition:
            while True:
                now = time.monotonic()
                due = [renewal for renewal, at in list(self._due.items()) if at <= now]
                if due:
                    for renewal in due:
                        self._due[renewal] = now + renewal.lease_ms / 3000
                        if self._until.get(renewal, 0.0) < now:
                            self.discard(renewal)
                    return due
                soonest = min(self._due.values(), default=None)
                self._condition.wait(None if soonest is None else soonest - now)
