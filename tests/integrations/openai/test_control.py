"""Control of single calls, by headers and by ``askonce.control``; what the headers of answers say; options of hits."""

from __future__ import annotations

import re

import openai
import pytest
import redis
from tests.contract.polling import tick
from tests.integrations.openai.kit import ask, ask_raw, atext, entries, status_of, text

import askonce_openai
from askonce import Cache, ConfigurationError, Policy, control, upstream

NO_CACHE = {"cache-control": "no-cache"}


def headers(**words):
    return {"extra_headers": {name.replace("_", "-"): value for name, value in words.items()}}


def test_no_cache_goes_upstream_and_refreshes(client):
    made = client()
    first, second = ask(made), ask(made, extra_headers=NO_CACHE)
    assert first != second
    assert ask(made) == second


def test_no_store_serves_and_writes_nothing(client, provider, cache):
    made = client()
    ask(made, **headers(cache_control="no-store"))
    assert entries(cache) == 0
    first = ask(made)
    assert ask(made, **headers(cache_control="no-store")) == first
    ask(made, **headers(cache_control="no-cache, no-store"))
    assert ask(made) == first
    assert provider.calls["chat"] == 3


def test_max_age(client, provider):
    """Older answers are not served; what cannot be read asks for a fresh one."""
    made = client()
    ask(made)
    ask(made, **headers(cache_control="max-age=3600"))
    assert provider.calls["chat"] == 1
    ask(made, **headers(cache_control="max-age=0"))
    ask(made, **headers(cache_control="max-age=soon"))
    assert provider.calls["chat"] == 3


def test_default_headers_count(client, provider):
    made = client()
    ask(made)
    ask(made.with_options(default_headers=NO_CACHE))
    assert provider.calls["chat"] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_only_if_cached_is_a_504_that_is_not_retried(client, provider, stream):
    """The SDK would retry a 504 unless it is told not to."""
    made = client(max_retries=2)
    with pytest.raises(openai.InternalServerError) as caught:
        ask(made, stream=stream, **headers(cache_control="only-if-cached"))
    assert caught.value.status_code == 504
    assert caught.value.response.headers["cache-status"] == "askonce; fwd=miss; detail=only-if-cached"
    assert sum(provider.calls.values()) == 0
    ask(made)
    got = ask(made, stream=stream, **headers(cache_control="only-if-cached"))
    assert text(got) if stream else got.choices


async def test_only_if_cached_by_asyncio(client, provider):
    made = client(openai.AsyncOpenAI, max_retries=2)
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError):
            await ask(made, stream=stream, **headers(cache_control="only-if-cached"))
    assert sum(provider.calls.values()) == 0
    await made.close()


def test_control_changes_the_calls_inside(client, provider):
    made = client()
    ask(made)
    with control(read=False):
        ask(made)
        assert text(ask(made, stream=True))
    assert provider.calls["chat"] == 3
    with control(write=False):
        ask(made, "another")
    ask(made, "another")
    assert provider.calls["chat"] == 5


async def test_control_changes_asynchronous_calls(client, provider):
    made = client(openai.AsyncOpenAI)
    await ask(made)
    with control(read=False):
        await ask(made)
        await atext(await ask(made, stream=True))
    assert provider.calls["chat"] == 3
    await made.close()


def test_the_stricter_wins(client, provider):
    """A header cannot allow what the block forbids."""
    made = client()
    ask(made)
    with control(read=False):
        ask(made, **headers(cache_control="max-age=3600"))
    with control(max_age=3600):
        ask(made, **headers(cache_control="max-age=0"))
    assert provider.calls["chat"] == 3


def test_scopes_keep_callers_apart(client, provider):
    """By header and by block alike; any text of the header is a scope."""
    made = client()
    ask(made)
    ask(made, **headers(x_askonce_scope="tenant=a"))
    with control(scope={"tenant": "a"}):
        ask(made)
        ask(made, stream=True).close()
    assert provider.calls["chat"] == 2
    ask(made, **headers(x_askonce_scope="just a word"))
    assert provider.calls["chat"] == 3


