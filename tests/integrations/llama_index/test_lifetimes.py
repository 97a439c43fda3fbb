"""Stale answers and their refresh, many event loops, and a Redis that goes away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("llama_index.llms.openai")

from llama_index.core.async_utils import asyncio_run
from llama_index_instrumentation.span import active_span_id
from tests.servers import Server

from askonce import BackendUnavailable, Cache, Policy
from askonce_llama_index import attach

from .conftest import CHAT, Watch, ask, last, user
from .provider import Provider

Make = Callable[..., Any]
STALE = Policy(ttl=0.05, stale_while_revalidate="1h")


def until_stale(cache: Cache) -> None:
    while any(entry.ttl > 0 for entry in cache.entries()):
        pass


@pytest.mark.parametrize("name", CHAT)
async def test_a_stale_answer_is_refreshed_behind_its_caller(
    make: Make, make_cache: Callable[..., Cache], provider: Provider, watch: Watch, name: str
) -> None:
    """The caller gets the old one at once; the refresh is a real call, tagged, with no span of the caller's."""
    cache = make_cache(policy=STALE)
    llm, go, asked = attach(make(), cache), threading.Event(), threading.Event()
    old = last(await ask(llm, name, user("stale"))).message.content
    until_stale(cache)
    watch.take()
    active_span_id.set("outer")
    provider.gate = lambda _body, _chunk: (asked.set(), go.wait(20))
    with provider.expects(1):
        assert last(await ask(llm, name, user("stale"))).message.content == old
        assert await asyncio.to_thread(asked.wait, 20)
        events, spans = watch.take()
        assert {tag for _, tag in events} == {"stale", "refresh"}
        assert {(span[3], span[4]) for span in spans} == {("stale", "outer"), ("refresh", None)}
        go.set()
        while cache.stats().replaced == 0:
            await asyncio.sleep(0.01)
    provider.gate = lambda _body, _chunk: None
    new = last(await ask(llm, name, user("stale"))).message.content
    assert new != old


@pytest.mark.parametrize("name", CHAT)
@pytest.mark.parametrize("what", ["messages", "model"])
async def test_a_refresh_of_what_was_changed_is_dropped(
    make: Make, make_cache: Callable[..., Cache], provider: Provider, what: str, name: str
) -> None:
    """A caller who goes on with the same list, or changes the model, must not have another answer stored for it."""
    cache = make_cache(policy=STALE)
    llm, asked, go = attach(make(), cache), threading.Event(), threading.Event()
    messages = user("mine")
    old = last(await ask(llm, name, messages)).message.content
    until_stale(cache)
    provider.gate = lambda _body, _chunk: (asked.set(), go.wait(20))
    assert last(await ask(llm, name, messages)).message.content == old
    if what == "model":
        assert await asyncio.to_thread(asked.wait, 20)
        llm.temperature = 0.9
    else:
        messages.extend(user("more"))
    go.set()
    while cache.stats().refresh_errors + cache.stats().replaced == 0:
        await asyncio.sleep(0.01)
    if what == "model":
        assert (cache.stats().refresh_errors, cache.stats().replaced) == (1, 0)
    else:  # it was copied before, or found to be another question
        entry = last(await ask(llm, name, user("mine"))).message.content
        assert entry.endswith("mine")


def test_an_old_answer_stands_in_for_a_failing_model(
    make: Make, make_cache: Callable[..., Cache], provider: Provider, watch: Watch
) -> None:
    """stale_if_error, for calls; the failed one shows its events too."""
    cache = make_cache(policy=Policy(ttl=0.05, stale_if_error="1h"))
    llm = attach(make(max_retries=0), cache)
    old = llm.chat(user("keep")).message.content
    until_stale(cache)
    watch.take()
    provider.gate = lambda _body, _chunk: (_ for _ in ()).throw(ConnectionError)
    assert llm.chat(user("keep")).message.content == old
    assert cache.stats().stale_if_error == 1
    assert "stale-if-error" in {tag for _, tag in watch.take()[0]}


async def test_many_event_loops(make: Make, cache: Cache, provider: Provider) -> None:
    """Three of asyncio.run, and one that LlamaIndex starts in a thread while another runs."""

    async def one() -> str:
        return str((await attach(make(), cache).achat(user("loops"))).message.content)

    async def nested() -> str:
        return str(asyncio_run(one()))

    def run() -> set[str]:
        return {asyncio.run(one()) for _ in range(3)} | {asyncio.run(nested())}

    with provider.expects(1):
        assert len(await asyncio.to_thread(run)) == 1
    assert (cache.stats().hits, cache.stats().backend_errors) == (3, 0)


async def _all_ways(make: Make, embedder: Make, cache: Cache, text: str) -> list[Any]:
    out = [last(await ask(attach(make(), cache), name, user(text))).message.content for name in CHAT]
    model = attach(embedder(), cache)
    return [*out, await model.aget_text_embedding(text), model.get_text_embedding(text)]


async def test_redis_goes_away_and_comes_back(
    make: Make,
    embedder: Make,
    make_cache: Callable[..., Cache],
    own_server: Callable[..., Server],
    provider: Provider,
) -> None:
    """In the middle of a stream: it goes on, every call is made, nothing is raised, and later it caches again."""
    server = own_server()
    cache = make_cache(server.url, deadline=0.5)
    with provider.expects(1):
        before = await _all_ways(make, embedder, cache, "up")
    chunks = attach(make(), cache).stream_chat(user("mid-stream"))
    next(chunks)
    server.freeze()
    assert len(list(chunks)) > 1
    with provider.expects(4):
        away = await _all_ways(make, embedder, cache, "up")
    assert away[4:] == before[4:]
    assert all(away[:4])
    server.thaw()
    for _ in range(100):
        calls = provider.calls
        back = await _all_ways(make, embedder, cache, "up")
        if provider.calls == calls:
            break
        await asyncio.sleep(0.1)
    assert back == before


async def test_a_strict_cache_raises(
    make: Make, make_cache: Callable[..., Cache], own_server: Callable[..., Server]
) -> None:
    """askonce's own error, for tests and migrations."""
    server = own_server()
    cache = make_cache(server.url, deadline=0.2, strict=True)
    llm = attach(make(), cache)
    llm.chat(user("strict"))
    server.freeze()
    for name in CHAT:
        with pytest.raises(BackendUnavailable):
            await ask(llm, name, user("strict"))
    server.thaw()
