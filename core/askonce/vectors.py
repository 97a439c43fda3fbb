"""
How an embedding is written: its numbers as they are, little-endian, four bytes each if that loses nothing, else eight.

Most providers compute in 32 bits, so that four bytes mostly do.  Nothing is ever rounded: a hit equals the miss.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Sequence, Sized
from typing import Final, Literal

from .policy import Refused

_WIDTHS: Final[dict[bytes, Literal["f", "d"]]] = {b"f": "f", b"d": "d"}


class VectorCodec:
    """
    Writes and reads the vectors of one batch: numbers little-endian, in four bytes each where that loses nothing.

    A ``Codec`` for ``get_or_compute_many``; make one for each batch.
    """

    name = "vector"

    def __init__(self) -> None:
        #: Whether the lengths of vectors that were embedded together differ.
        self.ragged = False

    def note(self, vectors: Sequence[Sequence[float]]) -> None:
        """Note what was embedded together: if it is ragged, none of it is stored."""
        self.ragged = self.ragged or ragged(vectors)

    def encode(self, value: Sequence[float]) -> bytes:
        """Return *value* as bytes; raise Refused if it is no vector, or not to be trusted."""
        if self.ragged:
            raise Refused("ragged")
        try:
            wide = array("d", () if isinstance(value, bytes | bytearray) else list(value))
        except (TypeError, ValueError, OverflowError):
            wide = array("d")
        # What does not compare equal is no float: a hit would differ.
        if not wide or wide.tolist() != list(value) or not all(map(math.isfinite, wide)):
            raise Refused("vector")
        narrow = array("f", wide)
        return b"f" + _little(narrow) if narrow == wide else b"d" + _little(wide)

    def decode(self, data: bytes) -> list[float]:
        """Return a new list; raise if `encode` cannot have written *data*."""
        numbers: array[float] = array(_WIDTHS[data[:1]])
        numbers.frombytes(data[1:])
        if not numbers:
            raise ValueError("no numbers")
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers.tolist()


def ragged(vectors: Sequence[Sequence[float]]) -> bool:
    """Return whether the lengths of *vectors* differ."""
    return len({len(vector) if isinstance(vector, Sized) else 0 for vector in vectors}) > 1


def _little(numbers: array[float]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
