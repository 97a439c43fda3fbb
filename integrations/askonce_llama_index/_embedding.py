"""
Embeddings through the cache: a text is embedded once for each model and role.

The six private methods are overridden, so that events, spans and callbacks of the public ones stay as they are.  A batch
costs one round trip to look up and one call of the model for what is missing, each text once; single and batch share
their entries.  A hit still takes a token of the rate limiter, which the public method asks for before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

from llama_index.core.base.embeddings.base import BaseEmbedding

from askonce import Cache, Request, VectorCodec, control, in_upstream, upstream
from askonce.vectors import ragged

from ._calls import is_off, passed
from ._keys import embedding_requests

KIND: Final = "embedding"

Vector = list[float]


class EmbeddingMethod(NamedTuple):
    """One of the private methods in which every call of an embedding model ends."""

    name: str
    role: str
    batch: bool
    awaits: bool


EMBEDDING_METHODS: Final = (
    EmbeddingMethod("_get_query_embedding", "query", batch=False, awaits=False),
    EmbeddingMethod("_aget_query_embedding", "query", batch=False, awaits=True),
    EmbeddingMethod("_get_text_embedding", "text", batch=False, awaits=False),
    EmbeddingMethod("_aget_text_embedding", "text", batch=False, awaits=True),
    EmbeddingMethod("_get_text_embeddings", "text", batch=True, awaits=False),
    EmbeddingMethod("_aget_text_embeddings", "text", batch=True, awaits=True),
)


class _MiscountedError(Exception):
    """The model returned another number of vectors than it was given texts: none can be told from another."""


class EmbeddingCall:
    """A call of one of the six methods: which texts, in which role, and how the parent's method embeds them."""

    def __init__(
        self,
        cache: Cache,
        model: BaseEmbedding,
        method: EmbeddingMethod,
        parent: Callable[[Any], Any],
        given: Any,
    ) -> None:
        self.cache, self._model, self._method, self._parent = cache, model, method, parent
        self._given = list(given) if method.batch and isinstance(given, list | tuple) else given

    def requests(self) -> list[Request] | None:
        """Return a request for each text; None if this call is to pass uncached."""
        if in_upstream(KIND) or is_off():
            return None
        try:
            texts = self._given if self._method.batch else [self._given]
            return embedding_requests(self._model, self._method.role, texts)
        except Exception as error:  # noqa: BLE001  see `passed`
            passed(self.cache, error)
            return None

    def parent(self) -> Any:
        """Call the method as LlamaIndex has it, with all that was given."""
        return self._parent(self._given)

    def missing(self, requests: Sequence[Request]) -> Any:
        """Call it under the guard, with the texts of *requests*; of an async method an awaitable."""
        texts = [request.body[2] for request in requests]  # type: ignore[index]  # made by embedding_requests
        return self._parent(texts if self._method.batch else texts[0])

    def vectors(self, codec: VectorCodec, requests: Sequence[Request], embedded: Any) -> Sequence[Vector]:
        """Return the vectors of *requests*."""
        vectors: Sequence[Vector] = embedded if self._method.batch else [embedded]
        if len(vectors) != len(requests):
            raise _MiscountedError
        codec.note(vectors)
        return vectors

    def answer(self, vectors: list[Vector]) -> Any:
        """Return what the method returns; no list twice, as a caller may change one."""
        seen: set[int] = set()
        for place, vector in enumerate(vectors):
            if id(vector) in seen and isinstance(vector, list):
                vectors[place] = list(vector)
            seen.add(id(vector))
        return vectors if self._method.batch else vectors[0]


def embed(asked: EmbeddingCall) -> Any:
    """Answer a call that blocks."""
    requests = asked.requests()
    if not requests:
        return asked.parent()
    codec = VectorCodec()

    def compute(missing: list[Request]) -> Sequence[Vector]:
        with upstream(KIND):
            return asked.vectors(codec, missing, asked.missing(missing))

    def ask() -> list[Vector]:
        return asked.cache.get_or_compute_many(requests, compute, codec=codec)

    try:
        vectors = ask()
        if ragged(vectors) and not codec.ragged:  # what is stored is of another length than the model's now
            with control(read=False):
                vectors = ask()
    except _MiscountedError:
        asked.cache.bypass("miscounted")
        return asked.parent()
    return asked.answer(vectors)


async def aembed(asked: EmbeddingCall) -> Any:
    """Answer a call that is awaited."""
    requests = asked.requests()
    if not requests:
        return await asked.parent()
    codec = VectorCodec()

    async def compute(missing: list[Request]) -> Sequence[Vector]:
        with upstream(KIND):
            return asked.vectors(codec, missing, await asked.missing(missing))

    def ask() -> Awaitable[list[Vector]]:
        return asked.cache.aio.get_or_compute_many(requests, compute, codec=codec)

    try:
        vectors = await ask()
        if ragged(vectors) and not codec.ragged:  # as above
            with control(read=False):
                vectors = await ask()
    except _MiscountedError:
        asked.cache.bypass("miscounted")
        return await asked.parent()
    return asked.answer(vectors)
