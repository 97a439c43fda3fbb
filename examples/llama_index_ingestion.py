"""
A LlamaIndex ingestion pipeline that is run again: what did not change is neither split nor embedded anew.

    python -m examples.llama_index_ingestion           embeddings are made of words, on this machine
    python -m examples.llama_index_ingestion --live    embeddings are OpenAI's, with OPENAI_API_KEY set

The text is this project's docs.  One store keeps two things: what each transformation made of all pages, which serves
a run where nothing changed, and the embedding of each piece, which serves the others where one page changed.
"""

import sys
import time
from pathlib import Path
from typing import Any

from llama_index.core import Document
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.node_parser import MarkdownNodeParser
from llama_index.embeddings.openai import OpenAIEmbedding  # type: ignore[import-untyped]

from askonce_llama_index import AskonceKVStore
from examples.provider import run
from examples.words import Words

DOCS = Path(__file__).resolve().parents[1] / "docs"
MODEL = "text-embedding-3-small"


def pages() -> list[Document]:
    """Return the pages of the documentation."""
    return [Document(text=path.read_text(), id_=path.name) for path in sorted(DOCS.glob("*.md"))]


def pipeline_of(model: BaseEmbedding, store: AskonceKVStore) -> IngestionPipeline:
    """Return the pipeline.  Its cache is all that it knows of Redis."""
    return IngestionPipeline(
        transformations=[MarkdownNodeParser(), model],
        cache=IngestionCache(cache=store),
    )


def show(client: dict[str, Any], url: str | None) -> None:
    """Ingest all pages, then again, then with one of them changed."""
    # LlamaIndex keeps embeddings by their text alone: a namespace for each model.
    store = AskonceKVStore(url, namespace=f"examples-{'words' if client else MODEL}")
    model = Words(embeddings_cache=store) if client else OpenAIEmbedding(model=MODEL, embeddings_cache=store)
    documents = pages()
    for run_of in ("first", "again", "one page changed"):
        if run_of == "one page changed":
            documents[0].set_content(documents[0].text + f"\nChanged {time.time_ns()}.")
        before, began = store.cache.stats(), time.perf_counter()
        nodes = pipeline_of(model, store).run(documents=documents)
        took = 1000 * (time.perf_counter() - began)
        after = store.cache.stats()
        print(
            f"{run_of}: {len(nodes)} pieces of {len(documents)} pages, "
            f"{after.hits - before.hits} found, {after.misses - before.misses} made, {took:.0f} ms"
        )
    store.cache.close()


if __name__ == "__main__":
    sys.exit(run("llama_index_ingestion", "An ingestion pipeline, run again.", show))
