"""One call for all who ask at the same time: threads, tasks, event loops, and whoever leaves, fails or is impatient."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from tests.integrations.openai.kit import ask, ask_raw, atext, entries, flights, text
from tests.integrations.openai.provider import PATIENCE

from askonce._flights import Flights as CoreFlights
from askonce_openai._aflights import AsyncFlights
from askonce_openai._flights import Flights

HELD = {"model": "m-held"}


class Gathering:
    """Counts those who came to a place; waits for a number of them."""

    def __init__(self):
        self._changed = threading.Condition()
        self._count = 0

    def come(self):
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait_for(self, count):
        with self._changed:
            assert self._changed.wait_for(lambda: self._count >= count, PATIENCE), self._count


@pytest.fixture
def boarded(monkeypatch):
    """Count those who have taken a seat in a flight, of a stream or of a whole answer: what it lands, they are given."""
    gathering = Gathering()

    def count(cls, name):
        original = getattr(cls, name)

        def board(self, *args):
            taken = original(self, *args)
            gathering.come()
            return taken

        monkeypatch.setattr(cls, name, board)

    def counted(stream):
        for cls, name in [(Flights, "join"), (AsyncFlights, "join")] if stream else [(CoreFlights, "board")]:
            count(cls, name)
        return gathering

    return counted


@pytest.fixture
def threads():
    with ThreadPoolExecutor(16) as pool:
        yield pool


def test_the_first_token_is_not_delayed(client, provider):
    """It is in the caller's hand while upstream holds the second one back."""
    made = client()
    pool = ThreadPoolExecutor(1)
    asked = pool.submit(ask, made, stream=True, **HELD)
    provider.wait_for_calls(1)
    stream = asked.result(PATIENCE)  # the headers are there, with no chunk released
    provider.release(1)
    assert next(iter(stream)).choices[0].delta.role == "assistant"
    provider.release()
    assert text(stream).endswith("w6 ")
    pool.shutdown()


async def test_the_first_token_is_not_delayed_by_asyncio(client, provider):
    made = client(openai.AsyncOpenAI)
    asked = asyncio.ensure_future(ask(made, stream=True, **HELD))
    await asyncio.to_thread(provider.wait_for_calls, 1)
    stream = await asyncio.wait_for(asked, PATIENCE)
    provider.release(1)
    assert (await anext(stream)).choices[0].delta.role == "assistant"
    provider.release()
    assert (await atext(stream)).endswith("w6 ")
    await made.close()


def test_threads_share_a_whole_answer(client, provider, cache, threads):
    """Eight ask, one reaches the model."""
    made = client()
    asked = [threads.submit(ask, made, **HELD) for _ in range(8)]
    provider.wait_for_calls(1)
    provider.release()
    assert len({future.result(PATIENCE).id for future in asked}) == 1
    assert (provider.calls["chat"], entries(cache)) == (1, 1)


def test_threads_read_along_a_running_stream(client, provider, threads):
    """All eight have the first chunk before upstream lets go of the second."""
    made, begun = client(), Gathering()

    def read():
        stream = iter(ask(made, stream=True, **HELD))
        first = next(stream)
        begun.come()
        return first.id, text(stream)

    asked = [threads.submit(read) for _ in range(8)]
    provider.wait_for_calls(1)
    provider.release(1)
    begun.wait_for(8)
    provider.release()
    assert len({future.result(PATIENCE) for future in asked}) == 1
    assert (provider.calls["chat"], flights(made)) == (1, 0)


STREAM = {"stream": True}
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def said(made, form):
    """Ask in this form; return the text of the answer."""
    answer = ask(made, **HELD, **form)
    return text(answer) if form else answer.choices[0].message.content


@pytest.mark.parametrize(
    ("led", "asked"),
    [({}, STREAM), ({}, WITH_USAGE), (WITH_USAGE, {})],
    ids=["json-stream", "json-usage", "usage-json"],
)
def test_another_form_is_made_of_the_whole_answer(client, provider, cache, threads, boarded, led, asked):
    """Who asks for it waits until that is there: one call, whichever form leads."""
    made, seats = client(), boarded(stream=False)
    first = threads.submit(said, made, led)
    provider.wait_for_calls(1)
    second = threads.submit(said, made, asked)
    seats.wait_for(2)
    provider.release()
    assert first.result(PATIENCE) == second.result(PATIENCE)
    assert (provider.calls["chat"], entries(cache), flights(made)) == (1, 1, 0)


def test_a_whole_answer_that_a_stream_cannot_make_is_asked_for_after_it(
    client, provider, cache, threads, boarded
):
    """A typed usage would be None."""
    made, seats = client(), boarded(stream=False)
    first = threads.submit(said, made, STREAM)
    provider.wait_for_calls(1)
    second = threads.submit(ask, made, **HELD)
    seats.wait_for(2)
    provider.release()
    provider.wait_for_calls(2)
    provider.release()
    assert first.result(PATIENCE).endswith("w6 ")
    assert second.result(PATIENCE).usage.total_tokens
    assert (provider.calls["chat"], entries(cache), flights(made)) == (2, 1, 0)


