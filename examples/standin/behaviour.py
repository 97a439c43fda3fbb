"""How the stand-in behaves (latency, errors) and what it has counted: two plain values."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Literal

Fault = Literal["429", "500"]

# How an answer travels is no part of what was asked: streamed and whole, the same request gets the same answer.
_TRANSPORT = frozenset({"stream", "stream_options"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """Latency of an answer in seconds, from and to, and the share of requests that are refused."""

    seed: int = 7
    latency: tuple[float, float] = (0.2, 0.8)
    error_rate: float = 0.03

    def dice(self, digest: str, attempt: int) -> Random:
        """The chance of one attempt at one request, whatever else is asked before it or at the same time."""
        return Random(f"{self.seed}:{digest}:{attempt}")

    def fault(self, dice: Random) -> Fault | None:
        """The error this attempt meets, if any."""
        if dice.random() >= self.error_rate:
            return None
        return "429" if dice.random() < 0.5 else "500"

    def seconds(self, dice: Random) -> float:
        """The time this answer takes: mostly near the lower third, as a provider's is."""
        low, high = self.latency
        return dice.triangular(low, high, low + (high - low) / 3)


@dataclass(slots=True, kw_only=True)
class Stats:
    """What has reached the stand-in.

    `calls` are the requests it answered, `distinct` how many of them differed from each other; `errors` are
    the requests it refused, which are no calls.
    """

    calls: int = 0
    distinct: int = 0
    streams: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)


def digest_of(body: Mapping[str, object]) -> str:
    """The identity of a request, for the stand-in's dice and counters."""
    asked = {name: part for name, part in body.items() if name not in _TRANSPORT}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
