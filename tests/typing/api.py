"""
The public API as its users type it.  Never run: mypy --strict and pyright read it.

``assert_type`` fails the check where the inferred type is another one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, assert_type

from askonce import (
    Admit,
    AsyncCache,
    AsyncLease,
    Cache,
    Codec,
    Difference,
    Duration,
    Event,
    Explanation,
    Freshness,
    Hot,
    Lease,
    Policy,
    Refused,
    Request,
    Served,
    Size,
    Source,
    Stats,
    Usage,
    Verbatim,
    control,
)


@dataclass
class Answer:
    """A user's own type."""

    text: str


class AnswerCodec:
    """A codec is anything of this shape; it inherits from nothing."""

    name = "answer"

    def encode(self, value: Answer) -> bytes:
        """Return bytes."""
        return value.text.encode()

    def decode(self, data: bytes) -> Answer:
        """Return what was encoded."""
        return Answer(data.decode())


codec: Codec[Answer] = AnswerCodec()


def admit(value: Answer) -> Duration | None:
    """Decide what is stored."""
    if not value.text:
        raise Refused("empty")
    return timedelta(minutes=5)


as_admit: Admit = admit
limit: Size = "64mb"


def hear(event: Event) -> None:
    """Hear of what an operator wants to know."""
    assert_type(event.kind, str)
    assert_type(event.pause, float)


# --- making a cache -----------------------------------------------------------------------------------------------

policy = Policy(
    ttl="24h",
    stale_while_revalidate=3600,
    stale_if_error=timedelta(days=1),
    jitter=0.1,
    hot=Hot(threshold=10),
)
cache = Cache(
    "redis://localhost:6379/0",
    namespace="docs",
    version="v3",
    policy=policy,
    max_entries=10_000,
    max_bytes=limit,
    partitions=4,
    deadline=0.1,
    admit=as_admit,
    on_event=hear,
)
assert_type(cache.scope(repo="a", tenant=7), Cache)
assert_type(cache.aio, AsyncCache)
assert_type(cache.policy, Policy)
assert_type(Policy.medium().but(ttl="1h"), Policy)
assert_type(policy.judge(5, 6), Freshness)


# --- the value's type is the function's ---------------------------------------------------------------------------


def answer() -> Answer:
    """Compute."""
    return Answer("an answer")


def number(client: object, text: str, *, model: str = "m") -> int:
    """Compute something else."""
    return len(text) + len(model)


assert_type(cache.get_or_compute("q", answer, codec=codec), Answer)
assert_type(cache.get_or_compute({"q": 1}, lambda: 3, ttl="1h", tags=["a"]), int)
assert_type(cache.serve(Request("chat", Verbatim({"b": 1})), answer), Served[Answer])
assert_type(cache.serve("q", answer).value, Answer)
assert_type(cache.serve("q", answer).source, Source)

found = cache.lookup("q")
if found is not None:
    assert_type(found.age, float)
    assert_type(found.source, Source)
assert_type(cache.store("q", "an answer", ttl=5, tags="a", cost=0.5), bool)
values: list[Any] = cache.get_or_compute_many(["a", "b"], lambda missing: [text.upper() for text in missing])
assert_type(cache.invalidate("q"), bool)
assert_type(cache.invalidate_tag("a"), bool)
assert_type(cache.bump(), int)
assert_type(cache.clear(), int)
assert_type(cache.stats(), Stats)
assert_type(cache.stats().hit_rate, float)
assert_type(cache.usage(), Usage)
assert_type(cache.explain("q", "p"), Explanation)
for difference in cache.explain("q", "p").differences:
    assert_type(difference, Difference)

plain = cache.memoize(number)
worded = cache.memoize(ttl="1h", ignore=["client"])(number)
assert_type(plain(object(), "a", model="n"), int)
assert_type(worded(object(), "a"), int)


@cache.memoize
def summary(text: str) -> Answer:
    """Keep the signature under the decorator."""
    return Answer(text)


assert_type(summary("a"), Answer)

outcome = cache.begin("q", usable=lambda value: bool(value), share_errors=False)
if isinstance(outcome, Lease):
    with outcome as lease:
        assert_type(lease, Lease)
        assert_type(lease.finish("an answer", ttl="1h", tags=["a"], cost=1.5), bool)
        assert_type(lease.fail(ValueError("no")), Served[Any] | None)
        lease.abandon(ValueError("no"))
else:
    assert_type(outcome.source, Source)

with control(read=False, write=True, ttl="5m", max_age=timedelta(hours=1), tags=["a"], scope={"tenant": 1}):
    pass

with cache as opened:
    assert_type(opened, Cache)


# --- the same, awaited --------------------------------------------------------------------------------------------


async def later() -> Answer:
    """Compute."""
    return Answer("an answer")


async def count(text: str) -> int:
    """Compute something else."""
    return len(text)


async def main(acache: AsyncCache) -> None:
    """Use the async cache."""
    assert_type(await acache.get_or_compute("q", later, codec=codec), Answer)
    assert_type(await acache.get_or_compute("q", later), Answer)
    inferred = await acache.get_or_compute("q", later, ttl="1h")
    assert_type(inferred, Answer)
    assert_type(await acache.get_or_compute("q", answer), Answer)
    assert_type(await acache.serve("q", later), Served[Answer])
    assert_type(acache.scope(repo="a"), AsyncCache)
    looked = await acache.lookup("q")
    if looked is not None:
        assert_type(looked.ttl, float)
    assert_type(await acache.store("q", 1), bool)
    assert_type(await acache.stats(), Stats)
    assert_type(await acache.bump(), int)

    memoized = acache.memoize(count)
    assert_type(await memoized("a"), int)
    again: Callable[[str], Awaitable[int]] = acache.memoize(ttl="1h")(count)
    assert_type(await again("a"), int)

    begun = await acache.begin("q")
    if isinstance(begun, AsyncLease):
        async with begun as held:
            assert_type(held, AsyncLease)
            assert_type(await held.finish("an answer"), bool)
            assert_type(await held.fail(ValueError("no")), Served[Any] | None)
    async with acache as entered:
        assert_type(entered, AsyncCache)
