"""Single-flight across processes: real ones, one provider, one Redis."""

from __future__ import annotations

import asyncio

import openai
import pytest
from tests.integrations.openai.kit import flights
from tests.integrations.openai.processes import Asker
from tests.integrations.openai.test_leaving import abegun, begun

from askonce import Cache

COLOURS = ["threads", "asyncio"]


@pytest.mark.parametrize("colour", COLOURS)
def test_a_whole_answer_is_asked_for_once(provider, url, colour):
    """Three processes, one call of the model."""
    askers = [Asker(url, provider.url, colour, "json", "m-held", "10") for _ in range(3)]
    try:
        assert [asker.line() for asker in askers] == [["ready"]] * 3
        provider.wait_for_calls(1)
        provider.release()
        answers = [asker.line() for asker in askers]
        assert len({answer[1] for answer in answers}) == 1
        assert provider.calls["chat"] == 1
    finally:
        for asker in askers:
            asker.__exit__()


@pytest.mark.parametrize("colour", COLOURS)
def test_a_running_stream_is_followed(provider, url, colour):
    """The other process has the first chunk before upstream lets go of the second."""
    with Asker(url, provider.url, colour, "stream", "m-held", "10") as leader:
        assert leader.line() == ["ready"]
        provider.wait_for_calls(1)
        provider.release(2)
        assert leader.line() == ["first", "askonce; fwd=miss"]
        with Asker(url, provider.url, colour, "stream", "m-held", "10") as follower:
            assert follower.line() == ["ready"]
            assert follower.line() == ["first", "askonce; fwd=miss; collapsed"]
            provider.release()
            led, followed = leader.line(), follower.line()
    assert led[:2] == followed[:2]
    assert led[1].endswith("w6 |")
    assert provider.calls["chat"] == 1


@pytest.mark.parametrize("colour", COLOURS)
def test_when_the_holder_is_killed_the_next_one_leads(provider, url, colour):
    """Its lease ends, and who waited asks the model."""
    with Asker(url, provider.url, colour, "json", "m-held", "1") as leader:
        assert leader.line() == ["ready"]
        provider.wait_for_calls(1)
        with Asker(url, provider.url, colour, "json", "m-held", "1") as follower:
            assert follower.line() == ["ready"]
            leader.kill()
            provider.wait_for_calls(2)
            provider.release()
            kind, said, status = follower.line()
    assert (kind, status) == ("whole", "askonce; fwd=miss")
    assert said.endswith("w6 ")
    assert provider.calls["chat"] == 2


@pytest.mark.parametrize("form", ["json", "stream"])
def test_a_failure_elsewhere_is_not_shared(provider, url, form):
    """Who waited in another process asks for itself, and gets its own error."""
    with (
        Asker(url, provider.url, "threads", form, "m-held-500", "10") as leader,
        Asker(url, provider.url, "threads", form, "m-held-500", "10") as follower,
    ):
        assert (leader.line(), follower.line()) == (["ready"], ["ready"])
        provider.wait_for_calls(1)
        provider.release(1)
        provider.wait_for_calls(2)
        provider.release()
        assert (leader.line(), follower.line()) == (["error", "InternalServerError"],) * 2


@pytest.mark.parametrize("colour", COLOURS)
def test_a_stream_that_is_left_is_read_on_for_those_who_follow_elsewhere(provider, url, client, colour):
    """The leader's reader goes away; the follower in another process is given the whole answer, of one call."""
    led = Cache(url, namespace="processes", deadline=5.0)
    if colour == "threads":
        made = client(cached=led, max_retries=0)
        stream = begun(made, provider, 2)
        with Asker(url, provider.url, "threads", "stream", "m-held", "10") as follower:
            assert follower.line() == ["ready"]
            assert follower.line()[0] == "first"
            stream.close()
            assert flights(made) == 0
            provider.release()
            kind, said, _ = follower.line()
    else:

        async def main():
            made = client(openai.AsyncOpenAI, cached=led, max_retries=0)
            stream = await abegun(made, provider, 2)
            follower = Asker(url, provider.url, "asyncio", "stream", "m-held", "10")
            try:
                assert await asyncio.to_thread(follower.line) == ["ready"]
                assert (await asyncio.to_thread(follower.line))[0] == "first"
                await stream.close()
                provider.release()
                return await asyncio.to_thread(follower.line)
            finally:
                follower.__exit__()
                await made.close()

        kind, said, _ = asyncio.run(main())
    assert (kind, said[-4:]) == ("whole", "w6 |")
    assert provider.calls["chat"] == 1
    led.close()
