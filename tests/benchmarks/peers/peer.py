"""
A cache that is compared: what it can do, in the words of the benchmark.

A peer overrides what it has.  What it has not raises Lacks, with the reason that stands in the table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

#: How long every answer is to be kept, where a cache takes a lifetime.
TTL_S = 86_400


class Lacks(Exception):
    """A feature that a peer does not have, or not in a way that can be compared: the reason."""


class Peer:
    """Made inside a running event loop, from the server's URL, with the peer's own default settings."""

    #: The distributions whose versions the table gives.
    packages: ClassVar[tuple[str, ...]] = ()
    #: What a hit is asked by.
    asked_by: ClassVar[str] = "key"
    #: What of the measured call is to be known, to compare it fairly.
    note: ClassVar[str] = ""

    #: Whether answers are kept on the server; otherwise they are in the process.
    on_server: ClassVar[bool] = True

    def __init__(self, url: str) -> None:
        self.url = url

    def store(self, number: int, text: str) -> None:
        """Store the answer *text* for question *number*."""
        raise Lacks("async only")

    def hit(self, number: int) -> str | bytes | None:
        """Return what is stored for question *number*."""
        raise Lacks("async only")

    async def astore(self, number: int, text: str) -> None:
        """Do what ``store`` does."""
        raise Lacks("sync only")

    async def ahit(self, number: int) -> str | bytes | None:
        """Do what ``hit`` does."""
        raise Lacks("sync only")

    def framework(self) -> Callable[[int], object]:
        """Return a call of the framework that this cache answers for; it returns None if a model was asked."""
        raise Lacks("of no framework")

    def ask(self, name: str, compute: Callable[[], str]) -> object:
        """Return what is stored as *name*, or what *compute* returns, by the peer's own get-or-compute."""
        raise Lacks("no get-or-compute")

    async def aask(self, name: str, compute: Callable[[], Awaitable[str]]) -> object:
        """Do what ``ask`` does."""
        raise Lacks("no get-or-compute")

    def bounded(self, entries: int) -> Peer:
        """Return a peer that keeps at most *entries*, by a bound of its own."""
        raise Lacks("no bound of its own")
