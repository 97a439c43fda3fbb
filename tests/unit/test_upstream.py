"""The guard between stacked adapters."""

import asyncio
import contextvars
import threading

from askonce import in_upstream, upstream
from askonce.upstream import _marks, claim


def test_the_mark_holds_inside_the_block_for_its_kind():
    """Other kinds are not marked, and nothing is after the block, even if it fails."""
    assert not in_upstream("llm")
    try:
        with upstream("llm"), upstream("embedding"):
            assert in_upstream("llm")
            assert in_upstream("embedding")
            raise KeyError
    except KeyError:
        pass
    assert not in_upstream("llm")


def test_nested_blocks_of_a_kind_end_one_by_one():
    """The outer mark holds until the outer block ends."""
    with upstream("llm"):
        with upstream("llm"):
            pass
        assert in_upstream("llm")


def test_the_mark_follows_tasks_and_copied_contexts_and_nothing_else():
    """A task that was started inside is inside; a bare thread is not."""

    async def seen():
        return in_upstream("llm")

    async def main():
        with upstream("llm"):
            inside = asyncio.create_task(seen())
        return await inside, await seen()

    assert asyncio.run(main()) == (True, False)
    with upstream("llm"):
        context, found = contextvars.copy_context(), []
        for run in (
            lambda: found.append(in_upstream("llm")),
            lambda: context.run(lambda: found.append(in_upstream("llm"))),
        ):
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
    assert found == [False, True]


def test_a_claim_holds_as_long_as_the_call_is_under_way():
    """It needs no end: what is over is dropped by the next mark."""

    def body():
        calls = [True]
        claim("llm", lambda: calls[0])
        assert in_upstream("llm")
        calls[0] = False
        assert not in_upstream("llm")
        for _ in range(3):
            claim("llm", lambda: False)
        assert len(_marks.get()) == 1

    contextvars.Context().run(body)
