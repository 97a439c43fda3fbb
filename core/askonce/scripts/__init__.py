"""
The Lua scripts, one file an operation, and what each answers.

The head comment of a script is its contract: signature, answer, keys, invariants.  Everything that changes Redis
goes through them, but for the touch of a hit and the counters.  A script's Python side is its name and the type of
its answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Final, Generic, NamedTuple, TypeVar

R = TypeVar("R")

#: What a script may be given: numbers are sent in decimal.
Arg = bytes | str | int


class Controlled(NamedTuple):
    """The answer of ``control``."""

    now_ms: int
    word: bytes
    written: int


#: The first item of a ``Leased``; see lease.lua.
FOUND, GRANTED, HELD, FAILED, OUTDATED = 1, 2, 3, 4, 5


class Leased(NamedTuple):
    """The answer of ``lease``; ``entry`` if FOUND, ``fence`` if GRANTED or HELD, ``text`` if FAILED."""

    code: int
    now_ms: int
    word: bytes
    entry: bytes = b""
    fence: int = 0
    left_ms: int = 0
    text: str = ""
    token: bytes = b""

    @property
    def sequence(self) -> int:
        """The tag sequence when the computation under this lease began."""
        sequence, _, _ = self.token.partition(b"-")
        return int(sequence) if sequence.isdigit() else 0


#: The first item of a ``Stored``; see store.lua.
STORED, REPLACED, FENCED_OFF, TOO_LARGE, MOVED = 1, 2, -1, -2, -3


class Stored(NamedTuple):
    """The answer of ``store``."""

    code: int
    now_ms: int
    swept: int
    evicted: int
    over: int
    victims: list[bytes]


class Trimmed(NamedTuple):
    """The answer of ``trim``."""

    now_ms: int
    swept: int
    evicted: int
    over: int
    victims: list[bytes]


class Healed(NamedTuple):
    """The answer of ``heal``."""

    dropped: int
    adopted: int


def _leased(reply: list[Any]) -> Leased:
    code, now_ms, word, *rest = reply
    match code:
        case 1:
            return Leased(code, now_ms, word, entry=rest[0])
        case 2:
            return Leased(code, now_ms, word, fence=rest[0])
        case 3:
            return Leased(code, now_ms, word, fence=rest[0], left_ms=rest[1], token=rest[2])
        case 4:
            return Leased(code, now_ms, word, text=rest[0].decode("utf-8", "replace"))
        case _:
            return Leased(code, now_ms, word)


def _source(name: str) -> str:
    source = resources.files(__name__).joinpath(f"{name}.lua").read_text("utf-8")
    return _source("_books") + source if source.startswith("-- uses _books") else source


@dataclass(frozen=True, slots=True)
class Script(Generic[R]):
    """A Lua script and the decoder of its answer."""

    name: str
    decode: Callable[[Any], R] = field(repr=False, compare=False)
    source: str = field(init=False, repr=False, compare=False)
    sha: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        source = _source(self.name)
        object.__setattr__(self, "source", source)
        # Redis names a script by its SHA-1.
        object.__setattr__(self, "sha", hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def _bytes(reply: Any) -> bytes:
    return bytes(reply)


CONTROL: Final = Script("control", Controlled._make)
LEASE: Final = Script("lease", _leased)
RENEW: Final = Script("renew", bool)
RELEASE: Final = Script("release", bool)
STORE: Final = Script("store", Stored._make)
TRIM: Final = Script("trim", Trimmed._make)
HEAL: Final = Script("heal", Healed._make)
FORGET: Final = Script("forget", int)
BUMP: Final = Script("bump", _bytes)
TAG: Final = Script("tag", _bytes)
SLIDE: Final = Script("slide", int)
PUBLISH: Final = Script("publish", int)

ALL: Final[tuple[Script[Any], ...]] = (
    CONTROL, LEASE, RENEW, RELEASE, STORE, TRIM, HEAL, FORGET, BUMP, TAG, SLIDE, PUBLISH,
)  # fmt: skip
