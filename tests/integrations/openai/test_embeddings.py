"""Embeddings through the SDK: one entry an item, whatever the batch and the format."""

from __future__ import annotations

import openai
import pytest
from tests.integrations.openai.kit import entries


def vectors(answer):
    return [item.embedding for item in answer.data]


def test_a_batch_asks_for_what_is_missing(client, provider, cache):
    """One call for the missing texts, repeats once; usage is what was paid now."""
    made = client()
    first = made.embeddings.create(model="e", input=["a", "bb"])
    second = made.embeddings.create(model="e", input=["bb", "ccc", "a", "ccc"])
    assert provider.last["embeddings"]["body"]["input"] == ["ccc"]
    assert vectors(second)[0] == vectors(first)[1]
    assert vectors(second)[2] == vectors(first)[0]
    assert vectors(second)[1] == vectors(second)[3]
    assert [item.index for item in second.data] == [0, 1, 2, 3]
    assert second.usage.total_tokens == 1
    third = made.embeddings.create(model="e", input="ccc")
    assert vectors(third) == [vectors(second)[1]]
    assert third.usage.total_tokens == 0
    assert (provider.calls["embeddings"], entries(cache)) == (2, 3)


def test_formats_and_tokens(client, provider):
    """base64, the SDK's default, and float share an entry; token arrays are items too."""
    made = client()
    packed = made.embeddings.create(model="e", input="q")
    plain = made.embeddings.create(model="e", input="q", encoding_format="float")
    assert vectors(plain)[0] == pytest.approx(vectors(packed)[0])
    made.embeddings.create(model="e", input=[[1, 2], [3]])
    made.embeddings.create(model="e", input=[1, 2])
    assert provider.calls["embeddings"] == 2


def test_other_parameters_are_other_questions(client, provider):
    made = client()
    for words in ({}, {"dimensions": 4}, {"extra_body": {"input_type": "query"}}, {"user": "somebody"}):
        made.embeddings.create(model="e", input="q", **words)
    assert provider.calls["embeddings"] == 3


async def test_by_asyncio(client, provider, cache):
    made = client(openai.AsyncOpenAI)
    first = await made.embeddings.create(model="e", input=["a", "bb"])
    second = await made.embeddings.create(model="e", input=["bb", "ccc"])
    assert vectors(second)[0] == vectors(first)[1]
    assert provider.last["embeddings"]["body"]["input"] == ["ccc"]
    assert cache.stats().bypassed == 0
    await made.close()


def test_a_refusal_passes_and_is_retried(client, provider, cache):
    made = client(max_retries=1)
    with pytest.raises(openai.RateLimitError) as caught:
        made.embeddings.create(model="e-429", input=["a", "b"])
    assert caught.value.body["message"] == "refused"
    assert (provider.calls["embeddings"], entries(cache)) == (2, 0)
