"""How vectors are written: nothing is rounded, and nothing that is no vector is stored."""

from __future__ import annotations

import math
from array import array
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce import Refused, VectorCodec
from askonce.vectors import ragged

FINITE = st.floats(allow_nan=False, allow_infinity=False)
CODEC = VectorCodec()


@given(st.lists(FINITE, min_size=1))
def test_every_vector_comes_back_as_it_was(vector: list[float]) -> None:
    """To the last bit, the sign of zero included."""
    back = CODEC.decode(CODEC.encode(vector))
    assert [number.hex() for number in vector] == [number.hex() for number in back]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_of_32_bits_take_four_bytes(vector: list[float]) -> None:
    """What a provider computed in 32 bits is stored in as many, with one byte that says so."""
    data = CODEC.encode(vector)
    assert len(data) == 1 + 4 * len(vector)
    assert vector == CODEC.decode(data)


def test_other_numbers_take_eight() -> None:
    assert len(CODEC.encode([0.1, 0.5])) == 1 + 8 * 2
    assert len(CODEC.encode([1e300])) == 1 + 8  # beyond 32 bits


def test_the_bytes_are_those_of_any_machine() -> None:
    """Little-endian: processes of different machines share them."""
    assert CODEC.encode([1.0]) == b"f\x00\x00\x80\x3f"
    assert CODEC.decode(b"d\x9a\x99\x99\x99\x99\x99\xb9\x3f") == [0.1]


@pytest.mark.parametrize(
    "vector",
    [
        [1, 0, -3],
        (0.5, 0.25),
        np.array([0.1, 0.2]),
        [np.float64(0.1), np.float64(0.2)],
        list(np.array([0.1, 0.2], dtype=np.float32)),
        array("d", [0.1]),
    ],
    ids=lambda vector: type(vector).__name__,
)
def test_whatever_numbers_they_are(vector: Any) -> None:
    """Integers and numpy's numbers come back as equal floats, in a list."""
    back = CODEC.decode(CODEC.encode(vector))
    assert [float(number) for number in vector] == back
    assert {float} == set(map(type, back))


@pytest.mark.parametrize(
    "vector",
    [
        [],
        [math.nan, 1.0],
        [math.inf],
        [2**53 + 1],
        [10**400],
        [Decimal("0.1")],
        ["1.0"],
        [None],
        [[0.1], [0.2]],
        b"\x01\x02",
        "12",
        None,
        7,
        np.array([[0.1, 0.2]]),
    ],
    ids=repr,
)
def test_what_is_no_vector_is_refused(vector: Any) -> None:
    """Neither is what a float cannot hold exactly."""
    with pytest.raises(Refused, match="vector"):
        CODEC.encode(vector)


@pytest.mark.parametrize("data", [b"", b"f", b"d", b"x1234", b"f123", b"d1234567"])
def test_what_was_not_written_so_is_not_read(data: bytes) -> None:
    with pytest.raises((KeyError, ValueError)):
        CODEC.decode(data)


def test_vectors_of_different_lengths_are_ragged() -> None:
    """What has no length counts as empty."""
    broken: Any = [[1.0], None]
    assert not ragged([])
    assert not ragged([[1.0, 2.0], [3.0, 4.0]])
    assert ragged([[1.0], [1.0, 2.0]])
    assert ragged(broken)


def test_a_ragged_batch_is_refused_whole() -> None:
    """Which of its vectors is the wrong one cannot be known."""
    codec = VectorCodec()
    codec.note([[1.0], [1.0, 2.0]])
    codec.note([[1.0], [2.0]])
    with pytest.raises(Refused, match="ragged"):
        codec.encode([1.0])
