"""
What a ``BaseKVStore`` must do: what LlamaIndex's own tests assert for its stores, and what its callers rely on.

Each case takes a fresh, empty store; those that are coroutine functions are run by ``asyncio.run``.
"""

from __future__ import annotations

import asyncio
import inspect
import pickle

from llama_index.core import MockEmbedding
from llama_index.core.data_structs.data_structs import IndexList
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, NodeRelationship, TextNode
from llama_index.core.storage.docstore.keyval_docstore import KVDocumentStore
from llama_index.core.storage.index_store.keyval_index_store import KVIndexStore
from llama_index.core.storage.kvstore.types import BaseKVStore


def what_is_put_is_got_listed_and_deleted(store):
    store.put("k", {"a": "b"})
    assert store.get("k") == {"a": "b"}
    assert store.get("k", collection="other") is None
    assert store.get("unknown") is None
    store.put("k2", {"a": 1})
    assert store.get_all() == {"k": {"a": "b"}, "k2": {"a": 1}}
    assert store.delete("k") is True
    assert store.delete("k") is False
    assert store.get("k") is None
    assert store.get_all() == {"k2": {"a": 1}}


async def what_is_put_is_got_listed_and_deleted_async(store):
    await store.aput("k", {"a": "b"})
    assert await store.aget("k") == {"a": "b"}
    assert await store.aget("k", collection="other") is None
    await store.aput_all([("x", {"1": 1}), ("y", {"2": 2})])
    assert await store.aget_all() == {"k": {"a": "b"}, "x": {"1": 1}, "y": {"2": 2}}
    assert await store.adelete("k") is True
    assert await store.adelete("k") is False


def put_all_takes_any_batch_size(store):
    store.put_all([(f"k{i}", {"v": i}) for i in range(7)], collection="c", batch_size=3)
    assert len(store.get_all("c")) == 7


async def aput_all_takes_any_batch_size(store):
    await store.aput_all([(f"k{i}", {"v": i}) for i in range(7)], collection="c", batch_size=3)
    assert len(await store.aget_all("c")) == 7


def a_caller_cannot_change_what_is_stored(store):
    value = {"l": [1]}
    store.put("k", value)
    value["l"].append(2)
    store.get("k")["l"].append(3)
    assert store.get("k") == {"l": [1]}


def a_key_is_any_text(store):
    for key in ("", "\u00e9\u2603", "a b\n", "x" * 100_000):
        store.put(key, {"v": key[:3]})
        assert store.get(key) == {"v": key[:3]}
    assert len(store.get_all()) == 4


def an_empty_store_is_true(store):
    """BaseEmbedding tests ``if not self.embeddings_cache``."""
    assert bool(store)


def it_pickles(store):
    assert isinstance(pickle.loads(pickle.dumps(store)), BaseKVStore)


def it_serves_two_loops(store):
    async def put_and_get():
        await store.aput("k", {"v": 1})
        return await store.aget("k")

    asyncio.run(put_and_get())
    assert asyncio.run(put_and_get()) == {"v": 1}


def it_carries_a_document_store(store):
    documents = KVDocumentStore(store, batch_size=10)
    document, node = Document(text="h", id_="d1"), TextNode(text="n", id_="d2")
    node.relationships[NodeRelationship.SOURCE] = document.as_related_node_info()
    documents.add_documents([document, node])
    assert documents.get_document("d1") == document
    assert documents.get_document("d2") == node
    assert set(documents.docs) == {"d1", "d2"}
    assert len(documents.get_all_document_hashes()) == 2
    documents.delete_ref_doc("d1")
    assert documents.get_document("d2", raise_error=False) is None


async def it_carries_a_document_store_async(store):
    documents = KVDocumentStore(store, batch_size=10)
    await documents.async_add_documents([Document(text=f"t{i}", id_=str(i)) for i in range(25)])
    assert len(await documents.aget_all_document_hashes()) == 25


def it_carries_an_index_store(store):
    indexes = KVIndexStore(store)
    indexes.add_index_struct(IndexList(index_id="a"))
    indexes.add_index_struct(IndexList(index_id="b"))
    assert indexes.get_index_struct("a") is not None
    assert len(indexes.index_structs()) == 2
    indexes.delete_index_struct("a")
    assert [struct.index_id for struct in indexes.index_structs()] == ["b"]


def it_carries_an_ingestion_cache(store):
    cache, nodes = IngestionCache(cache=store), [TextNode(text="z")]
    key = get_transformation_hash(nodes, SentenceSplitter())
    assert cache.get(key) is None
    cache.put(key, nodes)
    assert cache.get(key)[0].get_content() == "z"
    cache.clear()
    assert cache.get(key) is None


def it_keeps_what_the_workers_of_a_pipeline_write(store):
    # The default tokenizer pickles as a name, which a worker looks up over the network.
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(tokenizer=str.split), MockEmbedding(embed_dim=2)],
        cache=IngestionCache(cache=store),
    )
    pipeline.run(documents=[Document(text=f"doc {i}") for i in range(4)], num_workers=2)
    assert len(store.get_all("llama_cache")) > 0


def it_carries_an_embeddings_cache(store):
    embeddings = MockEmbedding(embed_dim=4, embeddings_cache=store)
    assert embeddings.get_text_embedding("Hello") == [0.5] * 4
    assert list(store.get(key="Hello", collection="embeddings").values()) == [[0.5] * 4]
    assert embeddings.get_text_embedding_batch(["Hello"]) == [[0.5] * 4]


async def it_carries_an_embeddings_cache_async(store):
    embeddings = MockEmbedding(embed_dim=4, embeddings_cache=store)
    await embeddings.aget_text_embedding_batch(["a", "b"])
    assert await store.aget(key="a", collection="embeddings")


CASES = [
    what_is_put_is_got_listed_and_deleted,
    what_is_put_is_got_listed_and_deleted_async,
    put_all_takes_any_batch_size,
    aput_all_takes_any_batch_size,
    a_caller_cannot_change_what_is_stored,
    a_key_is_any_text,
    an_empty_store_is_true,
    it_pickles,
    it_serves_two_loops,
    it_carries_a_document_store,
    it_carries_a_document_store_async,
    it_carries_an_index_store,
    it_carries_an_ingestion_cache,
    it_keeps_what_the_workers_of_a_pipeline_write,
    it_carries_an_embeddings_cache,
    it_carries_an_embeddings_cache_async,
]

#: What other stores of LlamaIndex fail, by class name (core 0.14.25, kvstore-redis 0.6.0).
KNOWN_TO_FAIL = {
    "SimpleKVStore": {
        "put_all_takes_any_batch_size",
        "aput_all_takes_any_batch_size",
        "a_caller_cannot_change_what_is_stored",
        "it_carries_a_document_store",
        "it_carries_a_document_store_async",
    },
    "RedisKVStore": {
        "aput_all_takes_any_batch_size",
        "it_pickles",
        "it_serves_two_loops",
        "it_carries_a_document_store_async",
        "it_keeps_what_the_workers_of_a_pipeline_write",
    },
    "AskonceKVStore": set(),
}


def run(case, store):
    """Run one case in its colour."""
    outcome = case(store)
    if inspect.iscoroutine(outcome):
        asyncio.run(outcome)
