"""The two caches are one API."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from askonce import AsyncCache, AsyncLease, Cache, Lease

PAIRS = {
    "caches": (Cache, AsyncCache, {"aclose": "close"}, {"aio", "client"}),
    "leases": (Lease, AsyncLease, {}, set()),
}
#: What the two have by different names, or of different nature: ``with`` and ``async with``.
CONTEXT = {"__enter__": "__aenter__", "__exit__": "__aexit__"}


def public(kind: type) -> dict[str, Any]:
    """Return the methods and properties that users see."""
    return {
        name: member
        for name, member in inspect.getmembers(kind)
        if not name.startswith("_") and (inspect.isfunction(member) or not callable(member))
    }


@pytest.mark.parametrize("pair", PAIRS)
def test_they_have_the_same_members(pair):
    """What one has the other has too; only the closing, and the way to the other colour, differ."""
    sync, aio, renamed, only_sync = PAIRS[pair]

    assert set(public(sync)) - only_sync == {renamed.get(name, name) for name in public(aio)}
    for name, twin in CONTEXT.items():
        assert hasattr(sync, name)
        assert hasattr(aio, twin)


@pytest.mark.parametrize("pair", PAIRS)
def test_they_have_the_same_parameters(pair):
    """Names, kinds, order and defaults; annotations differ only where one awaits."""
    sync, aio, renamed, _ = PAIRS[pair]
    members = public(sync)
    for name, member in public(aio).items():
        if not inspect.isfunction(member):
            continue
        theirs = inspect.signature(member).parameters.values()
        ours = inspect.signature(members[renamed.get(name, name)]).parameters.values()
        assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs], (
            name
        )
        for own, other in zip(ours, theirs, strict=True):
            if own.name != "fn":
                assert own.annotation == other.annotation, f"{name}({own.name})"


@pytest.mark.parametrize("pair", PAIRS)
def test_they_have_the_same_docstrings(pair):
    """One text describes both, and none is missing."""
    sync, aio, renamed, _ = PAIRS[pair]
    members = public(sync)
    assert inspect.getdoc(sync)
    for name, member in public(aio).items():
        assert inspect.getdoc(member), name
        assert inspect.getdoc(member) == inspect.getdoc(members[renamed.get(name, name)]), name


@pytest.mark.parametrize("pair", PAIRS)
def test_they_return_the_same(pair):
    """A coroutine returns what the other method returns, in its own colour."""
    sync, aio, renamed, _ = PAIRS[pair]
    colours = {"AsyncLease": "Lease", "AsyncIterator": "Iterator", "AsyncCache": "Cache"}
    members = public(sync)
    for name, member in public(aio).items():
        if not inspect.isfunction(member) or name == "memoize":
            continue
        theirs = str(inspect.signature(member).return_annotation)
        for word, plain in colours.items():
            theirs = theirs.replace(word, plain)
        assert theirs == str(inspect.signature(members[renamed.get(name, name)]).return_annotation), name


def test_what_waits_is_awaited():
    """Every method of the async cache that may ask Redis is a coroutine or an async iterator, and no other."""
    at_once = {"scope", "bypass", "reject", "memoize", "fingerprint"}
    for name, member in public(AsyncCache).items():
        if inspect.isfunction(member):
            awaited = inspect.iscoroutinefunction(member) or "AsyncIterator" in str(
                inspect.signature(member).return_annotation
            )
            assert awaited is (name not in at_once), name
    for name, member in public(Cache).items():
        assert not inspect.iscoroutinefunction(member), name


def test_constructors_are_one():
    """Both colours are made in the same way."""
    assert inspect.signature(Cache) == inspect.signature(AsyncCache)
