"""
A thread for what must not run where it is noticed: a stream may be closed by the garbage collector, under any lock.

``SimpleQueue.put`` is re-entrant and meant for destructors; ``queue.Queue.put`` is not.  The thread is started ahead of
need, never by a destructor.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

_log = logging.getLogger("askonce")


class Detached:
    """A queue of work, and one daemon thread that does it."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._lock = threading.Lock()
        self._process = 0  # in which the thread runs: a forked child needs another one

    def start(self) -> None:
        """Have a thread ready; cheap when there is one."""
        if self._process == os.getpid():
            return
        with self._lock:
            if self._process != os.getpid():
                self._queue = SimpleQueue()
                threading.Thread(
                    target=self._run, args=(self._queue,), name="askonce-openai", daemon=True
                ).start()
                self._process = os.getpid()

    def put(self, work: Callable[[], object]) -> None:
        """Run *work* soon, in the thread; what it raises is logged."""
        self._queue.put(work)

    def settle(self, seconds: float) -> bool:
        """Wait until all work that was put before is done, at most *seconds*; return whether it is."""
        self.start()
        done = threading.Event()
        self.put(done.set)
        return done.wait(seconds)

    @staticmethod
    def _run(queue: SimpleQueue[Callable[[], object]]) -> None:
        while True:
            work = queue.get()
            try:
                work()
            except BaseException:  # noqa: BLE001  whatever it is, it must not end the thread
                _log.exception("a stream that was left could not be concluded")
            del work  # it holds a flight


detached = Detached()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=detached.__init__)  # type: ignore[misc]  # its lock may be held