@pytest.mark.parametrize(
    "forms", [(STREAM, WITH_USAGE), (WITH_USAGE, STREAM)], ids=["plain first", "usage first"]
)
def test_streams_with_and_without_usage_hold_up_none(client, provider, cache, threads, forms):
    """Neither can be read as the other: both reach the model, with no chunk of either there yet."""
    made = client()
    asked = []
    for count, form in enumerate(forms, 1):
        asked.append(threads.submit(said, made, form))
        provider.wait_for_calls(count)
    provider.release()
    assert all(future.result(PATIENCE).endswith("w6 ") for future in asked)
    assert (provider.calls["chat"], entries(cache), flights(made)) == (2, 1, 0)


def test_a_follower_gets_none_of_the_leaders_cookies(client, provider, threads):
    made, begun = client(), Gathering()

    def read():
        raw = ask_raw(made, model="m-held-ratelim", stream=True)
        begun.come()
        list(raw.parse())
        return raw.headers

    asked = [threads.submit(read) for _ in range(3)]
    provider.wait_for_calls(1)
    begun.wait_for(3)
    provider.release()
    headers = [future.result(PATIENCE) for future in asked]
    followed = [h for h in headers if "collapsed" in h["cache-status"]]
    assert len(followed) == 2
    assert not any("set-cookie" in h or "x-ratelimit-remaining-requests" in h for h in followed)
    assert all(h["x-request-id"] for h in followed)
    assert provider.calls["chat"] == 1


def test_followers_go_on_when_the_leader_leaves(client, provider, cache, threads):
    """The reader who began the call is one like the others."""
    made, begun = client(), threading.Event()
    leader = threads.submit(ask, made, stream=True, **HELD)
    provider.wait_for_calls(1)
    stream = leader.result(PATIENCE)
    provider.release(1)
    next(iter(stream))

    def follow():
        following = iter(ask(made, stream=True, **HELD))
        next(following)
        begun.set()
        return text(following)

    followed = threads.submit(follow)
    assert begun.wait(PATIENCE)
    stream.close()
    provider.release()
    assert followed.result(PATIENCE).endswith("w6 ")
    assert (provider.calls["chat"], flights(made), entries(cache)) == (1, 0, 1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_lead_is_not_shared(client, provider, cache, threads, boarded, stream):
    """Who waited goes upstream at once, all side by side; none is given the leader's error."""
    made, joined = client(max_retries=0), boarded(stream)

    def fail():
        with pytest.raises(openai.InternalServerError):
            ask(made, model="m-held-500", stream=stream)
        return True

    asked = [threads.submit(fail) for _ in range(6)]
    joined.wait_for(6)
    provider.wait_for_calls(1)
    provider.release(1)
    provider.wait_for(lambda p: p.calls["chat"] == 6)  # five of them now, and none has been answered
    provider.release()
    assert all(future.result(PATIENCE) for future in asked)
    assert (flights(made), entries(cache)) == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_credential_refuses_nobody_else(client, provider, threads, stream):
    """The one with the bad key leads and gets its 429; the one with a good key gets an answer."""
    bad, good = client(api_key="bad", max_retries=0), client(api_key="good", max_retries=0)
    good._client._transport = bad._client._transport  # one way in, two credentials
    refused = threads.submit(ask, bad, model="m-held-bykey", stream=stream)
    provider.wait_for_calls(1)
    answered = threads.submit(ask, good, model="m-held-bykey", stream=stream)
    provider.release()
    with pytest.raises(openai.RateLimitError):
        refused.result(PATIENCE)
    got = answered.result(PATIENCE)
    assert text(got).endswith("w6 ") if stream else got.choices[0].message.content.endswith("w6 ")


def test_readers_come_and_go(client, provider, threads):
    """Whoever stays is given a whole answer."""
    made = client()

    def some(number):
        stream = ask(made, f"question {number % 3}", stream=True, max_tokens=5)
        next(iter(stream))
        if number % 2:
            stream.close()
            return None
        return text(stream)

    results = [r for r in threads.map(some, range(60)) if r is not None]
    assert len(results) == 30
    assert all(result.endswith("w3 ") for result in results)
    assert flights(made) == 0


# --- asyncio ------------------------------------------------------------------------------------------------------


async def test_tasks_share_a_whole_answer(client, provider, cache):
    """Twenty ask, one reaches the model."""
    made = client(openai.AsyncOpenAI)
    asked = [asyncio.ensure_future(ask(made, **HELD)) for _ in range(20)]
    await asyncio.to_thread(provider.wait_for_calls, 1)
    provider.release()
    answers = await asyncio.wait_for(asyncio.gather(*asked), PATIENCE)
    assert len({answer.id for answer in answers}) == 1
    assert (provider.calls["chat"], entries(cache)) == (1, 1)
    await made.close()


async def test_tasks_read_along_a_running_stream(client, provider):
    """All twenty have the first chunk before upstream lets go of the second."""
    made = client(openai.AsyncOpenAI)
    firsts = asyncio.Semaphore(0)

    async def read():
        stream = await ask(made, stream=True, **HELD)
        await anext(stream)
        firsts.release()
        return await atext(stream)

    asked = [asyncio.ensure_future(read()) for _ in range(20)]
    await asyncio.to_thread(provider.wait_for_calls, 1)
    provider.release(1)
    for _ in range(20):
        await asyncio.wait_for(firsts.acquire(), PATIENCE)
    provider.release()
    assert len(set(await asyncio.wait_for(asyncio.gather(*asked), PATIENCE))) == 1
    assert (provider.calls["chat"], flights(made)) == (1, 0)
    await made.close()


async def test_tasks_go_on_when_the_leader_leaves(client, provider, cache):
    made = client(openai.AsyncOpenAI)
    asked = asyncio.ensure_future(ask(made, stream=True, **HELD))
    await asyncio.to_thread(provider.wait_for_calls, 1)
    leader = await asked
    provider.release(1)
    await anext(leader)
    follower = await ask(made, stream=True, **HELD)
    await anext(follower)
    await leader.close()
    provider.release()
    assert (await atext(follower)).endswith("w6 ")
    assert (provider.calls["chat"], flights(made), entries(cache)) == (1, 0, 1)
    await made.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cancelled_leader_is_followed_by_another(client, provider, boarded, stream):
    """Cancelled before upstream says anything; those who waited are given an answer."""
    made, joined = client(openai.AsyncOpenAI), boarded(stream)
    words = {"model": "m-late" if stream else "m-held", "stream": stream}
    leader = asyncio.ensure_future(ask(made, **words))
    await asyncio.to_thread(provider.wait_for_calls, 1)
    followers = [asyncio.ensure_future(ask(made, **words)) for _ in range(3)]
    await asyncio.to_thread(joined.wait_for, 4)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    if not stream:  # the call of a stream is everybody's: it goes on
        await asyncio.to_thread(provider.wait_for_calls, 2)
    provider.release()
    for follower in followers:
        got = await asyncio.wait_for(follower, PATIENCE)
        said = await atext(got) if stream else got.choices[0].message.content
        assert said.endswith("w6 ")
    assert provider.calls["chat"] == (1 if stream else 2)
    assert flights(made) == 0
    await made.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failed_lead_is_not_shared_by_asyncio(client, provider, boarded, stream):
    made, joined = client(openai.AsyncOpenAI, max_retries=0), boarded(stream)
    asked = [asyncio.ensure_future(ask(made, model="m-held-500", stream=stream)) for _ in range(6)]
    await asyncio.to_thread(joined.wait_for, 6)
    await asyncio.to_thread(provider.wait_for_calls, 1)
    provider.release(1)
    await asyncio.to_thread(provider.wait_for_calls, 6)
    provider.release()
    results = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), PATIENCE)
    assert {type(result) for result in results} == {openai.InternalServerError}
    assert flights(made) == 0
    await made.close()


