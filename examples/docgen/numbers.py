"""What a round's calls add up to: counts, percentiles, tokens and money. No I/O, so that it can be checked by hand."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from askonce import Source
from examples.docgen.records import Call

# List prices of gpt-4.1-mini in US dollars, as published in 2025: what is saved is an estimate, not an invoice.
PRICED_MODEL = "gpt-4.1-mini"
USD_PER_MILLION_INPUT_TOKENS = 0.40
USD_PER_MILLION_OUTPUT_TOKENS = 1.60


@dataclass(frozen=True, slots=True, kw_only=True)
class Meters:
    """Readings of the counters that others keep: the provider's, and the cache's."""

    reached: int
    refused: int
    entries: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One round, or several added up: every call of every worker, and the meters' movement."""

    title: str
    calls: tuple[Call, ...]
    seconds: float
    reached: int
    refused: int
    entries: int
    bytes: int
    failures: tuple[str, ...] = field(default=())

    @property
    def asked(self) -> int:
        """Calls of the model as the application made them."""
        return len(self.calls)

    @property
    def questions(self) -> int:
        """How many of them were different questions."""
        return len({call.question for call in self.calls})

    @property
    def new_questions(self) -> int:
        """The questions that some worker had to put to the model."""
        return len({call.question for call in self.calls if call.computed})

    @property
    def hits(self) -> int:
        """Calls answered from Redis at once."""
        return len(self._from(Source.HIT))

    @property
    def coalesced(self) -> int:
        """Calls that waited for the same call of another worker instead of making it."""
        return len(self._from(Source.COALESCED))

    @property
    def hit_ms(self) -> list[float]:
        """How long hits took."""
        return [call.seconds * 1000 for call in self._from(Source.HIT)]

    @property
    def miss_ms(self) -> list[float]:
        """How long the calls took that reached the model."""
        return [call.seconds * 1000 for call in self.calls if call.computed]

    @property
    def tokens_saved(self) -> int:
        """Tokens of the answers that were not asked for again."""
        return sum(call.input_tokens + call.output_tokens for call in self.calls if not call.computed)

    @property
    def usd_saved(self) -> float:
        """The same in money, at list price."""
        return sum(usd(call.input_tokens, call.output_tokens) for call in self.calls if not call.computed)

    def _from(self, source: Source) -> list[Call]:
        return [call for call in self.calls if call.source is source]


def result(
    title: str,
    calls: Iterable[Call],
    *,
    failures: Iterable[str],
    seconds: float,
    before: Meters,
    after: Meters,
) -> Result:
    """What a round did, from its calls and two readings of the meters."""
    return Result(
        title=title,
        calls=tuple(calls),
        seconds=seconds,
        reached=after.reached - before.reached,
        refused=after.refused - before.refused,
        entries=after.entries,
        bytes=after.bytes,
        failures=tuple(failures),
    )


def total(results: Sequence[Result]) -> Result:
    """All rounds as one; what is in Redis is what the last one left."""

    def added(part: Callable[[Result], int]) -> int:
        return sum(map(part, results))

    return Result(
        title="all",
        calls=tuple(call for each in results for call in each.calls),
        seconds=math.fsum(each.seconds for each in results),
        reached=added(lambda each: each.reached),
        refused=added(lambda each: each.refused),
        entries=results[-1].entries,
        bytes=results[-1].bytes,
        failures=tuple(failure for each in results for failure in each.failures),
    )


def usd(input_tokens: int, output_tokens: int) -> float:
    """The list price of so many tokens."""
    return (
        input_tokens * USD_PER_MILLION_INPUT_TOKENS + output_tokens * USD_PER_MILLION_OUTPUT_TOKENS
    ) / 1_000_000


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The smallest value that `percent` % of the values do not exceed (nearest rank); None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
