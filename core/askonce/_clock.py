"""The server's clock, as far as a process knows it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Clock:
    """Follows the server's clock by the times in its replies; steps of the local clock do not matter."""

    offset_ms: float = field(default_factory=lambda: (time.time() - time.monotonic()) * 1000)

    def now(self) -> float:
        """Return the server's time in milliseconds, as far as it is known."""
        return time.monotonic() * 1000 + self.offset_ms

    def note(self, answer: object, before: float, after: float) -> None:
        """Learn from an answer that carries the server's time; *before* and *after* are of time.monotonic()."""
        now_ms = getattr(answer, "now_ms", None)
        if now_ms is not None:
            self.offset_ms = now_ms - (before + after) * 500
