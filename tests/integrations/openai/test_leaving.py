"""Streams that their readers leave: closed, collected, cancelled; what is an answer is stored, the rest is let go."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from tests.contract.polling import until
from tests.integrations.openai.kit import ask, atext, entries, flights, text
from tests.integrations.openai.provider import PATIENCE

from askonce_openai._flights import Flights


def begun(client, provider, chunks=1, **words):
    """Return a stream of which upstream has let go some chunks, all read."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, client, stream=True, **{"model": "m-held", **words})
        provider.wait_for(lambda p: p.calls["chat"] or asked.done())
        stream = asked.result(PATIENCE)
    provider.release(chunks)
    for _ in range(chunks):
        next(stream)
    return stream


async def abegun(client, provider, chunks=1, **words):
    asked = asyncio.ensure_future(ask(client, stream=True, **{"model": "m-held", **words}))
    await asyncio.to_thread(provider.wait_for_calls, 1)
    stream = await asked
    provider.release(chunks)
    for _ in range(chunks):
        await anext(stream)
    return stream


def aborted(provider):
    provider.wait_for(lambda p: p.aborted["chat"] == 1)


def test_a_stream_that_is_closed_early_is_given_up(client, provider, cache):
    """Upstream is told, nothing is stored, and the next caller asks anew."""
    made = client()
    begun(made, provider, 2).close()
    assert (flights(made), entries(cache)) == (0, 0)
    aborted(provider)
    provider.release()
    assert text(ask(made, model="m-held", stream=True)).endswith("w6 ")
    assert provider.calls["chat"] == 2


def test_a_stream_that_is_collected_is_given_up(client, provider, cache):
    made = client()
    stream = begun(made, provider)
    del stream
    gc.collect()
    assert (flights(made), entries(cache)) == (0, 0)
    aborted(provider)


def test_a_stream_that_is_left_at_its_last_word_is_stored(client, provider, cache):
    """The caller stops at finish_reason, before [DONE] has come."""
    made = client()
    stream = begun(made, provider, 10)
    stream.close()
    assert (flights(made), entries(cache)) == (0, 1)
    assert text(ask(made, model="m-held", stream=True)).endswith("w6 ")
    assert provider.calls["chat"] == 1
    provider.release()


@pytest.mark.parametrize("hold", ["table", "turn"])
def test_close_under_a_lock_of_ours_waits_for_nothing(client, provider, monkeypatch, hold):
    """The garbage collector may close a stream anywhere in this thread: no deadlock, and Redis is not asked here."""
    made = client()
    stream = begun(made, provider)
    (flight,) = made._client._transport.askonce._flights._shared.values()
    lock = made._client._transport.askonce._flights.lock if hold == "table" else flight._turn
    asked_here = []
    cache = made._client._transport.askonce.options.cache
    exchange = type(cache)._exchange

    def watched(self, *args):
        asked_here.append(threading.current_thread())
        return exchange(self, *args)

    monkeypatch.setattr(type(cache), "_exchange", watched)
    with lock:
        stream.close()
    assert threading.current_thread() not in asked_here
    assert flights(made) == 0
    assert asked_here  # the lease was given back, elsewhere
    provider.release()


def test_nobody_joins_a_flight_that_its_last_reader_is_leaving(client, provider):
    """A collection may close it at any moment, in the middle of a join too."""
    table = Flights()

    class Leaving:
        done, readers, key, left = False, 0, "key", False

    leaving = Leaving()
    table._shared["key"] = leaving
    fresh = object()

    class Joining(dict):
        def get(self, key):
            found = super().get(key)
            if found is leaving and not leaving.left:
                leaving.left = True
                table.remove(leaving)
            return found

    table._shared = Joining(table._shared)
    assert table.join("key", lambda _: fresh) == (fresh, True)


async def test_an_asynchronous_stream_that_is_closed_early_is_given_up(client, provider, cache):
    made = client(openai.AsyncOpenAI)
    stream = await abegun(made, provider, 2)
    await stream.close()
    assert (flights(made), entries(cache)) == (0, 0)
    await asyncio.to_thread(aborted, provider)
    provider.release()
    assert (await atext(await ask(made, model="m-held", stream=True))).endswith("w6 ")
    await made.close()


async def test_an_asynchronous_stream_that_is_collected_is_given_up(client, provider, cache):
    made = client(openai.AsyncOpenAI)
    stream = await abegun(made, provider)
    del stream
    gc.collect()
    await asyncio.to_thread(until, lambda: flights(made) == 0)
    assert entries(cache) == 0
    await asyncio.to_thread(aborted, provider)
    await made.close()


async def test_an_asynchronous_stream_whose_reader_is_cancelled_is_given_up(client, provider, cache):
    made = client(openai.AsyncOpenAI)
    stream = await abegun(made, provider)

    async def read():
        async with stream:
            await atext(stream)

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await asyncio.to_thread(until, lambda: flights(made) == 0)
    assert entries(cache) == 0
    await asyncio.to_thread(aborted, provider)
    await made.close()


async def test_an_asynchronous_stream_that_is_left_at_its_last_word_is_stored(client, provider, cache):
    made = client(openai.AsyncOpenAI)
    stream = await abegun(made, provider, 10)
    await stream.close()
    assert (flights(made), entries(cache)) == (0, 1)
    assert (await atext(await ask(made, model="m-held", stream=True))).endswith("w6 ")
    assert provider.calls["chat"] == 1
    provider.release()
    await made.close()


async def test_a_stream_goes_on_where_its_iteration_stopped(client, provider):
    """openai 3 iterates a second time to drain the connection."""
    made = client(openai.AsyncOpenAI)
    for _ in range(2):
        async with made.chat.completions.with_streaming_response.create(
            model="m", messages=[{"role": "user", "content": "hi"}], stream=True
        ) as response:
            raw = response.http_response.stream
            whole = [chunk async for chunk in raw]
            again = [chunk async for chunk in raw]
        assert b"".join(whole).rstrip().endswith(b"[DONE]")
        assert again == []
    await made.close()
