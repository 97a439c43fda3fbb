"""explain: every part of a key, and why two calls did not share an answer."""

import pytest

from askonce import Cache, Request, Uncacheable, Verbatim, control

from .colours import ask


def test_the_key_it_names_is_the_key_in_redis(driver, raw):
    """What it says is where the entry is: its header has the generation, its books the member."""
    driver.store({"model": "m", "prompt": "Why?"}, "answer")

    explained = driver.explain({"prompt": "Why?", "model": "m"})

    assert raw.exists(explained.key) == 1
    assert explained.key.endswith(f":{explained.generation}:{explained.fingerprint}")
    assert explained.key in {key.decode() for key in raw.keys("ao:{test:*}:e:*")}
    assert (explained.namespace, explained.version, explained.scope, explained.kind) == (
        "test",
        "",
        {},
        "request",
    )
    assert explained.request == {"model": "m", "prompt": "Why?"}
    assert explained.partition == 0
    assert len(explained.fingerprint) == 27
    assert explained.differences == ()
    assert int.from_bytes(raw.getrange(explained.key, 4, 7), "big") == explained.generation


def test_deleting_the_key_it_names_is_a_miss(driver, raw):
    """There is one key for an answer, and it is this one."""
    driver.store("q", "answer")
    raw.delete(driver.explain("q").key)

    assert driver.lookup("q") is None


def test_it_asks_for_a_key_without_storing_or_counting(driver, raw):
    """An operator may look as often as she likes."""
    driver.explain("q", "p")

    assert raw.keys("ao:{test:*}:e:*") == []
    stats = driver.stats()
    assert (stats.hits, stats.misses) == (0, 0)


def test_scope_and_version_are_parts(make_driver, raw):
    """Those of the cache and those of the block."""
    driver = make_driver(version="v3")
    driver.inner.cache = driver.cache.scope(repo="r")
    with control(scope={"path": "p"}):
        ask(driver, "store", Request("embedding", ["text"]), [0.5])
        explained = ask(driver, "explain", Request("embedding", ["text"]))

    assert (explained.version, explained.kind) == ("v3", "embedding")
    assert explained.scope == {"repo": "r", "path": "p"}
    assert explained.request == ["text"]
    assert raw.exists(explained.key) == 1


def test_a_bump_changes_the_key_and_not_the_fingerprint(driver):
    """Older entries are under another generation."""
    before = driver.explain("q")
    generation = driver.bump()
    after = driver.explain("q")

    assert (after.generation, after.fingerprint) == (generation, before.fingerprint)
    assert after.key != before.key


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ({"t": 0.2, "m": "a"}, {"m": "a", "t": 0.7}, [("request['t']", 0.2, 0.7, "")]),
        ({"a": 1}, {"a": 1, "b": 2}, [("request['b']", None, 2, "left")]),
        ({"a": 1, "b": 2}, {"a": 1}, [("request['b']", 2, None, "right")]),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, [("request['a'][1]['b']", 2, 3, "")]),
        ({"a": 1}, {"a": True}, [("request['a']", 1, True, "")]),
        ([1, 2], [1, 2, 3], [("request", [1, 2], [1, 2, 3], "")]),
        ({"a": 1.0, "b": (1,)}, {"b": [1], "a": 1}, []),
    ],
    ids=["value", "left", "right", "nested", "type", "length", "equal"],
)
def test_it_says_where_two_requests_differ(driver, left, right, expected):
    """No difference means one answer, and a difference two."""
    explained = driver.explain(left, right)

    assert [(d.path, d.left, d.right, d.missing) for d in explained.differences] == expected
    assert (explained.fingerprint == driver.explain(right).fingerprint) is not bool(expected)


def test_the_order_below_verbatim_is_a_difference(driver):
    """It reaches the model, so it is shown."""
    one, other = ({"schema": Verbatim({"a": 1, "b": 2})}, {"schema": Verbatim({"b": 2, "a": 1})})

    assert driver.explain(one, other).differences
    assert not driver.explain(one, {"schema": Verbatim({"a": 1, "b": 2})}).differences


def test_kinds_differ(driver):
    """Requests of two kinds never share an answer, however alike."""
    (difference,) = driver.explain(Request("a", 1), Request("b", 1)).differences

    assert (difference.path, difference.left, difference.right) == ("kind", "a", "b")


def test_without_redis_it_names_everything_but_the_key(make_driver):
    """The generation is Redis's to say."""
    explained = make_driver("redis://127.0.0.1:1/0").explain({"a": 1})

    assert (explained.key, explained.generation) == (None, None)
    assert explained.request == {"a": 1}
    assert explained.fingerprint


def test_a_request_without_canonical_form_is_refused(url):
    """With the path to what is in the way, for either request."""
    with Cache(url, namespace="test") as cache:
        with pytest.raises(Uncacheable, match=r"request\['a'\]"):
            cache.explain({"a": object()})
        with pytest.raises(Uncacheable, match=r"request\['b'\]"):
            cache.explain({"a": 1}, {"b": object()})