def test_ttl_and_tags_by_header(client, provider, cache):
    made = client()
    ask(made, **headers(x_askonce_ttl="7s", x_askonce_tags="page, nightly"))
    (entry,) = cache.entries()
    assert 0 < entry.ttl <= 7
    assert cache.invalidate_tag("nightly")
    ask(made)
    assert provider.calls["chat"] == 2
    ask(made, "other", **headers(x_askonce_ttl="nonsense"))  # a bad value is ignored
    assert entries(cache) == 2


def test_a_stream_obeys_ttl_and_tags_too(client, provider, cache):
    made = client()
    list(ask(made, stream=True, **headers(x_askonce_ttl="7s", x_askonce_tags="nightly")))
    (entry,) = cache.entries()
    assert 0 < entry.ttl <= 7
    assert cache.invalidate_tag("nightly")
    list(ask(made, stream=True))
    assert provider.calls["chat"] == 2


@pytest.mark.parametrize("words", [{}, {"store": True}], ids=["cached", "bypassed"])
def test_nothing_of_ours_goes_upstream(client, provider, words):
    made = client()
    ask(
        made,
        **words,
        **headers(x_askonce_scope="A", x_askonce_ttl="9s", x_askonce_tags="t", x_askonce_other="x"),
    )
    assert not [name for name in provider.last["chat"]["headers"] if "askonce" in name]


# --- what answers say ---------------------------------------------------------------------------------------------


def test_the_status_of_answers(client):
    """A miss claims no store: its headers leave before the answer is whole."""
    made = client()
    raw = ask_raw(made)
    assert (status_of(raw), raw.headers.get("age")) == ("askonce; fwd=miss", None)
    raw = ask_raw(made)
    assert status_of(raw).startswith("askonce; hit; ttl=")
    assert raw.headers["age"] == "0"
    assert status_of(ask_raw(made, extra_headers=NO_CACHE)) == "askonce; fwd=request"
    assert status_of(ask_raw(made, store=True)) == 'askonce; fwd=bypass; detail="store"'
    raw = ask_raw(made, stream=True)
    assert status_of(raw).startswith("askonce; hit; ttl=")
    assert raw.headers["age"] == "0"
    raw = ask_raw(made, "new", stream=True)
    assert status_of(raw) == "askonce; fwd=miss"
    list(raw.parse())
    raw = made.embeddings.with_raw_response.create(model="e", input=["a", "b"])
    assert status_of(raw) == "askonce; fwd=miss"
    raw = made.embeddings.with_raw_response.create(model="e", input=["a", "b", "c"])
    assert status_of(raw) == 'askonce; fwd=miss; detail="2 of 3 items stored"'
    raw = made.embeddings.with_raw_response.create(model="e", input=["a", "b"])
    assert status_of(raw) == "askonce; hit"


def test_a_stale_answer_says_so_and_is_refreshed_behind(client, provider, url):
    """RFC 5861, 3: the caller does not wait for the new one."""
    policy = Policy(ttl=0.001, stale_while_revalidate="1h")
    with Cache(url, namespace="stale", deadline=5.0, policy=policy) as cache:
        made = client(cached=cache)
        first = ask(made)
        tick(redis.Redis.from_url(url))
        raw = ask_raw(made)
        assert raw.parse() == first
        assert re.fullmatch(r'askonce; hit; ttl=0; key="[\w-]{27}"; detail=stale', status_of(raw))
        provider.wait_for_calls(2)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stale_answer_stands_in_for_a_provider_that_fails(client, provider, url, stream):
    """RFC 5861, 4: for 429 and 5xx; a request that is refused for good is refused."""
    policy = Policy(ttl=0.001, stale_if_error="1h")
    with Cache(url, namespace="stale", deadline=5.0, policy=policy) as cache:
        made = client(cached=cache, max_retries=0, api_key="good")
        first = ask(made, model="m-bykey")
        bad = client(cached=cache, max_retries=0, api_key="bad")
        tick(redis.Redis.from_url(url))
        got = ask(bad, model="m-bykey", stream=stream)
        said = text(got) if stream else got.choices[0].message.content
        assert said == first.choices[0].message.content
        assert provider.calls["chat"] == 2


# --- options ------------------------------------------------------------------------------------------------------


