"""
The threads that run what the sync driver detaches: refreshes, upkeep, streams whose consumer has gone.

Daemon threads over a ``SimpleQueue``: the garbage collector may call in at any time, and a process that ends does not
wait for a model's answer that nobody will read.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

_MOST_THREADS: Final = 8
#: A thread that has had nothing to do for so long ends.
_IDLE_S: Final = 1.0

_log = logging.getLogger("askonce")


class Background:
    """A queue of work and up to eight threads for it, started as they are needed."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._changed = threading.Condition()
        self._unfinished = 0
        self._threads = 0

    def submit(self, work: Callable[[], object]) -> None:
        """Run *work* soon, in some thread; what it raises is logged."""
        with self._changed:
            self._unfinished += 1
            self._queue.put(work)  # under the lock: a thread that is about to end looks again
            start = self._threads < min(self._unfinished, _MOST_THREADS)
            self._threads += start
        if start:
            try:
                threading.Thread(target=self._run, name="askonce-background", daemon=True).start()
            except RuntimeError:  # the interpreter is shutting down
                with self._changed:
                    self._threads -= 1

    def settle(self, seconds: float) -> None:
        """Wait until all work is done, at most *seconds*."""
        with self._changed:
            self._changed.wait_for(lambda: self._unfinished <= 0, seconds)

    def _run(self) -> None:
        while True:
            try:
                work = self._queue.get(timeout=_IDLE_S)
            except Empty:
                with self._changed:
                    if self._queue.empty():
                        self._threads -= 1
                        return
                continue
            try:
                work()
            except BaseException:  # noqa: BLE001  whatever it is (sys.exit too), it must not end the thread
                _log.exception("work in the background failed")
            finally:
                del work  # a thread that waits keeps nothing alive
                with self._changed:
                    self._unfinished -= 1
                    self._changed.notify_all()
