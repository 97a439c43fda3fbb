"""Counters, and what is made of them."""

from __future__ import annotations

import threading
from dataclasses import fields

import pytest

from askonce import Stats, Usage
from askonce.stats import Counters, from_counters


def test_what_is_added_is_taken_once():
    """Taking empties; looking does not."""
    counters = Counters()
    counters.add("hits")
    counters.add("hits", 2)
    counters.add("misses", 0)
    counters.add_reason("bypassed", "backend")

    expected = {"hits": 3, "bypassed": 1, "bypassed:backend": 1}
    assert counters.peek() == expected
    assert counters.peek() == expected
    assert counters.take() == expected
    assert (counters.take(), counters.peek()) == ({}, {})


def test_what_was_taken_can_be_given_back():
    """What surely did not reach Redis is added to what has come since."""
    counters = Counters()
    counters.add("hits", 3)
    taken = counters.take()
    counters.add("hits")
    counters.give_back(taken)

    assert counters.take() == {"hits": 4}


def test_what_is_looked_at_is_a_copy():
    """Whoever changes what was shown changes no counter."""
    counters = Counters()
    counters.add("hits")
    counters.peek()["hits"] = 100

    assert counters.peek() == {"hits": 1}


def test_threads_lose_nothing():
    """Many threads add while one takes and gives back: the sum is exact."""
    counters, found = Counters(), Counters()
    running = threading.Event()
    running.set()

    def add() -> None:
        for number in range(3000):
            counters.add("hits")
            counters.add_reason("bypassed", "ab"[number % 2])

    def take() -> None:
        turn = 0
        while running.is_set():
            taken = counters.take()
            (counters if turn % 3 else found).give_back(taken)
            turn += 1

    adders = [threading.Thread(target=add) for _ in range(6)]
    taker = threading.Thread(target=take)
    for thread in (*adders, taker):
        thread.start()
    for thread in adders:
        thread.join()
    running.clear()
    taker.join()
    found.give_back(counters.take())

    assert found.take() == {"hits": 18_000, "bypassed": 18_000, "bypassed:a": 9000, "bypassed:b": 9000}


def test_stats_of_counters():
    """Each counter has its field, reasons are grouped, and what a newer version counts is passed over."""
    stats = from_counters(
        {
            "hits": 2,
            "bypassed": 3,
            "bypassed:backend": 1,
            "bypassed:max_wait": 2,
            "rejected": 1,
            "rejected:empty: 3": 1,
            "hits:of a newer version": 4,
            "unheard of": 5,
            "fleet": 6,
            "bypass_reasons": 7,
        },
        fleet=True,
    )

    assert stats == Stats(
        hits=2,
        bypassed=3,
        bypass_reasons={"backend": 1, "max_wait": 2},
        rejected=1,
        rejection_reasons={"empty: 3": 1},
    )


@pytest.mark.parametrize(
    ("counters", "expected"),
    [
        ({}, 0.0),
        ({"hits": 1}, 1.0),
        ({"misses": 4}, 0.0),
        ({"hits": 3, "misses": 1}, 0.75),
        ({"hits": 1, "stale": 1, "misses": 2, "stale_if_error": 2}, 1.0),
        ({"hits": 1, "misses": 3, "computed": 3, "bypassed": 9}, 0.25),
    ],
)
def test_the_hit_rate(counters, expected):
    """The served part of all look-ups; an answer that stood in for an error was a miss before."""
    assert from_counters(counters, fleet=True).hit_rate == expected


def test_every_counter_starts_at_nothing():
    """Stats without counters are zeros of the whole fleet."""
    stats = Stats()

    for field in fields(Stats):
        assert getattr(stats, field.name) in (0, {}, True)


def test_usage_is_a_value():
    """What the books hold, beside their bounds."""
    usage = Usage(entries=1, bytes=64, max_entries=2, max_bytes=128)

    assert usage.known
    assert usage == Usage(entries=1, bytes=64, max_entries=2, max_bytes=128)
    with pytest.raises(TypeError):
        Usage(1, 64, 2, 128)  # type: ignore[misc]
