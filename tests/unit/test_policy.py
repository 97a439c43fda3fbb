"""Lifetimes: arithmetic on frozen values."""

from __future__ import annotations

import dataclasses
import math
import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce import ConfigurationError, Freshness, Policy, Refused
from askonce.policy import seconds, size

DAY = 86_400


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (0, 0.0),
        (90, 90.0),
        (0.25, 0.25),
        (timedelta(minutes=2), 120.0),
        (timedelta(milliseconds=5), 0.005),
        ("250ms", 0.25),
        ("90s", 90.0),
        ("15m", 900.0),
        ("24h", 86_400.0),
        ("7d", 7.0 * DAY),
        ("2w", 14.0 * DAY),
        ("1.5h", 5400.0),
        (" 10 s ", 10.0),
        ("0s", 0.0),
        (3650 * DAY, 3650.0 * DAY),
        ("3650d", 3650.0 * DAY),
    ],
)
def test_durations(given_, expected):
    """A duration is seconds, a timedelta, or a number with one unit."""
    found = seconds("ttl", given_)

    assert found == pytest.approx(expected)
    assert type(found) is float


@pytest.mark.parametrize(
    "given_",
    ["", "10", "s", "ten seconds", "10 parsecs", "1h30m", "-5s", "+5s", "1e3s", "10S", "1,5h", ".5s", "5.s",
     None, True, False, [10], b"10s", math.nan, {"s": 1}],
)  # fmt: skip
def test_what_is_no_duration_is_refused(given_):
    """The message names the argument, what was given, and what is allowed."""
    with pytest.raises(ConfigurationError) as error:
        seconds("max_age", given_)

    expected = "give seconds, a timedelta, or text such as '90s', '15m', '24h', '7d'"
    assert str(error.value) == f"max_age={given_!r} is no duration: {expected}"


@pytest.mark.parametrize(
    "given_",
    [
        -1,
        -0.001,
        timedelta(seconds=-1),
        3650 * DAY + 1,
        "3651d",
        "9999w",
        math.inf,
        -math.inf,
        timedelta.max,
        10**400,
    ],
)
def test_durations_out_of_range_are_refused(given_):
    """Neither the past nor more than ten years."""
    with pytest.raises(ConfigurationError, match=r"ttl=.* is out of range: give 0 s to 3650 days"):
        seconds("ttl", given_)


def test_a_duration_may_have_a_lower_bound():
    """What is too short for its purpose is refused with the bound."""
    assert seconds("lease", 0.05, at_least=0.05) == 0.05
    with pytest.raises(ConfigurationError, match=r"lease='49ms' is out of range: give 0.05 s to 3650 days"):
        seconds("lease", "49ms", at_least=0.05)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [(1, 1), (10**12, 10**12), ("100b", 100), ("64kb", 65_536), ("512mb", 536_870_912), ("2gb", 2_147_483_648),
     ("2GB", 2_147_483_648), (" 1 Kb ", 1024)],
)  # fmt: skip
def test_sizes(given_, expected):
    """A size is bytes, or a number with a unit, powers of 1024."""
    assert size("max_bytes", given_) == expected


@pytest.mark.parametrize(
    "given_",
    [
        "",
        "10",
        "mb",
        "1.5mb",
        "-1mb",
        "0mb",
        "1tb",
        "1 m b",
        0,
        -5,
        1.5,
        True,
        None,
        b"1mb",
        [1],
        "9" * 5000 + "b",
    ],
)
def test_what_is_no_size_is_refused(given_):
    """The message names the argument, what was given, and what is allowed."""
    with pytest.raises(ConfigurationError) as error:
        size("max_bytes", given_)

    expected = "give a positive number of bytes, or text such as '64kb', '512mb', '2gb'"
    assert str(error.value) == f"max_bytes={given_!r} is no size: {expected}"


def test_the_default_policy():
    """A day, nothing stale, no jitter; leases of ten seconds, two minutes of patience."""
    policy = Policy()

    assert (policy.ttl_ms, policy.window_ms, policy.jitter) == (DAY * 1000, 0, 0.0)
    assert (policy.lease_ms, policy.max_wait_s) == (10_000, 120.0)


