"""
A LlamaIndex query engine over this project's docs, cached by one line: embeddings, answers, streams.

    python -m examples.llama_index_query           the model is a stand-in on this machine
    python -m examples.llama_index_query --live    the models are OpenAI's, with OPENAI_API_KEY set

The stand-in understands nothing, so without ``--live`` pages are found by the words that they share with a question.
"""

import sys
import time
from pathlib import Path
from typing import Any

from llama_index.core import Document, PromptTemplate, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.node_parser import MarkdownNodeParser
from llama_index.embeddings.openai import OpenAIEmbedding  # type: ignore[import-untyped]
from llama_index.llms.openai import OpenAI  # type: ignore[import-untyped]

import askonce_llama_index
from askonce import Cache, Stats
from examples.provider import run
from examples.words import Words

DOCS = Path(__file__).resolve().parents[1] / "docs"
MODEL = "gpt-4.1-mini"
ASKED = (
    "What does a call cost when Redis is frozen?",
    "How long may a stale answer be served?",
    "What does a call cost when Redis is frozen?",
)
PROMPT = PromptTemplate("{query_str}\n\nAnswer in one sentence, from these pages alone:\n\n{context_str}\n")


def index_of(model: BaseEmbedding) -> VectorStoreIndex:
    """Return an index of the pages, cut at their headings.  It knows nothing of a cache."""
    pages = [Document(text=path.read_text(), id_=path.name) for path in sorted(DOCS.glob("*.md"))]
    return VectorStoreIndex.from_documents(pages, embed_model=model, transformations=[MarkdownNodeParser()])


def show(client: dict[str, Any], url: str | None) -> None:
    """Ask three questions, one of them twice, and stream the first one again."""
    cache = Cache(url, namespace="examples")
    askonce_llama_index.install(cache)  # this is all

    llm = OpenAI(model=MODEL, temperature=0, api_base=client.pop("base_url", None), **client)
    before = cache.stats()
    index = index_of(Words() if client else OpenAIEmbedding(model="text-embedding-3-small"))
    print(f"the docs, embedded: {_told(before, cache.stats())}")
    for question in ASKED:
        before, began = cache.stats(), time.perf_counter()
        answer = index.as_query_engine(llm, text_qa_template=PROMPT).query(question)
        took = 1000 * (time.perf_counter() - began)
        pages = sorted({node.node.ref_doc_id or "" for node in answer.source_nodes})
        print(f"{question}  ({', '.join(pages)}; {took:.0f} ms; {_told(before, cache.stats())})")
        print(f"  {str(answer).splitlines()[-1]}")
    streamed = index.as_query_engine(llm, text_qa_template=PROMPT, streaming=True).query(ASKED[0])
    print(f"streamed: {str(streamed).splitlines()[-1]}")
    cache.close()


def _told(before: Stats, after: Stats) -> str:
    return f"{after.hits - before.hits} from the cache, {after.computed - before.computed} computed"


if __name__ == "__main__":
    sys.exit(run("llama_index_query", "A cached query engine.", show))
