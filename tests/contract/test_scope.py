"""Scopes: further parts of every key, and nothing else."""

import contextlib
import contextvars

import pytest

from askonce import Cache, ConfigurationError, Source, control

from .colours import close
from .polling import until
from .upstream import Gate


@contextlib.contextmanager
def scoped(driver, **parts):
    """Make *driver* drive a scope of its cache."""
    parent = driver.inner.cache
    driver.inner.cache = parent.scope(**parts)
    try:
        yield driver
    finally:
        driver.inner.cache = parent


def test_a_scope_shares_no_answer_with_its_parent_or_siblings(driver):
    """The same request in another repository is another key."""
    driver.store("q", "parent")
    for repo in ("a", "b"):
        with scoped(driver, repo=repo):
            assert driver.lookup("q") is None
            driver.store("q", repo)

    assert driver.lookup("q").value == "parent"
    for repo in ("a", "b"):
        with scoped(driver, repo=repo):
            assert driver.lookup("q").value == repo


def test_scopes_with_the_same_parts_are_the_same(driver):
    """Neither the order of the parts nor the way there makes a difference."""
    with scoped(driver, repo="r", path="p"):
        driver.store("q", "answer")
    with scoped(driver, path="p", repo="r"):
        assert driver.lookup("q").value == "answer"
    with scoped(driver, path="p"), scoped(driver, repo="r"):
        assert driver.lookup("q").value == "answer"
    with scoped(driver, repo="other", path="p"), scoped(driver, repo="r"):
        assert driver.lookup("q").value == "answer"


def test_a_part_is_no_part_of_the_request(driver):
    """What stands in the scope is never confused with what stands in the request."""
    with scoped(driver, repo="r"):
        driver.store({"q": 1}, "answer")

    assert driver.lookup({"q": 1, "repo": "r"}) is None
    with scoped(driver, repo="r"):
        assert driver.lookup({"q": 1}).value == "answer"


def test_values_of_parts_are_told_apart_by_type(driver):
    """tenant=1 is not tenant='1', and a list is a value like any other."""
    for part in (1, "1", [1], {"n": 1}):
        with scoped(driver, tenant=part):
            assert driver.lookup("q") is None
            driver.store("q", repr(part))
    for part in (1, "1", [1], {"n": 1}):
        with scoped(driver, tenant=part):
            assert driver.lookup("q").value == repr(part)


def test_a_scope_shares_everything_else(driver):
    """Bounds, counters, connections, policy, version and bumps are the namespace's."""
    driver.store("q", "parent")
    with scoped(driver, repo="r"):
        driver.store("q", "child")
        assert driver.usage().entries == 2
        assert driver.stats().stored == 2
        driver.bump()
        assert driver.lookup("q") is None
    assert driver.lookup("q") is None
    child = driver.cache.scope(repo="r")
    assert (child.namespace, child.version, child.policy) == ("test", "", driver.cache.policy)
    assert child._namespace is driver.cache._namespace


def test_a_scope_in_a_block_is_the_same_scope(url):
    """control(scope=) and scope() make the same key."""
    with Cache(url, namespace="test") as cache:
        cache.scope(repo="r", path="p").store("q", "answer")

        with control(scope={"repo": "r"}), control(scope={"path": "p"}):
            assert cache.lookup("q").value == "answer"
        with control(scope={"path": "p"}):
            assert cache.scope(repo="r").lookup("q").value == "answer"
            assert cache.lookup("q") is None


def test_invalidation_keeps_to_its_scope(driver):
    """invalidate removes the entry of this scope and no other."""
    driver.store("q", "parent")
    with scoped(driver, repo="r"):
        driver.store("q", "child")
        assert driver.invalidate("q") is True
        assert driver.lookup("q") is None
    assert driver.lookup("q").value == "parent"


def test_calls_in_two_scopes_at_once_are_two_calls(driver):
    """A flight is joined only from its own scope."""
    gates = {repo: Gate(repo) for repo in ("a", "b")}
    futures = []
    for repo, gate in gates.items():
        with scoped(driver, repo=repo):
            # Bound now: the future's thread runs after the block.
            context = contextvars.copy_context()
            futures.append(context.run(driver.start, "serve", "q", gate))
            gate.wait()
    for gate in gates.values():
        gate.open()

    assert [future.result(10).value for future in futures] == ["a", "b"]
    assert {future.result().source for future in futures} == {Source.COMPUTED}


def test_parts_without_canonical_form_are_refused(driver):
    """A scope that cannot be keyed is an error where it is made."""
    with pytest.raises(ConfigurationError, match="repo"):
        driver.cache.scope(repo=object())


def test_a_scope_shows_its_parts(driver):
    """repr names the parts."""
    assert "repo='r'" in repr(driver.cache.scope(repo="r"))


def test_a_scope_of_a_closed_cache_connects_anew(driver):
    """Parent and child close together, and both go on working."""
    child = driver.cache.scope(repo="r")
    close(driver)
    driver.inner.cache = child

    assert driver.get_or_compute("q", lambda: "answer") == "answer"
    until(lambda: driver.lookup("q") is not None)
