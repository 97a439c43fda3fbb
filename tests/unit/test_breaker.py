"""What stops asking a server that does not answer."""

from __future__ import annotations

import threading

import pytest

from askonce import Event
from askonce._wire.breaker import Breaker


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def breaker(clock: Clock, told: list[Event]) -> Breaker:
    return Breaker("a server", told.append, clock)


def test_at_first_it_is_closed(breaker):
    """A server that has not failed is asked."""
    assert all(breaker.allows() for _ in range(5))


def test_it_opens_for_half_a_second(breaker, clock):
    """After a failure nobody asks for half a second."""
    breaker.failed("no answer")

    assert not breaker.allows()
    clock.now += 0.499
    assert not breaker.allows()
    clock.now += 0.002
    assert breaker.allows()


def test_one_caller_probes(breaker, clock):
    """Behind the pause one caller may ask; the others stay out until it has an answer."""
    breaker.failed("no answer")
    clock.now += 0.51

    assert [breaker.allows() for _ in range(4)] == [True, False, False, False]
    breaker.succeeded()
    assert all(breaker.allows() for _ in range(4))


def test_a_probe_that_never_returns_is_followed_by_another(breaker, clock):
    """A prober that was interrupted does not keep everybody out for good."""
    breaker.failed("no answer")
    clock.now += 0.51
    assert breaker.allows()
    clock.now += 1.0

    assert breaker.allows()


def test_the_pause_doubles_up_to_half_a_minute(breaker, clock):
    """Each failed probe doubles the pause, and after long outages it is thirty seconds."""
    pauses = []
    breaker.failed("no answer")
    for _ in range(40):
        start = clock.now
        while not breaker.allows():
            clock.now += 0.25
        pauses.append(clock.now - start)
        breaker.failed("no answer")

    assert pauses[:8] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert set(pauses[8:]) == {30.0}


def test_a_success_forgets_the_failures(breaker, clock):
    """After a recovery the next failure opens it for half a second again."""
    for _ in range(5):
        breaker.failed("no answer")
        clock.now += 31
        assert breaker.allows()
    breaker.succeeded()
    breaker.failed("no answer")
    clock.now += 0.51

    assert breaker.allows()


def test_calls_that_fail_together_are_one_failure(breaker, clock):
    """Twenty callers who waited for the same frozen server open it once, not for half a minute."""
    callers = [breaker.allows() for _ in range(20)]
    assert all(callers)
    for _ in callers:
        breaker.failed("no answer")
        clock.now += 0.001
    clock.now += 0.5

    assert breaker.allows()


def test_of_many_threads_one_probes(breaker, clock):
    """However many ask at the same moment, one is let through."""
    breaker.failed("no answer")
    clock.now += 0.6
    gate, allowed = threading.Barrier(8), []

    def ask() -> None:
        gate.wait()
        allowed.append(breaker.allows())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(allowed) == [False] * 7 + [True]


def test_what_only_the_operator_can_mend_opens_it_for_long(breaker, clock):
    """A missing permission is not asked for again in half a second."""
    breaker.failed("NOPERM", for_long=True)
    clock.now += 29.9
    assert not breaker.allows()
    clock.now += 0.2

    assert breaker.allows()


def test_operators_hear_of_openings_and_closings(breaker, clock, told):
    """Each opening is told with its reason and pause, each closing once; an answer in good times is no news."""
    breaker.succeeded()
    breaker.failed("no answer")
    clock.now += 0.6
    assert breaker.allows()
    breaker.succeeded()
    breaker.succeeded()

    assert [(event.kind, event.server, event.reason, event.pause) for event in told] == [
        ("breaker-opened", "a server", "no answer", 0.5),
        ("breaker-closed", "a server", "it answers", 0.0),
    ]


def test_operators_may_look_at_the_breaker_when_told(clock):
    """Whoever is told may ask the breaker: no lock is held meanwhile."""
    seen: list[bool] = []
    breaker = Breaker("a server", lambda _: seen.append(breaker.allows()), clock)
    breaker.failed("no answer")
    breaker.succeeded()

    assert seen == [False, True]
