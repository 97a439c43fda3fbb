"""What both caches do on every promised server."""

import threading
import time

import pytest

from askonce import Policy, Source


def counting(delay=0.0, error=None, value="answer"):
    """Return a function that counts its calls, and the list of them."""
    lock, calls = threading.Lock(), []

    def fn(*args):
        with lock:
            calls.append(args)
            number = len(calls)
        time.sleep(delay)
        if error:
            raise error
        return f"{value} {number}"

    return fn, calls


def test_a_second_ask_is_a_hit(driver):
    """What was computed once is served from Redis, with its source and age."""
    fn, calls = counting()

    assert driver.get_or_compute({"q": 1}, fn) == "answer 1"
    assert driver.get_or_compute({"q": 1}, fn) == "answer 1"
    served = driver.lookup({"q": 1})

    assert len(calls) == 1
    assert (served.value, served.source) == ("answer 1", Source.HIT)
    assert 0.0 <= served.age < 5.0 and 86_000 < served.ttl <= 86_400
