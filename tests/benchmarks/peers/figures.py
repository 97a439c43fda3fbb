"""The arithmetic: ratios within a round, their median and spread, who is better at what."""

from __future__ import annotations

import statistics
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A median over rounds, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Return the figure of some values, one or more."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    @classmethod
    def between(cls, values: Sequence[float]) -> Figure:
        """Return the figure of a few values: their median, and the least and the most of them."""
        return cls(statistics.median(values), min(values), max(values))

    def overlaps(self, other: Figure) -> bool:
        """Whether the middle halves of both have a value in common."""
        return self.low <= other.high and other.low <= self.high


def ratios(times: Mapping[str, Sequence[float]], base: str, *, inverse: bool = False) -> dict[str, Figure]:
    """
    Return for each name the figure of its times, each divided by the time of *base* in the same round.

    ``inverse``: of the base's time by its own, which is its throughput.  A name with fewer rounds than *base* (it
    failed on the way) is left out.
    """
    bases = times[base]
    figures = {}
    for name, own in times.items():
        if len(own) == len(bases):
            pairs = zip(own, bases, strict=True)
            figures[name] = Figure.of([theirs / mine if inverse else mine / theirs for mine, theirs in pairs])
    return figures


def better(figures: Mapping[str, Figure], than: str, *, higher: bool) -> list[str]:
    """Return the names whose median beats that of *than*, the best first."""
    if than not in figures:
        return []
    bar, sign = figures[than].median, -1 if higher else 1
    ahead = [name for name, figure in figures.items() if sign * figure.median < sign * bar]
    return sorted(ahead, key=lambda name: sign * figures[name].median)


def lru_hits(trace: Iterable[int], entries: int) -> float:
    """Return the hit rate of exact least recent use with room for *entries*."""
    kept: OrderedDict[int, None] = OrderedDict()
    hits = count = 0
    for number in trace:
        count += 1
        if number in kept:
            hits += 1
            kept.move_to_end(number)
        else:
            kept[number] = None
            if len(kept) > entries:
                kept.popitem(last=False)
    return hits / count
