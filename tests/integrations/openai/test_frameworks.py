"""What LangChain's ChatOpenAI and LlamaIndex's OpenAI send through the transport: each shares one entry in all forms."""

from __future__ import annotations

import pytest

import askonce_openai
from askonce import Cache, ConfigurationError, control


@pytest.fixture
def settings(provider):
    return {"model": "m", "api_key": "k", "base_url": provider.url + "/v1"}


async def test_langchain_with_clients_of_its_own(provider, cache, settings):
    """invoke, stream, ainvoke, astream; control by header and by block; the Responses API; embeddings."""
    langchain = pytest.importorskip("langchain_openai")
    clients = {
        "http_client": askonce_openai.http_client(cache),
        "http_async_client": askonce_openai.async_http_client(cache),
    }
    model = langchain.ChatOpenAI(**settings, **clients)
    first, second = model.invoke("hi"), model.invoke("hi")
    assert first.content == second.content
    assert second.usage_metadata["total_tokens"] == 13
    assert "".join(chunk.text for chunk in model.stream("hi")) == first.content
    assert (await model.ainvoke("hi")).content == first.content
    assert "".join([chunk.text async for chunk in model.astream("hi")]) == first.content
    assert provider.calls["chat"] == 1
    refreshed = model.bind(extra_headers={"cache-control": "no-cache"}).invoke("hi")
    assert refreshed.content != first.content
    with control(read=False):
        model.invoke("hi")
    assert provider.calls["chat"] == 3
    responses = langchain.ChatOpenAI(**settings, **clients, use_responses_api=True)
    assert responses.invoke("z").content == responses.invoke("z").content
    assert provider.calls["responses"] == 1
    embeddings = langchain.OpenAIEmbeddings(
        **settings, http_client=clients["http_client"], check_embedding_ctx_length=False
    )
    assert embeddings.embed_documents(["a", "b"]) == embeddings.embed_documents(["a", "b"])
    assert provider.calls["embeddings"] == 1


def test_langchains_own_clients_under_install(provider, cache, settings):
    langchain = pytest.importorskip("langchain_openai")
    askonce_openai.install(cache)
    model = langchain.ChatOpenAI(**settings)
    said = model.invoke("hi").content
    assert "".join(chunk.text for chunk in model.stream("hi")) == said
    assert provider.calls["chat"] == 1


def test_langchain_models_share_an_http_client(provider, cache, settings, url):
    """It is kept by its settings: wrapping one model wraps its siblings, and a second cache is refused."""
    langchain = pytest.importorskip("langchain_openai")
    model, sibling = (langchain.ChatOpenAI(**settings, timeout=7.25) for _ in range(2))
    askonce_openai.wrap(model.root_client, cache)
    assert model.root_client._client is sibling.root_client._client
    assert model.invoke("x").content == sibling.invoke("x").content
    assert provider.calls["chat"] == 1
    with pytest.raises(ConfigurationError, match="http_client"):
        askonce_openai.wrap(sibling.root_client, Cache(url, namespace="another"))


async def test_llama_index(provider, cache, lib):
    """chat, stream_chat, achat, astream_chat; embeddings."""
    llms = pytest.importorskip("llama_index.llms.openai")
    embeddings = pytest.importorskip("llama_index.embeddings.openai")
    from llama_index.core.base.llms.types import LLMMetadata
    from llama_index.core.llms import ChatMessage

    class Model(llms.OpenAI):
        @property
        def metadata(self):
            return LLMMetadata(context_window=4096, num_output=64, is_chat_model=True, model_name="m")

    clients = {
        "http_client": askonce_openai.http_client(cache),
        "async_http_client": askonce_openai.async_http_client(cache),
    }
    words = {"api_key": "k", "api_base": provider.url + "/v1", **clients}
    model = Model(model="m", **words)
    question = [ChatMessage(role="user", content="hi")]
    first, second = model.chat(question), model.chat(question)
    said = first.message.content
    assert second.message.content == said
    assert "".join(part.delta or "" for part in model.stream_chat(question)) == said
    assert (await model.achat(question)).message.content == said
    stream = await model.astream_chat(question)
    assert "".join([part.delta or "" async for part in stream]) == said
    assert provider.calls["chat"] == 1
    embedding = embeddings.OpenAIEmbedding(model_name="text-embedding-3-small", **words)
    texts = ["a", "b"]
    assert embedding.get_text_embedding_batch(texts) == embedding.get_text_embedding_batch(texts)
    assert provider.calls["embeddings"] == 1
