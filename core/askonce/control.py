"""
Per-call control: what a block of code asks of the caches inside it, through any framework.

A context variable carries it, so that it follows a task and a thread started with a copied context, and nothing
else.  An inner block refines the outer one: tags and scope add up, every other word replaces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from .errors import ConfigurationError
from .keys import check_scope, tag_hash
from .policy import Duration, seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """
    What holds for a call.

    ``read`` and ``write``: whether stored answers may be served, and new ones stored.  ``ttl`` is the freshness
    lifetime of what is stored, ``max_age`` the greatest age that is served (RFC 9111, 5.2.1.1), both in seconds.
    ``only_if_cached``: never compute (RFC 9111, 5.2.1.7).
    """

    read: bool = True
    write: bool = True
    ttl: float | None = None
    max_age: float | None = None
    tags: tuple[str, ...] = ()
    scope: Mapping[str, object] = field(default_factory=dict)
    only_if_cached: bool = False


NONE: Final = Control()

_current: ContextVar[Control] = ContextVar("askonce_control", default=NONE)


@contextmanager
def control(
    *,
    read: bool | None = None,
    write: bool | None = None,
    ttl: Duration | None = None,
    max_age: Duration | None = None,
    tags: Sequence[str] = (),
    scope: Mapping[str, object] | None = None,
    only_if_cached: bool | None = None,
) -> Iterator[None]:
    """
    Change the calls inside the block, whichever framework makes them.

    Raises ConfigurationError for a word that is out of range.  What is not given stays as the outer block has it.
    """
    outer = _current.get()
    if scope is not None:
        check_scope(scope)
    inner = Control(
        read=outer.read if read is None else read,
        write=outer.write if write is None else write,
        ttl=outer.ttl if ttl is None else seconds("ttl", ttl, at_least=0.001),
        max_age=outer.max_age if max_age is None else seconds("max_age", max_age),
        tags=outer.tags + checked_tags(tags),
        scope={**outer.scope, **(scope or {})},
        only_if_cached=outer.only_if_cached if only_if_cached is None else only_if_cached,
    )
    reset = _current.set(inner)
    try:
        yield
    finally:
        _current.reset(reset)


#: Return the Control in force here; ``NONE`` outside every block.
current = _current.get


def checked_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Return *tags*, or raise ConfigurationError; one text alone is one tag, not its letters."""
    if not isinstance(tags, Iterable):
        raise ConfigurationError(f"tags={tags!r} is {type(tags).__name__}; give a tag or a sequence of tags")
    given = (tags,) if isinstance(tags, str) else tuple(tags)
    for tag in given:
        tag_hash(tag)
    return given