@pytest.mark.parametrize("name", ["ttl", "stale_while_revalidate", "stale_if_error", "lease", "max_wait"])
def test_durations_of_a_policy_are_checked(name):
    """Each is named in the message, and each takes text."""
    assert getattr(Policy(**{name: "90s"}), name) == 90.0
    for wrong in ("soon", -1, True, math.inf):
        with pytest.raises(ConfigurationError, match=f"^{name}="):
            Policy(**{name: wrong})


@pytest.mark.parametrize(("name", "wrong"), [("ttl", 0), ("ttl", "0.5ms"), ("lease", 0), ("lease", "10ms")])
def test_what_would_be_over_at_once_is_refused(name, wrong):
    """An entry that is never fresh, and a lease that ends before the call begins, are mistakes."""
    with pytest.raises(ConfigurationError, match=f"^{name}={wrong!r} is out of range"):
        Policy(**{name: wrong})


@pytest.mark.parametrize("jitter", [-0.1, 1, 1.0, 2, "0.1", None, True, math.nan, math.inf])
def test_what_is_no_fraction_is_refused(jitter):
    """Jitter is a fraction below one."""
    with pytest.raises(
        ConfigurationError, match=r"^jitter=.* is no fraction: give 0 \(none\) up to, not including, 1"
    ):
        Policy(jitter=jitter)


def test_policies_are_values():
    """Equal if their lifetimes are, frozen, and they survive pickling and ``replace``."""
    policy = Policy(ttl="1h", stale_if_error="1d", jitter=0.5)

    assert policy == Policy(ttl=3600, stale_if_error=DAY, jitter=0.5)
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert dataclasses.replace(policy, ttl="2h").ttl_ms == 7_200_000
    assert policy.but(ttl="5m") == Policy(ttl=300, stale_if_error=DAY, jitter=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.ttl = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        Policy(3600)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("preset", "fresh", "window"),
    [(Policy.short, 900, 3600), (Policy.medium, DAY, DAY), (Policy.long, 30 * DAY, 7 * DAY)],
)
def test_presets_are_what_their_docstrings_say(preset, fresh, window):
    """Fifteen minutes, a day, a month; retained for the longer of the two windows."""
    policy = preset()

    assert (policy.ttl_ms, policy.window_ms) == (fresh * 1000, window * 1000)
    assert 0 < policy.jitter < 1


@pytest.mark.parametrize(
    ("revalidate", "error", "expected"), [(0, 0, 0), (5, 0, 5000), (0, 5, 5000), (5, 3, 5000), (3, 5, 5000)]
)
def test_an_entry_is_retained_for_the_longer_window(revalidate, error, expected):
    """Both windows begin at the end of freshness."""
    assert Policy(stale_while_revalidate=revalidate, stale_if_error=error).window_ms == expected


FRESH, STALE, EXPIRED, DEAD = Freshness.FRESH, Freshness.STALE, Freshness.EXPIRED, Freshness.DEAD
UNTIL = 1_000_000


@pytest.mark.parametrize(
    ("revalidate", "error", "expected"),
    [
        (0, 0, {-1: FRESH, 0: DEAD, 1: DEAD}),
        (2, 0, {-1: FRESH, 0: STALE, 1999: STALE, 2000: DEAD}),
        (0, 2, {-1: FRESH, 0: EXPIRED, 1999: EXPIRED, 2000: DEAD}),
        (2, 5, {-1: FRESH, 0: STALE, 1999: STALE, 2000: EXPIRED, 4999: EXPIRED, 5000: DEAD}),
        (5, 2, {-1: FRESH, 0: STALE, 4999: STALE, 5000: DEAD}),
    ],
)
def test_what_an_age_allows(revalidate, error, expected):
    """Each boundary to the millisecond: an entry is fresh until its time, not at it."""
    policy = Policy(ttl=10, stale_while_revalidate=revalidate, stale_if_error=error)

    assert {late: policy.judge(UNTIL, UNTIL + late) for late in expected} == expected


policies = st.builds(
    Policy,
    ttl=st.floats(0.001, 3650 * DAY),
    stale_while_revalidate=st.floats(0, 10 * DAY),
    stale_if_error=st.floats(0, 10 * DAY),
    jitter=st.floats(0, 1, exclude_max=True),
)


