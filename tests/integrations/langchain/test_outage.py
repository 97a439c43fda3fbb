"""No outage of Redis reaches the caller of a model (langchain#16866)."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.outputs import Generation

from askonce import BackendUnavailable
from askonce_langchain import AskonceCache


@pytest.fixture(params=["refused", "frozen", "out of memory"])
def broken(request: pytest.FixtureRequest, own_server: Callable[..., Any]) -> Iterator[str]:
    """The URL of a server that is of no use."""
    if request.param == "refused":
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port
            yield f"redis://127.0.0.1:{closed.getsockname()[1]}"
    elif request.param == "frozen":
        server = own_server()
        server.freeze()
        yield server.url
    else:
        yield own_server("--maxmemory", "1", "--maxmemory-policy", "noeviction").url


async def test_the_model_answers(provider: Any, broken: str) -> None:
    """Every call is made, once, and soon; nothing raises."""
    cache = AskonceCache(broken)
    chat, completion = provider.chat(cache), provider.completion(cache)
    begun = time.monotonic()
    assert chat.invoke("q").text == "answer 1-0"
    assert (await chat.ainvoke("q")).text == "answer 2-0"
    assert completion.invoke("q") == "text 3-0"
    assert "".join([chunk.text for chunk in chat.stream("q")]) == "answer 4-0"
    assert "".join([chunk.text async for chunk in chat.astream("q")]) == "answer 5-0"
    assert "".join(completion.stream("q")) == "text 6-0"
    assert len(await chat.abatch(["q"] * 3)) == 3  # in one process they share an answer without Redis too
    cache.clear()
    await cache.aclear()
    assert 7 <= provider.calls <= 9
    assert time.monotonic() - begun < 3
    assert "error" not in cache.cache.stats().bypass_reasons


def test_what_was_stored_before_is_served_after(provider: Any, own_server: Callable[..., Any]) -> None:
    """A server that freezes costs calls of the model while it does, and nothing else."""
    server = own_server()
    model = provider.chat(AskonceCache(server.url))
    model.invoke("q")
    server.freeze()
    assert model.invoke("q").text == "answer 2-0"
    server.thaw()
    assert provider.chat(AskonceCache(server.url)).invoke("q").text == "answer 1-0"


def test_a_strict_cache_tells(broken: str) -> None:
    """In tests and migrations an outage is an error."""
    cache = AskonceCache(broken, strict=True)
    with pytest.raises(BackendUnavailable):
        cache.update("p", "l", [Generation(text="x")])
