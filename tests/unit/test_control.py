"""Per-call control: what holds inside a block, and nowhere else."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from datetime import timedelta

import pytest

from askonce import ConfigurationError, control
from askonce.control import NONE, Control, current


def test_outside_every_block_nothing_is_changed():
    """The default reads, writes and computes."""
    assert current() is NONE
    assert Control() == NONE
    assert (NONE.read, NONE.write, NONE.only_if_cached) == (True, True, False)
    assert (NONE.ttl, NONE.max_age, NONE.tags, NONE.scope) == (None, None, (), {})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"read": False}, Control(read=False)),
        ({"write": False}, Control(write=False)),
        ({"ttl": "15m"}, Control(ttl=900.0)),
        ({"max_age": timedelta(hours=1)}, Control(max_age=3600.0)),
        ({"max_age": 0}, Control(max_age=0.0)),
        ({"tags": ["a", "b"]}, Control(tags=("a", "b"))),
        ({"tags": "ab"}, Control(tags=("ab",))),
        ({"scope": {"tenant": "a"}}, Control(scope={"tenant": "a"})),
        ({"only_if_cached": True}, Control(only_if_cached=True)),
    ],
)
def test_each_word(words, expected):
    """Inside the block a word holds, behind it no more."""
    with control(**words):
        assert current() == expected
    assert current() is NONE


def test_an_inner_block_refines_the_outer():
    """Tags and scope add up, every other word replaces, and what is not given stays."""
    with control(read=False, ttl=60, tags=["a"], scope={"tenant": "a", "repo": 1}):
        with control(read=True, max_age=5, tags=["b"], scope={"tenant": "b"}):
            assert current() == Control(
                ttl=60.0, max_age=5.0, tags=("a", "b"), scope={"tenant": "b", "repo": 1}
            )
            with control(write=False, only_if_cached=True):
                assert current().tags == ("a", "b")
                assert (current().read, current().write, current().only_if_cached) == (True, False, True)
            assert current().write
        assert current() == Control(read=False, ttl=60.0, tags=("a",), scope={"tenant": "a", "repo": 1})
    assert current() is NONE


def test_a_block_ends_with_an_error_too():
    """What raises inside leaves no trace."""
    with pytest.raises(KeyError), control(read=False):
        raise KeyError
    assert current() is NONE


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"ttl": "soon"}, r"^ttl='soon' is no duration"),
        ({"ttl": 0}, r"^ttl=0 is out of range"),
        ({"max_age": -1}, r"^max_age=-1 is out of range"),
        ({"tags": [""]}, r"^tag='' is no tag"),
        ({"tags": [1]}, r"^tag=1 is no tag"),
        ({"scope": {"a": object()}}, r"^scope\['a'\]: object has no canonical form"),
        ({"scope": ["tenant"]}, r"scope"),
        ({"tags": 5}, r"tag"),
    ],
)
def test_a_word_that_is_wrong_is_refused_where_it_is_given(words, message):
    """Entering the block raises, not some call inside it; and nothing holds afterwards."""
    with pytest.raises(ConfigurationError, match=message), control(**words):
        pass
    assert current() is NONE


def test_a_block_is_not_seen_by_other_threads():
    """A thread that is started inside a block is not inside the block."""
    seen: list[Control] = []
    with control(read=False):
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()

    assert seen == [NONE]


def test_a_copied_context_carries_the_block():
    """Whoever copies the context into a thread takes the block along."""
    seen: list[Control] = []
    with control(read=False):
        context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(lambda: seen.append(current()),))
    thread.start()
    thread.join()

    assert seen == [Control(read=False)]


async def test_a_block_is_not_seen_by_sibling_tasks():
    """Each of two tasks that interleave inside their blocks sees its own; a child sees its parent's."""
    turn = asyncio.Barrier(2)
    seen: dict[str, list[Control]] = {"a": [], "b": []}

    async def child() -> Control:
        return current()

    async def task(name: str) -> None:
        with control(scope={"tenant": name}):
            await turn.wait()
            seen[name].append(current())
            seen[name].append(await asyncio.create_task(child()))
            await turn.wait()
        await turn.wait()
        seen[name].append(current())

    await asyncio.gather(task("a"), task("b"))

    for name, found in seen.items():
        assert found == [Control(scope={"tenant": name}), Control(scope={"tenant": name}), NONE]
    assert current() is NONE


def test_words_are_given_by_name():
    """Nothing is given by place, and an unknown word is an error."""
    with pytest.raises(TypeError):
        control(False)  # type: ignore[misc]
    with pytest.raises(TypeError):
        control(cache=False)  # type: ignore[call-arg]
