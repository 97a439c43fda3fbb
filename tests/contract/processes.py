"""
Processes of an application, made once and told what to do: ``spawn``, so that they share nothing but Redis.

A crew costs its start once a session.  Each member runs one function of this package at a time, by name, and reports
what it returns, or the error; a member that was killed is replaced by the next ``crew.hire``.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_context = multiprocessing.get_context("spawn")


def _live(pipe: Connection, events: Connection, barrier: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            module, name, words = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            fn = getattr(importlib.import_module(module), name)
            pipe.send((True, fn(Stage(events, barrier), **words)))
        except BaseException:  # the parent is told, whatever it is
            pipe.send((False, traceback.format_exc()))


class Stage:
    """What a process on stage has: a place to say what happens, and a barrier that all pass at once."""

    def __init__(self, events: Connection, barrier: Any) -> None:
        self._events, self._barrier = events, barrier

    def say(self, what: str, detail: Any = None) -> None:
        """Tell the test that something happened now; monotonic clocks of one machine agree."""
        # One write of less than 4 KB into a pipe is atomic: no lock that a killed process could keep.
        self._events.send((what, time.monotonic(), os.getpid(), detail))

    def together(self, count: int) -> None:
        """Return when *count* processes are here."""
        with self._barrier.get_lock():
            self._barrier.value += 1
        end = time.monotonic() + 30
        while self._barrier.value < count:
            assert time.monotonic() < end, "the others did not come"
            time.sleep(0.001)


class Member:
    """One process."""

    def __init__(self, events: Connection, barrier: Any) -> None:
        self.busy = False
        self.pipe, theirs = _context.Pipe()
        self.process = _context.Process(target=_live, args=(theirs, events, barrier), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self.process.pid is not None
        return self.process.pid

    def start(self, fn: Callable[..., Any], **words: Any) -> None:
        """Let it call *fn* with a stage and *words*."""
        self.busy = True
        self.pipe.send((fn.__module__, fn.__qualname__, words))

    def result(self, seconds: float = 30.0) -> Any:
        """Return what the function returned."""
        assert self.pipe.poll(seconds), f"process {self.pid} did not finish within {seconds} s"
        sound, value = self.pipe.recv()
        self.busy = False
        assert sound, f"in process {self.pid}:\n{value}"
        return value

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Crew:
    """A number of processes and what they said."""

    def __init__(self) -> None:
        self._members: list[Member] = []
        self._events, self._theirs = _context.Pipe(duplex=False)
        self._barrier = _context.Value("i", 0)
        self.said: list[tuple[str, float, int, Any]] = []

    def hire(self, count: int) -> list[Member]:
        """Return *count* members who are free; what was said before is forgotten."""
        for member in self._members:
            if (
                member.busy or not member.process.is_alive()
            ):  # left behind by a test that failed, or killed by one
                member.end()
        self._members = [member for member in self._members if member.process.is_alive()]
        while len(self._members) < count:
            self._members.append(Member(self._theirs, self._barrier))
        self.gather(0.0)
        self.said.clear()
        self._barrier.value = 0
        return self._members[:count]

    def gather(self, seconds: float = 0.05) -> None:
        """Take in what was said."""
        while self._events.poll(seconds):
            self.said.append(self._events.recv())
            seconds = 0.0

    def heard(self, what: str) -> list[tuple[float, int, Any]]:
        """Return when, by which process and with which detail something was said, in order of time."""
        return sorted(
            ((at, pid, detail) for word, at, pid, detail in self.said if word == what), key=lambda one: one[0]
        )

    def wait_for(self, what: str, count: int = 1, seconds: float = 20.0) -> list[tuple[float, int, Any]]:
        """Return what was heard once it was said *count* times."""
        end = time.monotonic() + seconds
        while len(found := self.heard(what)) < count:
            assert time.monotonic() < end, f"{what!r} was said {len(found)} times, not {count}: {self.said}"
            self.gather()
        return found

    def dismiss(self) -> None:
        """End all."""
        for member in self._members:
            member.end()
        self._members.clear()
