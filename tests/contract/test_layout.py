"""Into how many parts a namespace is split: fixed by the first cache, the same for all, and made good if it is lost."""

import pytest

from askonce import Cache, ConfigurationError
from askonce.errors import Disagreement

META = "ao:{test}:meta"


@pytest.fixture
def layout(raw):
    """Return what is fixed."""

    def layout():
        return {name.decode(): int(value) for name, value in raw.hgetall(META).items()}

    return layout


def lose_everything(raw):
    for key in list(raw.scan_iter("*")):
        raw.delete(key)


@pytest.fixture
def count(driver):
    """The number of partitions that a cache has by default here."""
    return len(driver.cache._namespace.state.partitions)


def test_the_first_cache_fixes_the_layout(driver, layout, count):
    """As soon as it is used, once."""
    assert layout() == {}
    driver.store("q", "answer")

    assert layout() == {"partitions": count, "overhead": 384, "format": 1}


def test_a_namespace_from_before_is_given_its_layout(make_driver, raw, layout, count):
    """Nothing is lost of what is stored there."""
    make_driver().store("q", "answer")
    raw.delete(META)

    assert make_driver().lookup("q").value == "answer"
    assert layout()["partitions"] == count


def test_a_hit_does_not_ask_for_it(driver, raw):
    """It is read once a process."""
    driver.store("q", "answer")
    raw.delete(META)
    for _ in range(5):
        assert driver.lookup("q").value == "answer"

    assert not raw.exists(META)


def test_what_was_lost_with_everything_else_is_written_again(driver, raw, layout, count):
    """By the next call of a process that runs on."""
    driver.store("q", "answer")
    lose_everything(raw)
    assert driver.get_or_compute("q", lambda: "anew") == "anew"
    assert driver.get_or_compute("q", lambda: "no") == "anew"

    assert layout()["partitions"] == count


def test_another_number_of_partitions_is_not_used(make_driver, count):
    """Its calls are made without the cache, counted; the operator hears of it once; a strict cache raises."""
    make_driver().store("q", "answer")
    events = []
    driver = make_driver(partitions=count + 1, on_event=events.append)
    for number in range(5):
        assert driver.get_or_compute(number, lambda: "own") == "own"
    assert driver.lookup("q") is None
    assert driver.invalidate_tag("t") is False
    assert driver.bump() == 0
    assert driver.stats().bypass_reasons == {"backend": 5}
    assert (driver.stats().fleet, driver.usage().known) == (False, False)

    assert [event.kind for event in events] == ["disagreement"]
    assert f"partitions={count}, this cache has partitions={count + 1}" in events[0].reason
    assert make_driver().lookup("q").value == "answer"
    with pytest.raises(Disagreement, match=f"partitions={count}"):
        make_driver(partitions=count + 1, strict=True).lookup("q")


@pytest.mark.parametrize("partitions", [2, 7, 40])
def test_any_number_of_partitions_is_one_cache(make_driver, url, partitions):
    """Bounds hold for all of them together, and everything that looks at the whole does."""
    driver = make_driver(partitions=partitions, max_entries=400, strict=True, namespace=f"test{partitions}")
    numbers = range(100)
    assert driver.store_many(numbers, [f"v {number}" for number in numbers], tags=["t"]) == [True] * 100
    assert [one.value for one in driver.get_many(numbers)] == [f"v {number}" for number in numbers]
    usage = driver.usage()
    assert (usage.entries, usage.max_entries) == (100, 400 // partitions * partitions)
    with Cache(url, namespace=f"test{partitions}", partitions=partitions) as cache:
        assert len(list(cache.entries())) == 100
    assert driver.invalidate_many([1, 2, 3]) == 3
    assert driver.invalidate_tag("t") is True
    assert driver.get_many(numbers) == [None] * 100
    assert driver.stats().stored == 100
    driver.store("q", "answer")
    assert driver.bump() > 0
    assert driver.lookup("q") is None
    for number in range(600):
        driver.store(number, "v")
    assert driver.usage().entries <= 400


@pytest.mark.parametrize("partitions", [0, -1, 1025, True, 1.0, "4", [4]])
def test_numbers_that_are_refused(url, partitions):
    """What was given and what is allowed."""
    with pytest.raises(ConfigurationError, match=r"partitions=.*1 to 1024"):
        Cache(url, partitions=partitions)


@pytest.mark.parametrize("words", [{"max_entries": 9}, {"max_bytes": 5119}])
def test_bounds_must_leave_room_in_each_partition(url, words):
    """A bound that is divided to nothing is a wrong argument."""
    (name,) = words
    with pytest.raises(ConfigurationError, match=f"{name}=.* give at least"):
        Cache(url, partitions=10, **words)
