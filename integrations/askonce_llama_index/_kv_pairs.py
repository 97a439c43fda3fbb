"""What a key-value store holds: a key of any length beside its value, found by the digest of the key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any, Final, TypeAlias, TypeVar

import ormsgpack

from askonce import Uncacheable

#: What LlamaIndex keeps under a key: a mapping that JSON can hold.
Value: TypeAlias = dict[str, Any]

T = TypeVar("T")

#: What one round trip writes at most, and reads where the sizes are known.
_ITEMS: Final = 500
_BYTES: Final = 4 << 20

#: Refused as JSON refuses them, rather than changed on the way.
_AS_JSON: Final = (
    ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_UUID
)


def digest(key: str) -> str:
    """Return the 40 letters by which *key* is found; raise TypeError for what is not text."""
    if not isinstance(key, str):
        raise TypeError(f"the key {key!r} is {type(key).__qualname__}: give text")
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def to_json(key: str, value: Value) -> bytes:
    """Return the pair as JSON; raise Uncacheable, a TypeError, for what JSON cannot hold."""
    try:
        return json.dumps([key, value], separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Uncacheable(f"the value of {key[:80]!r} is not JSON: {error}") from None


def pack(key: str, value: Value) -> bytes:
    """
    Return the pair as MessagePack, or as JSON where MessagePack has no form of it; raise as ``to_json`` does.

    A vector takes less than half the room, and a tenth of the time to read.
    """
    try:
        return ormsgpack.packb([key, value], default=_plain, option=_AS_JSON)
    except TypeError:  # keys that JSON makes text, integers beyond 64 bits, lone surrogates of a broken PDF
        return to_json(key, value)


def unpack(data: bytes) -> tuple[str, Value]:
    """Return the pair in *data*; raise ValueError if ``pack`` cannot have written it."""
    pair = json.loads(data) if data[:1] == b"[" else ormsgpack.unpackb(data)
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
        raise ValueError("no pair of key and value")
    return pair[0], pair[1]


def batches(sized: Iterable[tuple[T, int]]) -> Iterator[list[T]]:
    """Cut items, each given with its size in bytes, into what one round trip carries; one item is never too large."""
    batch: list[T] = []
    room = _BYTES
    for item, size in sized:
        if batch and (len(batch) == _ITEMS or size > room):
            yield batch
            batch, room = [], _BYTES
        batch.append(item)
        room -= size
    if batch:
        yield batch


def _plain(value: object) -> object:
    """Return what JSON writes of a value of another type: of ``ObjectType.TEXT``, which is text, the text."""
    if isinstance(value, Enum) and isinstance(value, str | int | float):
        return value.value
    raise TypeError(type(value).__qualname__)
