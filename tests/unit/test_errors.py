"""The error tree."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

import askonce
from askonce import errors

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value)]


def test_the_tree_in_the_docstring_is_the_tree():
    """Each line of the drawing names a class, under its parent."""
    parents: list[tuple[int, type]] = []
    drawn: dict[type, type] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^( *[│ ]*(?:├── |└── )?)([A-Z]\w+)(?:  |$)", line)
        if match is None:
            continue
        depth, kind = len(match[1]), getattr(errors, match[2])
        while parents and parents[-1][0] >= depth:
            parents.pop()
        if parents:
            drawn[kind] = parents[-1][1]
        parents.append((depth, kind))

    assert drawn == {kind: kind.__bases__[0] for kind in CLASSES if kind is not errors.AskonceError}


def test_one_except_clause_catches_all():
    """Every error of askonce's own is an AskonceError."""
    assert all(issubclass(kind, askonce.AskonceError) for kind in CLASSES)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (askonce.ConfigurationError, ValueError),
        (askonce.MissingExtra, ImportError),
        (askonce.Uncacheable, TypeError),
        (askonce.NotCached, LookupError),
    ],
)
def test_errors_are_also_what_python_calls_them(kind, builtin):
    """Code that knows nothing of askonce catches them by their builtin bases."""
    assert issubclass(kind, builtin)


def test_a_leaders_failure_tells_its_type_and_survives_a_trip():
    """Only the type crosses processes: an error's text may quote a credential."""
    error = askonce.LeaderFailed("openai.RateLimitError")

    assert error.error_type == "openai.RateLimitError"
    assert "openai.RateLimitError" in str(error)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(again), str(again), again.error_type) == (
            askonce.LeaderFailed,
            str(error),
            error.error_type,
        )


def test_a_broken_stream_tells_how_far_it_came_and_survives_a_trip():
    """The number of chunks that were passed on is part of the error."""
    error = askonce.StreamBroken(3)
    again = pickle.loads(pickle.dumps(error))

    assert "3" in str(error)
    assert (type(again), str(again), vars(again)) == (askonce.StreamBroken, str(error), vars(error))


@pytest.mark.parametrize(
    "kind", [kind for kind in CLASSES if kind not in {askonce.LeaderFailed, askonce.StreamBroken}]
)
def test_errors_can_be_pickled(kind):
    """An error that is raised in a worker process reaches its parent."""
    again = pickle.loads(pickle.dumps(kind("what happened")))

    assert (type(again), str(again)) == (kind, "what happened")
