"""Many programs at once, interleaved at random, over a model of the scripts."""

from __future__ import annotations

import collections
import traceback
from dataclasses import replace

import pytest

from askonce import Policy

from .fleet import DIGESTS, Weather, World

CALM = Weather()
STALE = Policy(ttl=0.3, stale_while_revalidate=0.5, stale_if_error=2, lease=1, max_wait=60, jitter=0.3)
ALL = ("ask", "ask", "ask", "many", "begin", "lookup")
INVALIDATING = (*ALL, "invalidate", "tag", "bump")

WEATHERS = {
    "calm": CALM,
    "all kinds of calls": replace(CALM, kinds=ALL),
    "crowded": replace(CALM, tasks=60, span_ms=100, processes=2, kinds=ALL),
    "stale": replace(CALM, policy=STALE, kinds=ALL, tasks=40),
    "functions fail": replace(CALM, boom=0.4, kinds=ALL),
    "functions fail, old answers stand in": replace(CALM, boom=0.5, policy=STALE, kinds=ALL, tasks=40),
    "answers are refused": replace(CALM, refused=0.4, kinds=ALL),
    "callers are cancelled": replace(CALM, cancelled=0.5, kinds=ALL),
    "entries are invalidated": replace(CALM, kinds=(*ALL, "invalidate")),
    "tags are invalidated": replace(CALM, kinds=(*ALL, "tag")),
    "generations are bumped": replace(CALM, kinds=(*ALL, "bump")),
    "everything is invalidated": replace(CALM, policy=STALE, kinds=INVALIDATING, tasks=40),
    "callers want new answers": replace(CALM, kinds=("ask", "unread", "unread", "invalidate", "tag"), tasks=40),
    "messages are lost": replace(CALM, lost_message=0.5, kinds=ALL),
    "requests are lost": replace(CALM, lost_request=0.15, kinds=INVALIDATING),
    "replies are lost": replace(CALM, lost_reply=0.15, kinds=INVALIDATING),
    "leases are not renewed": replace(CALM, renews=False, compute_ms=(100, 2500), kinds=INVALIDATING),
    "the clock steps": replace(CALM, clock_steps=4, kinds=INVALIDATING, policy=STALE),
    "keys are lost": replace(CALM, lost_keys=6, kinds=INVALIDATING),
    "everything": replace(
        CALM, boom=0.2, refused=0.1, cancelled=0.2, lost_request=0.03, lost_reply=0.03, lost_message=0.1,
        lost_keys=2, policy=STALE, kinds=(*INVALIDATING, "unread"), tasks=40,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WEATHERS)
def test_whatever_the_order(name):
    """
    Whatever the order of events: every caller is answered, with an answer to its own question that was not computed
    before an invalidation that had returned when it asked; at most one computes under a live lease; nobody sleeps
    through a landing; no flight, registration or lease is left behind.
    """
    failures: dict[str, list[int]] = collections.defaultdict(list)
    seeds = range(100)
    for seed in seeds:
        try:
            World(seed, WEATHERS[name]).run()
        except Exception as error:
            failures["".join(traceback.format_exception(error)[-2:])].append(seed)
    assert not failures, "\n".join(f"seeds {found}: {what}" for what, found in failures.items())


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_in_calm_weather_each_question_is_computed_once(processes):
    """All processes together call the function once a key."""
    for seed in range(40):
        world = World(seed, replace(CALM, processes=processes, kinds=("ask", "many")))
        world.run()
        assert all(count == 1 for count in collections.Counter(world.computations).values())
        assert world.total("computed") == len(set(world.computations)) <= len(DIGESTS)
        assert world.total("bypassed") == 0


def test_without_renewal_the_first_to_finish_serves_all():
    """A lease shorter than the computation is no livelock: something is stored, and nobody computes for ever."""
    weather = replace(
        CALM, renews=False, compute_ms=(2500, 2600), span_ms=50, tasks=30, processes=6, kinds=("ask",)
    )
    for seed in range(20):
        world = World(seed, weather)
        world.run()
        assert world.last_answer < 3 * 2600 + 1000
        assert world.total("stored") >= 1


def test_a_caller_waits_for_a_failed_leader_no_longer_than_it_lives():
    """Whoever waits for a leader that was cancelled leads within moments, not at the end of the lease."""
    weather = replace(
        CALM, cancelled=0.6, compute_ms=(300, 400), span_ms=50, tasks=16, processes=4, kinds=("ask",)
    )
    weather = replace(weather, policy=replace(CALM.policy, lease=30))
    for seed in range(30):
        world = World(seed, weather)
        world.run()
        if world.quiet_leases:
            assert world.last_answer < 16 * 400 + 1000