@pytest.mark.parametrize("stream", [False, True])
def test_three_event_loops(client, provider, lib, stream):
    """Each caller is answered, whichever loop leads; one call of the model."""
    import askonce_openai

    cache, begun = client()._client._transport.askonce.options.cache, Gathering()

    async def one():
        http = askonce_openai.wrap(lib.AsyncClient(timeout=30), cache)
        async with openai.AsyncOpenAI(api_key="k", base_url=provider.url + "/v1", http_client=http) as made:
            begun.come()
            got = await ask(made, model="m-held", stream=stream)
            return await atext(got) if stream else got.choices[0].message.content

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(asyncio.run, one()) for _ in range(3)]
        begun.wait_for(3)
        provider.wait_for_calls(1)
        provider.release()
        assert len({future.result(PATIENCE) for future in asked}) == 1
    assert provider.calls["chat"] == 1


async def test_a_cancellation_that_comes_with_a_chunk_is_not_lost(client, provider):
    """wait_for of Python 3.11 swallows it."""
    made = client(openai.AsyncOpenAI)

    for number in range(20):
        asked = asyncio.ensure_future(ask(made, f"{number}", stream=True, **HELD))
        await asyncio.to_thread(provider.wait_for_calls, number + 1)
        stream = await asked
        flight = next(iter(made._client._transport.askonce._flights._running))
        reading = asyncio.ensure_future(anext(stream))
        while not flight._waiting:
            await asyncio.sleep(0)
        flight._take(b": a chunk\n\n")
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await stream.close()
    provider.release()
    await made.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_follower_out_of_patience_asks_for_itself(client, provider, threads, boarded, stream):
    """After its own read timeout, and it is given neither an error of ours nor the leader's time."""
    made, joined = client(max_retries=0), boarded(stream)
    slow = {"model": "m-400-held" if stream else "m-held", "stream": stream}
    leader = threads.submit(ask, made, **slow)
    provider.wait_for_calls(1)
    follower = threads.submit(ask, made.with_options(timeout=1.0), **slow)
    joined.wait_for(2)
    provider.wait_for_calls(2)  # it waited for a second, then made a call of its own
    provider.release()
    for asked in (leader, follower):
        if stream:
            with pytest.raises(openai.BadRequestError):
                asked.result(PATIENCE)
        else:
            assert asked.result(PATIENCE).choices