@given(policies, st.none() | st.integers(1, 3650 * DAY * 1000), st.floats(0, 1, exclude_max=True))
def test_jitter_only_shortens(policy, ttl_ms, draw):
    """No lifetime is longer than asked for, none is nothing, and without a draw it is as asked."""
    full = policy.ttl_ms if ttl_ms is None else ttl_ms
    found = policy.lifetime_ms(ttl_ms, draw)

    assert 1 <= found <= full
    assert found >= math.floor(full * (1 - policy.jitter))
    assert policy.lifetime_ms(ttl_ms, 0.0) == full


@given(policies, st.integers(0, 2**45), st.integers(0, 2**45))
def test_age_never_improves_an_entry(policy, one, other):
    """As time passes an entry only goes from fresh to stale to expired to dead, and dead it is not retained."""
    order = [FRESH, STALE, EXPIRED, DEAD]
    earlier, later = sorted((one, other))

    assert order.index(policy.judge(UNTIL, UNTIL + earlier)) <= order.index(
        policy.judge(UNTIL, UNTIL + later)
    )
    assert policy.judge(UNTIL, UNTIL + policy.window_ms + 1) is DEAD


def test_a_refusal_has_a_reason():
    """The reason is what it is counted by."""
    refusal = Refused("cut short")

    assert refusal.reason == "cut short"
    assert "cut short" in str(refusal)


def test_hot_is_checked():
    """Uses are a whole number, times are durations, and each message names its part."""
    from askonce import Hot

    hot = Hot(threshold=3, window="1h", ttl="6h", max_age="7d")
    assert (hot.threshold, hot.window_ms, hot.ttl_ms, hot.max_age_ms) == (
        3, 3_600_000, 21_600_000, 604_800_000,
    )  # fmt: skip
    wrongs: list[dict[str, Any]] = [
        {"threshold": 0},
        {"threshold": 1.5},
        {"threshold": True},
        {"threshold": "10"},
    ]
    for wrong in wrongs:
        with pytest.raises(ConfigurationError, match=r"^hot threshold=.*give a whole number from 1"):
            Hot(**wrong)
    for name in ("window", "ttl", "max_age"):
        with pytest.raises(ConfigurationError, match=f"^hot {name}='soon' is no duration"):
            Hot(**{name: "soon"})
    with pytest.raises(ConfigurationError, match=r"^hot=10 is no Hot: give askonce.Hot"):
        Policy(hot=10)  # type: ignore[arg-type]


@pytest.mark.parametrize("early", [-1, 101, True, "1", None, math.nan])
def test_early_is_checked(early):
    """The factor of early refreshes is a number from 0 to 100."""
    with pytest.raises(ConfigurationError, match=r"^early=.* is no factor"):
        Policy(early=early)


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 100_000), st.integers(1, 10**9))
def test_early_refreshes(draw, cost_ms, left_ms):
    """Off at factor 0; certain at the end; the likelier the costlier and the nearer the end."""
    policy = Policy(early=1.0)
    early = policy.is_early(UNTIL + left_ms, UNTIL, cost_ms, draw)

    assert not Policy().is_early(UNTIL + left_ms, UNTIL, cost_ms, draw)
    assert policy.is_early(UNTIL, UNTIL, cost_ms, draw)
    if early:
        assert policy.is_early(UNTIL + left_ms - 1, UNTIL, cost_ms, draw)
        assert policy.is_early(UNTIL + left_ms, UNTIL, cost_ms + 1000, draw)
        assert Policy(early=2.0).is_early(UNTIL + left_ms, UNTIL, cost_ms, draw)


def test_early_refreshes_follow_the_published_rule():
    """``now - cost * factor * ln(1 - draw) >= end``: of uses one cost before the end, 1/e refresh."""
    policy = Policy(early=1.0)
    draws = [number / 10_000 for number in range(10_000)]
    share = sum(policy.is_early(UNTIL + 1000, UNTIL, 1000, draw) for draw in draws) / len(draws)

    assert share == pytest.approx(math.exp(-1), abs=0.001)
