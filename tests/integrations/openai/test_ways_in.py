"""wrap and the ready-made HTTP clients: what they keep of a client, and what they refuse."""

from __future__ import annotations

import asyncio

import openai
import pytest
from tests.integrations.openai.kit import ask, ask_raw, atext, entries, status_of

import askonce_openai
from askonce import AsyncCache, Cache, ConfigurationError


def plain(provider, cls=openai.OpenAI, **kwargs):
    return cls(api_key="k", base_url=provider.url + "/v1", **kwargs)


def test_wrap_returns_the_client_and_a_second_time_changes_nothing(provider, cache, url):
    """Also with a cache that is made from the same URL in the same way."""
    made = plain(provider)
    assert askonce_openai.wrap(made, cache) is made
    transport = made._client._transport
    assert askonce_openai.wrap(made, cache) is made
    assert askonce_openai.wrap(made, Cache(url, namespace="sdk", deadline=5.0)) is made
    assert made._client._transport is transport
    assert ask(made) == ask(made)
    assert provider.calls["chat"] == 1


def test_another_cache_is_refused(provider, cache, url):
    made = askonce_openai.wrap(plain(provider), cache)
    for arguments in (
        (Cache(url, namespace="another"), {}),
        (cache, {"fresh_ids": True}),
        (cache, {"scope": "api_key"}),
    ):
        with pytest.raises(ConfigurationError, match="another cache already"):
            askonce_openai.wrap(made, arguments[0], **arguments[1])


def test_a_url_is_enough(provider, url):
    made = askonce_openai.wrap(plain(provider), url)
    assert ask(made) == ask(made)
    assert provider.calls["chat"] == 1


def test_clients_with_other_options_share_it(provider, cache):
    """with_options copies a client; the HTTP client below is one."""
    made = plain(provider)
    other = made.with_options(timeout=5)
    askonce_openai.wrap(made, cache)
    assert ask(made) == ask(other)
    assert provider.calls["chat"] == 1


@pytest.mark.parametrize("thing", [object(), openai, "redis://localhost"], ids=["object", "module", "url"])
def test_what_is_no_client_is_refused(thing, cache):
    with pytest.raises(ConfigurationError, match="is no client"):
        askonce_openai.wrap(thing, cache)


def test_what_is_no_cache_is_refused(lib, url):
    with pytest.raises(ConfigurationError, match="async twin"):
        askonce_openai.wrap(lib.Client(), AsyncCache(url))


def test_wrap_keeps_the_proxies_of_the_environment(monkeypatch, lib, cache):
    """Client(transport=...) would lose them."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "internal.example")
    before = lib.Client()
    wrapped = askonce_openai.wrap(lib.Client(), cache)
    assert list(wrapped._mounts) == list(before._mounts)
    assert [t is None for t in wrapped._mounts.values()] == [t is None for t in before._mounts.values()]
    proxied = wrapped._transport_for_url(lib.URL("https://api.openai.com/"))
    assert type(proxied._inner._pool).__name__ == "HTTPProxy"
    assert proxied.askonce is wrapped._transport.askonce


def test_the_ready_made_client_has_the_defaults_of_the_sdk(monkeypatch, provider, cache):
    """Limits, timeouts, redirects, proxies."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    http = askonce_openai.http_client(cache)
    assert isinstance(http, openai.DefaultHttpxClient)
    assert http.follow_redirects
    assert len(http._mounts) == 1
    assert http.timeout.read == 600
    assert http._transport._inner._pool._max_connections == 1000
    monkeypatch.delenv("HTTPS_PROXY")
    made = plain(provider, http_client=askonce_openai.http_client(cache, timeout=7))
    assert made._client.timeout.read == 7
    assert ask(made) == ask(made)
    assert provider.calls["chat"] == 1


async def test_the_ready_made_asynchronous_client(provider, cache):
    made = plain(provider, openai.AsyncOpenAI, http_client=askonce_openai.async_http_client(cache))
    assert await ask(made) == await ask(made)
    assert provider.calls["chat"] == 1
    await made.close()


def test_a_base_of_ones_own(provider, lib, cache):
    """base= makes the client, and gets what else is given."""
    http = askonce_openai.http_client(cache, base=lib.Client, headers={"x-team": "blue"})
    assert type(http) is lib.Client
    ask(plain(provider, http_client=http))
    assert provider.last["chat"]["headers"]["x-team"] == "blue"