def test_usage_on_hit(client):
    """For meters: nothing was used."""
    made = client(options={"usage_on_hit": "zero"})
    assert ask(made).usage.total_tokens == 13
    assert ask(made).usage.total_tokens == 0
    chunks = list(ask(made, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.total_tokens == 0


def test_fresh_ids(client):
    """For those who keep answers under their ids."""
    made = client(options={"fresh_ids": True})
    ids = [ask(made).id for _ in range(3)]
    assert len(set(ids)) == 3
    streamed = {chunk.id for chunk in ask(made, stream=True)}
    assert len(streamed) == 1
    assert not streamed & set(ids)


def test_replay(client):
    """As received, one event a token; coalesced, one for all."""
    verbatim, coalesced = client(), client(options={"replay": "coalesced"})
    first = list(ask(verbatim, stream=True))
    assert list(ask(verbatim, stream=True)) == first
    chunks = list(ask(coalesced, stream=True))
    assert text(chunks) == text(first)
    assert len(chunks) < 4 < len(first)


def test_scope_by_credential(client, provider):
    """Bring your own key: callers with different keys share nothing."""
    words = {"options": {"scope": "api_key"}}
    first, second = client(api_key="one", **words), client(api_key="two", **words)
    assert ask(first) == ask(first)
    assert ask(second) != ask(first)
    assert provider.calls["chat"] == 2


def test_scope_by_a_credential_in_the_query(client, provider):
    """As some gateways take it; like any other it is not in the key, but in the scope."""
    words = {"options": {"scope": "api_key"}}
    first, second = (client(default_query={"key": name}, **words) for name in ("one", "two"))
    assert ask(first) == ask(first)
    assert ask(second) != ask(first)
    assert provider.calls["chat"] == 2


def test_scope_by_function(client, provider):
    made = client(options={"scope": lambda request: request.headers.get("x-tenant", "")})
    for tenant in ("a", "b", "a"):
        ask(made, extra_headers={"x-tenant": tenant})
    assert provider.calls["chat"] == 2


def test_a_scope_function_that_fails_fails_no_call(client, provider, cache):
    made = client(options={"scope": lambda request: 1 / 0})
    ask(made)
    ask(made)
    assert (provider.calls["chat"], entries(cache)) == (2, 0)
    assert cache.stats().bypass_reasons == {"error": 2}


def test_a_header_of_several_lines_counts_whole(provider, lib, cache):
    """Each line names another behaviour that is asked for."""
    http = askonce_openai.wrap(lib.Client(), cache)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    calls = []
    for lines in (("a", "c"), ("b", "c"), ("a", "c"), ("a, c",)):
        betas = [("openai-beta", line) for line in lines]
        http.post(provider.url + "/v1/chat/completions", json=body, headers=betas)
        calls.append(provider.calls["chat"])
    assert calls == [1, 2, 2, 2]


def test_key_headers(client, provider):
    """Headers by which a gateway chooses the model."""
    made = client(options={"key_headers": ["X-Route"]})
    for route in ("fast", "cheap", "fast"):
        ask(made, extra_headers={"x-route": route})
    assert provider.calls["chat"] == 2


@pytest.mark.parametrize(
    "words",
    [
        {"replay": "fast"},
        {"usage_on_hit": "none"},
        {"fresh_ids": "yes"},
        {"scope": "tenant"},
        {"key_headers": ["Authorization"]},
        {"key_headers": ["x-routé"]},
        {"key_headers": [7]},
        {"key_headers": "x-route"},
    ],
    ids=str,
)
def test_a_wrong_word_is_refused_where_it_is_given(lib, words):
    http = lib.Client()
    with pytest.raises(ConfigurationError):
        askonce_openai.wrap(http, **words)
    assert type(http._transport) is lib.HTTPTransport


@pytest.mark.parametrize("stream", [False, True])
def test_below_another_adapter_of_askonce_it_stays_out_of_the_way(client, provider, cache, stream):
    """The outer one owns the call; embeddings are another kind of call than answers."""
    made = client()
    for _ in range(2):
        with upstream("llm"):
            got = ask(made, stream=stream)
            if stream:
                list(got)
            made.embeddings.create(model="e", input="q")
    assert (provider.calls["chat"], provider.calls["embeddings"]) == (2, 1)
    assert entries(cache) == 1
    assert cache.stats().bypassed == 0
