"""What becomes of calls when upstream or Redis fails: the SDK sees upstream's errors, and none of ours."""

from __future__ import annotations

import logging

import openai
import pytest
import redis
from tests.integrations.openai.kit import ask, ask_raw, atext, entries, flights, status_of, text

from askonce import BackendUnavailable, Cache


@pytest.mark.parametrize(
    ("model", "error"), [("m-429", openai.RateLimitError), ("m-500", openai.InternalServerError)]
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_pass_and_are_retried_by_the_sdk(client, provider, cache, model, error, stream):
    """As often as without a cache; with the error's own body and request id."""
    made = client(max_retries=1)
    with pytest.raises(error) as caught:
        ask(made, model=model, stream=stream)
    assert caught.value.body["message"] == "refused"
    assert caught.value.request_id.startswith("req_err_")
    assert (provider.calls["chat"], entries(cache)) == (2, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_good_retry_is_stored(client, provider, stream):
    made = client(max_retries=2)
    for retries in (1, 0):
        raw = ask_raw(made, model="m-flaky", stream=stream)
        if stream:
            list(raw.parse())
        assert raw.retries_taken == retries
    assert provider.calls["chat"] == 2


async def test_errors_pass_by_asyncio(client, provider, cache):
    made = client(openai.AsyncOpenAI, max_retries=1)
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(made, model="m-400", stream=stream)
        assert caught.value.body["message"] == "refused"
        with pytest.raises(openai.InternalServerError):
            await ask(made, model="m-500", stream=stream)
    assert (provider.calls["chat"], entries(cache), flights(made)) == (6, 0, 0)
    await made.close()


def test_a_provider_that_is_away(client, lib, cache):
    """A connection error of the SDK's, after its retries."""
    made = client(max_retries=1, base_url="http://127.0.0.1:1/v1")
    for stream in (False, True):
        with pytest.raises(openai.APIConnectionError):
            ask(made, stream=stream)
    assert flights(made) == 0


def test_connections_are_used_again(client, lib):
    """After whole answers, streams that were read, hits, and errors."""
    made = client(max_retries=0)
    for number in range(5):
        ask(made, f"{number}")
        list(ask(made, f"stream {number}", stream=True))
        with pytest.raises(openai.BadRequestError):
            ask(made, f"{number}", model="m-400")
        with pytest.raises(openai.BadRequestError):
            ask(made, f"{number}", model="m-400", stream=True)
    pool = made._client._transport._inner._pool
    assert len(pool.connections) <= 2
    assert all(connection.is_idle() for connection in pool.connections)


@pytest.mark.parametrize("stream", [False, True])
def test_headers_beyond_ascii_fail_no_hit(client, provider, stream):
    """HTTP allows them, if barely; who follows and who is given a hit have them as they were received."""
    made, form = client(), {"model": "m-accent", "stream": stream}
    first, second = ask_raw(made, **form), ask_raw(made, **form)
    answers = [raw.parse() for raw in (first, second)]
    one, other = (text(answer) if stream else answer.choices[0].message.content for answer in answers)
    third = ask_raw(made, **form)
    assert ("collapsed" if stream else "; hit") in status_of(second)
    assert "; hit" in status_of(third)
    assert {raw.headers["openai-model"] for raw in (first, second, third)} == {"modèle"}
    assert one == other
    assert provider.calls["chat"] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_redis_is_away(client, provider, stream):
    made = client(cached=Cache("redis://127.0.0.1:1/0", namespace="sdk"), max_retries=0)
    for _ in range(2):
        got = ask(made, stream=stream)
        said = text(got) if stream else got.choices[0].message.content
        assert said.endswith("w6 ")
    made.embeddings.create(model="e", input=["a", "b"])
    assert (provider.calls["chat"], provider.calls["embeddings"]) == (2, 1)


async def test_redis_is_away_by_asyncio(client, provider):
    made = client(openai.AsyncOpenAI, cached=Cache("redis://127.0.0.1:1/0", namespace="sdk"), max_retries=0)
    assert (await ask(made)).choices
    assert (await atext(await ask(made, stream=True))).endswith("w6 ")
    assert (await made.embeddings.create(model="e", input=["a", "b"])).data
    assert provider.calls["chat"] == 2
    await made.close()


def test_a_strict_cache_raises_its_own_error(client, provider):
    """Through whatever the SDK makes of a transport's exception: openai 2 calls it a connection error."""
    cache = Cache("redis://127.0.0.1:1/0", namespace="sdk", strict=True)
    made = client(cached=cache, max_retries=0)
    with pytest.raises((BackendUnavailable, openai.APIConnectionError)) as caught:
        ask(made)
    assert any(isinstance(error, BackendUnavailable) for error in (caught.value, caught.value.__cause__))
    assert sum(provider.calls.values()) == 0


@pytest.mark.parametrize("stream", [False, True])
def test_redis_is_frozen(client, provider, own_server, stream):
    """Within its deadline the cache steps aside."""
    server = own_server()
    made = client(cached=Cache(server.url, namespace="sdk", deadline=0.2), max_retries=0)
    ask(made)
    server.freeze()
    got = ask(made, stream=stream)
    assert text(got) if stream else got.choices
    server.thaw()
    assert provider.calls["chat"] == 2


def test_redis_is_full(client, provider, own_server):
    """Hits are served, answers are not stored."""
    server = own_server()
    with Cache(server.url, namespace="sdk", deadline=5.0) as cache:
        made = client(cached=cache, max_retries=0)
        first = ask(made)
        redis.Redis.from_url(server.url).config_set("maxmemory", "1")
        assert ask(made) == first
        for _ in range(2):
            assert text(ask(made, "another", stream=True)).endswith("w6 ")
        assert provider.calls["chat"] == 3


@pytest.mark.parametrize(
    "change", [lambda v: v[:-40], lambda v: v[:60], lambda v: b"foreign", lambda v: v + b"x"]
)
def test_an_entry_that_was_tampered_with_is_a_miss(client, provider, cache, url, change):
    """Cut, foreign, or with something behind it."""
    made = client(max_retries=0)
    ask(made)
    raw = redis.Redis.from_url(url)
    for key in raw.scan_iter():
        if raw.type(key) == b"string" and raw.get(key)[:2] == b"AO":
            raw.set(key, change(raw.get(key)))
    for stream in (False, True):
        got = ask(made, stream=stream)
        assert text(got) if stream else got.choices
    assert provider.calls["chat"] <= 3


def test_no_warning_is_logged_by_all_this(client, provider, cache, caplog):
    """Streams, hits, errors and streams that are left say nothing."""
    caplog.set_level(logging.WARNING)
    made = client(max_retries=0)
    for _ in range(2):
        ask(made)
        list(ask(made, "s", stream=True))
        ask(made, "left", stream=True).close()
        with pytest.raises(openai.BadRequestError):
            ask(made, model="m-400", stream=True)
    assert flights(made) == 0
    said = [record.getMessage() for record in caplog.records if record.name.startswith("askonce")]
    assert said == []