async def test_the_aiohttp_backend(provider, cache):
    """It stays, below the cache."""
    pytest.importorskip("aiohttp")
    pytest.importorskip("httpx_aiohttp", reason="part of openai[aiohttp]") if openai.VERSION < "3" else None
    http = askonce_openai.async_http_client(cache, base=openai.DefaultAioHttpClient)
    assert "aiohttp" in type(http._transport._inner).__module__.lower()
    made = plain(provider, openai.AsyncOpenAI, http_client=http)
    assert await ask(made) == await ask(made)
    first, second = [[e async for e in await ask(made, "s", stream=True)] for _ in range(2)]
    assert first == second
    stream = await ask(made, "early", stream=True)
    await anext(stream)
    await stream.close()
    assert (await atext(await ask(made, "early", stream=True))).endswith("w6 ")
    await made.close()


def test_other_requests_of_a_wrapped_client_pass(provider, lib, cache):
    """A POST to a path that ends like a model's, with a body that is none of a model."""
    http = askonce_openai.wrap(lib.Client(), cache)
    first, second = (http.post(provider.url + "/forms/7/responses", json={"name": "x"}) for _ in range(2))
    assert first.json() != second.json()
    assert http.get(provider.url + "/v1/models").status_code == 404
    assert provider.calls["foreign"] == 2


def test_a_body_that_comes_in_pieces_passes(provider, lib, cache):
    """It can be read once only, and that by upstream."""
    http = askonce_openai.wrap(lib.Client(), cache)
    pieces = iter([b'{"model": "m", "messages": [{"role": "user",', b' "content": "hi"}]}'])
    answer = http.post(
        provider.url + "/v1/chat/completions",
        content=pieces,
        headers={"content-type": "application/json"},
    )
    assert answer.json()["choices"][0]["message"]["content"].startswith("answer-")
    assert "bypass" in answer.headers["cache-status"]


def test_trio_passes(provider, cache, client):
    """It runs no task of asyncio: the cache steps aside, and says so."""
    trio = pytest.importorskip("trio")
    made = client(openai.AsyncOpenAI)

    async def main():
        raws = [await ask_raw(made, extra_headers={"x-askonce-ttl": "1h"}) for _ in range(2)]
        async with await ask(made, stream=True) as stream:
            streamed = await atext(stream)
        vectors = await made.embeddings.create(model="m", input=["a", "b"])
        await made.close()
        return [status_of(raw) for raw in raws], streamed[:7], len(vectors.data)

    status = 'askonce; fwd=bypass; detail="no-asyncio-loop"'
    assert trio.run(main) == ([status, status], "answer-", 2)
    assert provider.calls["chat"] == 3
    assert not any(name.startswith("x-askonce-") for seen in provider.seen for name in seen["headers"])
    assert cache.stats().bypass_reasons == {"no-asyncio-loop": 4}
    assert entries(cache) == 0


def test_what_asyncio_lends_its_loop_to_passes(provider, cache, lib):
    """A loop runs under trio's guest mode too; what matters is whether a task of asyncio waits here."""
    http = askonce_openai.wrap(lib.AsyncClient(), cache)
    transport = http._transport
    request = lib.Request(
        "POST", provider.url + "/v1/chat/completions", json={"model": "m", "messages": [{"role": "user"}]}
    )
    sent = []

    async def send(given):
        sent.append(given)
        return lib.Response(200)

    async def main():
        def step():
            with pytest.raises(StopIteration):  # driven by hand, as another library's scheduler does
                transport.askonce.handle(request, send).send(None)

        loop = asyncio.get_running_loop()
        done = loop.create_future()
        loop.call_soon(lambda: (step(), done.set_result(None)))
        await done

    asyncio.run(main())
    assert sent == [request]
    assert cache.stats().bypass_reasons == {"no-asyncio-loop": 1}


@pytest.mark.parametrize("way", ["wrap", "install", "http_client", "async_http_client"])
def test_a_word_that_is_not_known_is_refused(way, cache, provider):
    """Misspelt, it would be left out in silence."""
    first = (plain(provider),) if way == "wrap" else ()
    # What is no option of ours is the HTTP client's, where one is made.
    said = (
        "fresh_id" if "http_client" in way else r"^fresh_id= is no option here; give replay, .*askonce\.Cache"
    )
    with pytest.raises(TypeError, match=said):
        getattr(askonce_openai, way)(*first, cache, fresh_id=True)
    with pytest.raises(ConfigurationError, match="replay="):
        getattr(askonce_openai, way)(*first, cache, replay="slow")
