"""
Which adapter owns a call, where two of them are stacked: the outer one.

A framework's adapter that caches a call sets the mark around what it lets the framework ask of the provider; an adapter
below (under the framework's HTTP client, say) sees it and stays out of the way, so that nothing is looked up, waited
for or stored twice.  A context variable carries the mark, so it follows tasks and threads started with a copied
context.  A user's own ``get_or_compute`` sets none: what its function asks of a model is cached by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

#: A kind, and whether the call that set the mark is still under way.
_Mark: TypeAlias = tuple[str, Callable[[], bool]]

_marks: ContextVar[tuple[_Mark, ...]] = ContextVar("askonce_upstream", default=())


def _always() -> bool:
    return True


@contextmanager
def upstream(kind: str) -> Iterator[None]:
    """Mark the code inside as the provider's side of a call of this *kind* (``"llm"``, ``"embedding"``)."""
    reset = _marks.set((*_live(), (kind, _always)))
    try:
        yield
    finally:
        _marks.reset(reset)


def claim(kind: str, under_way: Callable[[], bool]) -> None:
    """Set the mark for the rest of this context, as long as ``under_way()``: for calls that are no block of code."""
    _marks.set((*_live(), (kind, under_way)))


def in_upstream(kind: str) -> bool:
    """Return whether an adapter further out owns calls of this *kind* here."""
    return any(marked == kind and under_way() for marked, under_way in _marks.get())


def _live() -> tuple[_Mark, ...]:
    return tuple(mark for mark in _marks.get() if mark[1]())
