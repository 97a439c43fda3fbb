"""Stand-ins for a model: functions that count their calls, and one that answers when it is told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any


def counting(
    delay: float = 0.0, error: BaseException | None = None, value: str = "answer"
) -> tuple[Callable[..., str], list[tuple[Any, ...]]]:
    """Return a function that counts its calls, and the list of them."""
    lock, calls = threading.Lock(), []

    def fn(*args: Any) -> str:
        with lock:
            calls.append(args)
            number = len(calls)
        if delay:
            time.sleep(delay)
        if error:
            raise error
        return f"{value} {number}"

    return fn, calls


class Gate:
    """A function that answers once it is opened: ``gate.entered`` is set as soon as it is called."""

    def __init__(self, value: Any = "answer", error: BaseException | None = None) -> None:
        self.value, self.error, self.calls = value, error, 0
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> Any:
        """Be the upstream."""
        self.calls += 1
        self.entered.set()
        assert self.opened.wait(20), "nobody opened the gate"
        if self.error:
            raise self.error
        return self.value

    def wait(self) -> None:
        """Return once the function was called."""
        assert self.entered.wait(10), "nobody called the function"

    def open(self) -> None:
        """Let it answer."""
        self.opened.set()
