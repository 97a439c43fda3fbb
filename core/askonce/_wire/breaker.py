"""
What stops asking a server that does not answer.

Open for half a second after a failure, twice as long after each further one, at most half a minute; then one caller
probes while the others stay out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import RLock
from typing import Final

from ..stats import Event

_FIRST: Final = 0.5
_LONGEST: Final = 30.0


class Breaker:
    """The breaker of one server, shared by threads and event loops.  *tell* hears of every opening and closing."""

    __slots__ = ("_clock", "_failures", "_lock", "_probing", "_server", "_tell", "_until")

    def __init__(
        self,
        server: str = "",
        tell: Callable[[Event], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._tell = tell
        self._clock = clock
        self._lock = RLock()  # as in stats.Counters
        self._failures = 0
        self._until = 0.0
        self._probing = False

    def allows(self) -> bool:
        """Return whether to ask.  After a pause the first caller may, as the probe."""
        if not self._failures:  # the common case takes no lock
            return True
        with self._lock:
            now = self._clock()
            if now < self._until:
                return False
            self._until, self._probing = now + _FIRST, True
            return True

    @property
    def troubled(self) -> bool:
        """Whether the last exchange failed."""
        return self._failures > 0

    def failed(self, why: str, *, for_long: bool = False) -> None:
        """Note that the server did not answer; *for_long* if only its operator can mend it."""
        with self._lock:
            now = self._clock()
            if self._failures and now < self._until and not self._probing and not for_long:
                return  # callers that were under way together are one failure
            self._probing = False
            pause = _LONGEST if for_long else min(_LONGEST, _FIRST * 2 ** min(self._failures, 16))
            self._until = now + pause
            self._failures += 1
        self._tell(Event("breaker-opened", self._server, why, pause))

    def succeeded(self) -> None:
        """Note that it did."""
        if self._failures:
            with self._lock:
                self._failures, self._probing = 0, False
            self._tell(Event("breaker-closed", self._server, "it answers", 0.0))
