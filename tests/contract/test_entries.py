"""Stores that list their keys: many stored, listed and removed at once; labels."""

import pytest

from askonce import BackendUnavailable, ConfigurationError, Refused, Uncacheable, control

from .colours import begin_on
from .test_many import calls_of


def listed(driver, **words):
    """Return what ``entries`` lists, sorted by label."""

    async def gather():
        return [info async for info in driver.inner.cache.entries(**words)]

    if driver.colour == "threads":
        infos = list(driver.inner.cache.entries(**words))
    else:
        infos = begin_on(driver, gather).result(20)
    return sorted(infos, key=lambda info: info.label or "")


def labels(driver, **words):
    return [info.label for info in listed(driver, **words)]


def test_what_is_stored_is_listed_with_label_age_ttl_and_length(driver, raw):
    """An entry says what it was labelled with, how old it is, how long it stays fresh, and what it weighs."""
    driver.store("a", "x" * 100, label="first", ttl=60)
    driver.store("b", b"y", ttl=60)
    bare, labelled = listed(driver)

    assert (bare.label, labelled.label) == (None, "first")
    assert labelled.digest == driver.cache.fingerprint("a") == driver.explain("a").fingerprint
    assert labelled.bytes == raw.strlen(driver.explain("a").key)
    assert 0 <= labelled.age < 30 < labelled.ttl <= 60


def test_a_labelled_entry_is_served_like_any_other(driver):
    """Labels and tags stand beside the value, not in it, and change no key."""
    driver.store("a", {"v": 1}, label="näme", tags=["t", "u"])
    assert driver.lookup("a").value == {"v": 1}
    assert labels(driver) == ["näme"]
    assert driver.invalidate_tag("u")
    assert driver.lookup("a") is None


def test_what_cannot_be_served_is_not_listed(driver, raw):
    """Neither what was removed, nor what was invalidated by its tag, nor older generations, nor foreign bytes."""
    driver.store("old", "v", label="old")
    driver.bump()
    for name in ("kept", "removed", "tagged", "foreign"):
        driver.store(name, "v", label=name, tags=["t"] if name == "tagged" else [])
    driver.invalidate("removed")
    driver.invalidate_tag("t")
    raw.set(driver.explain("foreign").key, b"junk", px=60_000)

    assert labels(driver) == ["kept"]


@pytest.mark.parametrize("count", [3, 1000])
def test_all_are_listed_once_however_many(driver, count):
    """A book larger than a page is read page by page."""
    assert (
        driver.store_many(
            list(range(count)), [str(n) for n in range(count)], labels=[f"{n:04}" for n in range(count)]
        )
        == [True] * count
    )
    assert labels(driver) == [f"{n:04}" for n in range(count)]


def test_prefix_and_limit_choose(driver):
    """Only labels with the prefix, and at most so many."""
    driver.store_many([1, 2, 3, 4], list("wxyz"), labels=["a:1", "a:2", "", None])
    assert labels(driver, prefix="a:") == ["a:1", "a:2"]
    assert labels(driver) == ["", None, "a:1", "a:2"] or labels(driver) == [None, "", "a:1", "a:2"]
    assert len(listed(driver, limit=3)) == 3
    assert listed(driver, limit=0) == []


def test_many_are_stored_in_one_round_trip(driver, raw):
    """Each value is there for each reader, whatever the order; a repeated request keeps the last."""
    driver.lookup("warm")
    before = calls_of(raw, "evalsha")
    assert driver.store_many([1, 2, 3, 2], ["a", "b", "c", "B"], ttl=60, tags=["t"]) == [True] * 4
    assert calls_of(raw, "evalsha") - before <= 5
    assert [found.value for found in driver.get_many([1, 2, 3])] == ["a", "B", "c"]
    driver.invalidate_tag("t")
    assert driver.get_many([1, 2, 3]) == [None] * 3


def test_many_are_stored_after_a_bump_elsewhere(make_driver):
    """Values that were computed under nothing go to the generation that is current."""
    driver, other = make_driver(), make_driver()
    driver.store("warm", "v")
    other.bump()
    assert driver.store_many(["a", "b"], ["A", "B"]) == [True, True]
    assert [found.value for found in other.get_many(["a", "b"])] == ["A", "B"]


def test_a_value_that_is_refused_leaves_the_others(driver):
    """Admission judges each value; what cannot be encoded stores nothing at all."""

    def admit(value):
        return Refused("bad") if value == "bad" else None

    assert driver.store_many([1, 2, 3], ["a", "bad", "c"], admit=admit) == [True, False, True]
    with pytest.raises(Uncacheable):
        driver.store_many([4, 5], ["fine", object()])
    assert driver.get_many([4, 5]) == [None, None]


def test_a_batch_within_the_bound_evicts_exactly(make_driver):
    """More entries than the bound leave as many as the bound, the last ones."""
    driver = make_driver(max_entries=50)
    driver.store_many(list(range(200)), ["v"] * 200)
    assert driver.usage().entries == 50
    assert driver.lookup(199) is not None


def test_control_can_forbid_the_write(driver):
    """``write=False`` holds for many as for one."""
    with control(write=False):
        stored = begin_on(driver, driver.inner.cache.store_many, [1], ["a"]).result(20)
    assert stored == [False]
    assert driver.lookup(1) is None


@pytest.mark.parametrize("count", [1, 300])
def test_many_are_removed_in_one_go(driver, count):
    """The number of entries that were there comes back; nothing else is touched."""
    driver.store_many(list(range(count)), ["v"] * count)
    driver.store("other", "v")
    assert driver.invalidate_many([*range(count), "absent", 0]) == count
    assert driver.get_many(list(range(count))) == [None] * count
    assert driver.lookup("other").value == "v"
    assert driver.invalidate_many([]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"label": 7}, "int"),
        ({"label": "x" * 5000}, "4096"),
        ({"label": "\ud800"}, "surrogates"),
    ],
)
def test_a_wrong_label_is_refused_with_what_is_allowed(driver, words, said):
    """Nothing is stored."""
    with pytest.raises(ConfigurationError, match=said):
        driver.store("a", "v", **words)
    assert driver.lookup("a") is None


def test_counts_that_differ_are_refused(driver):
    """A value for each request, and a label for each or none."""
    with pytest.raises(ConfigurationError, match="2 requests, 1 values"):
        driver.store_many([1, 2], ["a"])
    with pytest.raises(ConfigurationError, match="1 labels"):
        driver.store_many([1, 2], ["a", "b"], labels=["x"])


def test_without_redis_nothing_is_listed_or_stored(make_driver):
    """No exception reaches the caller; a strict cache raises."""
    driver = make_driver("redis://127.0.0.1:1")
    assert listed(driver) == []
    assert driver.store_many([1, 2], ["a", "b"]) == [False, False]
    assert driver.invalidate_many([1, 2]) == 0
    strict = make_driver("redis://127.0.0.1:1", strict=True)
    with pytest.raises(BackendUnavailable):
        listed(strict)
