"""
The publisher: one thread of the process publishes the chunks of running streams, for followers in other processes.

It gathers for some 50 ms, so that a stream costs a bounded number of writes however small its chunks are, and neither
the producer nor its consumer waits for Redis.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from .._programs import Held
from .._tapes import Tape
from ..errors import BackendUnavailable

_GATHER_S: Final = 0.05
_IDLE_S: Final = 1.0  # then the thread ends
_MOST: Final = 1000  # chunks of one call, see publish.lua


@dataclass(slots=True, eq=False)
class _Running:
    held: Held
    tape: Tape
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while chunks are on their way


class Publisher:
    """The running streams whose chunks are published: *publish* returns 0 once the lease, or the list, is lost."""

    def __init__(self, publish: Callable[[Held, int, list[bytes]], int]) -> None:
        self._publish = publish
        self._condition = threading.Condition()
        self._running: dict[Tape, _Running] = {}
        self._thread: threading.Thread | None = None

    def add(self, held: Held, tape: Tape) -> None:
        """Publish what is recorded on *tape* until it ends."""
        with self._condition:
            self._running[tape] = _Running(held, tape)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="askonce-publisher", daemon=True)
                self._thread.start()
            self._condition.notify()

    def take(self, tape: Tape) -> tuple[int, list[bytes]] | None:
        """
        Publish no more of *tape*; return how many chunks were published, and the others.

        None if publishing has failed: then what was published is not the beginning of anything.
        """
        with self._condition:
            one = self._running.pop(tape, None)
        if one is None:
            return None
        with one.lock:  # at most one exchange long
            return one.sent, tape.chunks[one.sent :]

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            with self._condition:
                if not self._running and not self._condition.wait_for(lambda: self._running, _IDLE_S):
                    self._thread = None
                    return
                running = list(self._running.values())
            for one in running:
                if one.tape.ended or not self._advance(one):
                    with self._condition:
                        self._running.pop(one.tape, None)
            pause.wait(_GATHER_S)

    def _advance(self, one: _Running) -> bool:
        with one.lock:
            if one.tape not in self._running:
                return False
            chunks = one.tape.chunks[one.sent : one.sent + _MOST]
            if not chunks:
                return True
            try:
                going_on = self._publish(one.held, one.sent, chunks) > 0
            except BackendUnavailable:
                return False  # followers elsewhere take the entry, or call for themselves
            one.sent += len(chunks)
            return going_on
