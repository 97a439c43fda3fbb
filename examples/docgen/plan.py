"""Four rounds of work, and who does what in each: values, no processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from examples.docgen import prompts
from examples.docgen.records import Job, Kind
from examples.docgen.sources import Function

# How many workers are given the same job, in a window of so many jobs: close enough to ask at the same moment.
_ASKERS = 2
_WINDOW = 4
_AGENT_EVERY = 4  # an agent calls the model twice and says less; every fourth function is enough

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Round:
    """One pass of work over the code base, or several."""

    title: str
    story: str
    prompt_version: str = prompts.VERSION
    passes: int = 1
    edits: bool = False


ROUNDS = (
    Round("1 cold", "an empty cache: every question is new, and two workers ask it"),
    Round("2 again", "the same questions three times over, as when one iterates", passes=3),
    Round("3 edited", "some files changed: only changed functions are new", edits=True),
    Round("4 prompt v2", "the prompt's version is bumped: every question is new", prompts.NEXT_VERSION),
)


def jobs_for(functions: Sequence[Function], prompt_version: str) -> list[Job]:
    """All that is asked in one pass over these functions."""
    return [
        Job(kind, function, prompt_version)
        for index, function in enumerate(functions)
        for kind in Kind
        if kind is not Kind.AGENT or index % _AGENT_EVERY == 0
    ]


def deal(jobs: Sequence[T], workers: int, dice: Random) -> list[list[T]]:
    """A list for each worker: every job goes to two neighbours, who reach it at about the same time."""
    order = dice.sample(jobs, len(jobs))
    askers = min(_ASKERS, workers)
    hands: list[list[T]] = [[] for _ in range(workers)]
    for index, job in enumerate(order):
        for neighbour in range(askers):
            hands[(index + neighbour) % workers].append(job)
    return [_shuffled_in_windows(hand, dice) for hand in hands]


def _shuffled_in_windows(hand: list[T], dice: Random) -> list[T]:
    windows = [hand[start : start + _WINDOW] for start in range(0, len(hand), _WINDOW)]
    return [job for window in windows for job in dice.sample(window, len(window))]
