"""The contract of a key-value store, on ours and on LlamaIndex's own; what those fail is known and listed."""

import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.ingestion import pipeline as ingestion
from llama_index.core.schema import Document
from llama_index.core.storage.docstore.keyval_docstore import KVDocumentStore
from llama_index.core.storage.kvstore import SimpleKVStore
from tests.conftest import every_server  # noqa: F401  a fixture
from tests.integrations.llama_index.kv_contract import (
    CASES,
    KNOWN_TO_FAIL,
    it_keeps_what_the_workers_of_a_pipeline_write,
    run,
)

from askonce_llama_index import AskonceKVStore

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)


def holds(case, store):
    """Check that *store* passes, or fails as it is known to: one that was mended is to leave the list."""
    if case.__name__ in KNOWN_TO_FAIL[type(store).__name__]:
        with pytest.raises(Exception):
            run(case, store)
    else:
        run(case, store)


@each_case
def test_ours(case, url):
    """Every case, on every promised server."""
    holds(case, AskonceKVStore(url, deadline=5.0))


@each_case
def test_ours_as_a_cache_throughout(case, url):
    """Every case again, where the collections of the cases are cache collections too."""
    stores = [
        f"{kind}/{name}"
        for kind in ("docstore", "index_store")
        for name in ("data", "metadata", "ref_doc_info")
    ]
    caches = ["llama_cache", "embeddings", "data", "c", "other", *stores]
    holds(case, AskonceKVStore(url, deadline=5.0, cache_collections=caches))


@each_case
def test_in_memory(case):
    """What LlamaIndex takes if it is given none."""
    if case is it_keeps_what_the_workers_of_a_pipeline_write and not hasattr(
        ingestion, "_run_transformations_worker"
    ):
        pytest.skip("this version of LlamaIndex loses it")
    holds(case, SimpleKVStore())


@each_case
def test_on_redis(case, url):
    """LlamaIndex's own store on Redis."""
    theirs = pytest.importorskip("llama_index.storage.kvstore.redis")
    holds(case, theirs.RedisKVStore(url))


def test_what_redis_kv_store_holds_is_taken_over(url):
    """As the documentation says: both in one database, collection by collection."""
    theirs = pytest.importorskip("llama_index.storage.kvstore.redis").RedisKVStore(url)
    documents = [Document(text=f"text {number}", id_=str(number)) for number in range(1200)]
    KVDocumentStore(theirs).add_documents(documents)
    ours = AskonceKVStore(url)
    for collection in ("docstore/data", "docstore/ref_doc_info", "docstore/metadata"):
        ours.put_all(list(theirs.get_all(collection).items()), collection)
        assert ours.get_all(collection) == theirs.get_all(collection)
    assert KVDocumentStore(ours).docs == KVDocumentStore(theirs).docs
