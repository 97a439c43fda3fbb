"""The arithmetic of the comparison."""

import pytest

from tests.benchmarks.peers.figures import Figure, better, lru_hits, ratios


def figure(value):
    return Figure(value, value, value)


def test_a_ratio_is_taken_within_its_round():
    """A round in which the machine was slow for everybody changes no ratio."""
    found = ratios({"base": [1.0, 10.0, 2.0], "peer": [3.0, 30.0, 6.0]}, "base")

    assert found == {"base": figure(1.0), "peer": figure(3.0)}


def test_throughput_is_the_inverse():
    """Who takes a quarter of the time has four times the throughput."""
    assert ratios({"base": [4.0, 8.0], "peer": [1.0, 2.0]}, "base", inverse=True)["peer"] == figure(4.0)


def test_a_peer_that_failed_on_the_way_has_no_figure():
    """A median of fewer rounds than the others' is not shown."""
    assert set(ratios({"base": [1.0, 1.0], "peer": [1.0]}, "base")) == {"base"}


def test_a_figure_is_the_median_and_the_quartiles():
    """The quartiles are those of the values themselves."""
    assert Figure.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Figure(3.0, 2.0, 4.0)
    assert Figure.of([7.0]) == figure(7.0)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Figure(2, 1, 3), Figure(4, 3, 5), True),
        (Figure(2, 1, 2.5), Figure(4, 3, 5), False),
        (Figure(4, 1, 9), Figure(4, 3, 5), True),
    ],
)
def test_figures_overlap_if_their_middle_halves_do(one, other, expected):
    """Touching counts, on either side."""
    assert (one.overlaps(other), other.overlaps(one)) == (expected, expected)


def test_better_is_less_time_or_more_hits():
    """The best comes first; who is equal is not better."""
    figures = {"ours": figure(2), "a": figure(1.5), "b": figure(1), "c": figure(2), "d": figure(3)}

    assert better(figures, "ours", higher=False) == ["b", "a"]
    assert better(figures, "ours", higher=True) == ["d"]
    assert better(figures, "nobody", higher=True) == []


def test_exact_least_recent_use():
    """A use keeps a key; the one that was used the longest ago goes."""
    assert lru_hits([1, 2, 1, 3, 1, 2], 2) == 2 / 6
