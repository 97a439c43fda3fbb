"""Filling a cache ahead of demand."""

import threading

import pytest

from askonce import ConfigurationError, Uncacheable, WarmReport

from .upstream import counting


def test_what_was_warmed_is_found(driver):
    """Each request is computed once, however often it is given; what is stored already is left alone."""
    driver.store("a", "stored")
    model, calls = counting()
    report = driver.warm(["a", "b", "c", "b"], model)

    assert (report.requests, report.computed, report.found, report.failures) == (4, 2, 2, ())
    assert sorted(calls) == [("b",), ("c",)]
    assert driver.lookup("a").value == "stored"
    assert driver.get_or_compute("b", lambda: pytest.fail("asked again")).startswith("answer")
    assert driver.warm(["a", "b", "c"], model).found == 3


def test_a_failure_is_listed_and_stops_nothing(driver):
    """With its request and what it raised; a request without a canonical form is one."""

    def model(request):
        if request == "bad":
            raise ValueError("no")
        return request

    nothing = object()
    report = driver.warm(["a", "bad", nothing, "b"], model)
    assert (report.requests, report.computed) == (4, 2)
    failures = dict(report.failures)
    assert isinstance(failures["bad"], ValueError)
    assert isinstance(failures[nothing], Uncacheable)
    assert driver.lookup("b").value == "b"


def test_no_more_run_at_a_time_than_allowed(driver):
    """And no more are read from the requests than run."""
    lock, running, most, ahead = threading.Lock(), 0, 0, []
    finished = 0

    def requests():
        for number in range(40):
            ahead.append(number - finished)
            yield number

    def model(number):
        nonlocal running, most, finished
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
            finished += 1
        return number

    assert driver.warm(requests(), model, concurrency=3).computed == 40
    assert most <= 3
    assert max(ahead) <= 4


def test_progress_is_told_after_each_request(driver):
    """As a report so far; the last one is what is returned."""
    seen: list[WarmReport] = []
    report = driver.warm(["a", "b"], lambda request: request, concurrency=1, on_progress=seen.append)
    assert [one.requests for one in seen] == [1, 2]
    assert seen[-1] == report


class Interrupt(BaseException):
    """What is nobody's failure."""


def test_an_interrupt_ends_it(driver):
    """What is no request's failure is raised, and no further request is asked."""
    model, calls = counting(error=Interrupt())
    with pytest.raises(Interrupt):
        driver.warm(range(100), model, concurrency=1)
    assert len(calls) < 5


def test_words_of_a_call_hold_for_all(driver):
    """Tags and lifetimes."""
    driver.warm(["a", "b"], lambda request: request, ttl="5m", tags=["t"])
    assert driver.lookup("a").ttl <= 300
    driver.invalidate_tag("t")
    assert driver.get_many(["a", "b"]) == [None, None]


@pytest.mark.parametrize("concurrency", [0, True, 1.5, 10_000, "many"])
def test_a_concurrency_that_is_none_is_refused(driver, concurrency):
    """With what is allowed."""
    with pytest.raises(ConfigurationError, match="concurrency="):
        driver.warm(["a"], lambda request: request, concurrency=concurrency)


def test_without_redis_it_says_what_was_not_stored(make_driver):
    """The answers are not found later; the report says so."""
    driver = make_driver(at="redis://127.0.0.1:1/0", deadline=0.1)
    assert driver.warm(["a", "b"], lambda request: request).bypassed == 2
