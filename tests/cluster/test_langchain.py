"""LangChain's models on a Redis Cluster: the same one line, entries on all its nodes (langchain#6361, langgraph-redis#26)."""

import pytest
import redis
from tests.integrations.langchain.conftest import Provider

from askonce import Near
from askonce_langchain import AskonceCache, AskonceNodeCache, uninstall


@pytest.fixture
def provider():
    yield Provider()
    uninstall()


@pytest.fixture(params=["url", "client", "near"])
def cache(request, server, url):
    if request.param == "client":
        with redis.RedisCluster(host="127.0.0.1", port=server.servers[0].port) as client:
            yield AskonceCache(client=client, deadline=2.0, strict=True)
    else:
        yield AskonceCache(
            url, near=Near() if request.param == "near" else None, partitions=16, deadline=2.0, strict=True
        )


async def test_every_way_of_asking(provider, cache, raw):
    """Calls, streams, batches and several prompts at once are asked once; ``clear`` reaches every node."""
    chat, completion = provider.chat(cache), provider.completion(cache)
    questions = [f"question {number}" for number in range(40)]

    async def ask():
        said = [answer.text for answer in await chat.abatch(questions)]
        assert [answer.text for answer in chat.batch(questions)] == said
        assert ["".join(chunk.text for chunk in chat.stream(question)) for question in questions] == said
        texts = [generations[0].text for generations in completion.generate(questions).generations]
        found = await completion.agenerate(questions)
        assert [generations[0].text for generations in found.generations] == texts
        return said, texts

    first = await ask()
    assert provider.calls == 42  # forty, and two for the prompts: langchain-openai asks for twenty at once
    assert await ask() == first
    assert provider.calls == 42
    holding = {raw.get_node_from_key(key).name for key in raw.scan_iter("*:e:*", count=1000)}
    assert len(holding) == 3

    cache.clear()
    assert not list(raw.scan_iter("*:e:*", count=1000))
    await ask()
    assert provider.calls == 84
    await cache.cache.aio.aclose()


def test_nodes_of_a_graph(url):
    """LangGraph's cache too: several keys of one step lie on several nodes."""
    cache = AskonceNodeCache(url, partitions=16, deadline=2.0, strict=True)
    keys = [(("graph", str(number)), "key") for number in range(20)]
    cache.set({key: (number, None) for number, key in enumerate(keys)})
    assert cache.get(keys) == {key: number for number, key in enumerate(keys)}
    cache.clear([keys[0][0]])
    assert set(cache.get(keys)) == set(keys[1:])
    cache.clear()
    assert cache.get(keys) == {}
    cache.cache.close()
