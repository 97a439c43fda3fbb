"""
LangChain's ``Embeddings`` over an askonce cache: each text is embedded once.

A batch costs one round trip, and one call of the model for the texts that are missing; who asks for a text that is
being embedded waits for that.  Queries and documents are kept apart: many models embed them differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from langchain_core.embeddings import Embeddings

from askonce import Cache, ConfigurationError, Uncacheable, VectorCodec, control, upstream
from askonce.keys import Request
from askonce.vectors import ragged

from ._given import cache_of
from ._identity import identity

_KIND: Final = "langchain.embedding"


class AskonceEmbeddings(Embeddings):
    """
    Serve what *embeddings* computes from Redis: ``AskonceEmbeddings(OpenAIEmbeddings(), "redis://localhost:6379")``.

    With a URL, or none, the options are those of ``askonce.Cache``.  A ``Cache`` that is given is used as it is.

    In the key are the text, whether it is a query, and the model: the class of *embeddings* and its fields.
    ``model=`` gives it a name instead, which then must say all that shapes a vector.  It is needed for a class of
    your own that holds a client; and one that counts its calls has a new key after each.  Raises ConfigurationError
    if the model cannot be told from others.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        url_or_cache: str | Cache | None = None,
        *,
        model: str | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(embeddings, Embeddings):
            raise TypeError(f"a {type(embeddings).__qualname__} was given: give LangChain Embeddings")
        if model is not None and (not isinstance(model, str) or not model):
            raise ConfigurationError(
                f"model={model!r} is no name: give text such as 'bge-small-en, normalized'"
            )
        self._embeddings = embeddings
        self._model = model
        try:
            self._identity()
        except Uncacheable as error:
            where = str(error).removeprefix("request")
            raise ConfigurationError(
                f"{type(embeddings).__qualname__}{where}; or name the model: model='bge-small-en, normalized'"
            ) from None
        self._cache = cache_of(url_or_cache, options)

    @property
    def embeddings(self) -> Embeddings:
        """The model whose vectors are cached."""
        return self._embeddings

    @property
    def cache(self) -> Cache:
        """The askonce cache behind this model: for ``stats``, ``bump``, ``invalidate_tag``, ``close``."""
        return self._cache

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector for each text, in order; errors of the model pass as they are."""
        requests = self._requests("document", texts)
        if requests is None:
            return self._embeddings.embed_documents(texts)
        codec = VectorCodec()

        def embed(missing: list[Request]) -> Sequence[list[float]]:
            asked = _texts(missing)
            with upstream("embedding"):
                return _noted(codec, asked, self._embeddings.embed_documents(asked))

        try:
            vectors = self._cache.get_or_compute_many(requests, embed, codec=codec)
            if ragged(vectors) and not codec.ragged:  # what is stored is of an older length
                with control(read=False):
                    vectors = self._cache.get_or_compute_many(requests, embed, codec=codec)
        except _MiscountedError as error:
            self._cache.bypass("miscounted")
            return error.vectors if error.texts == texts else self._embeddings.embed_documents(texts)
        return _each_its_own(vectors)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return what ``embed_documents`` returns, without a thread."""
        requests = self._requests("document", texts)
        if requests is None:
            return await self._embeddings.aembed_documents(texts)
        codec = VectorCodec()

        async def embed(missing: list[Request]) -> Sequence[list[float]]:
            asked = _texts(missing)
            with upstream("embedding"):
                return _noted(codec, asked, await self._embeddings.aembed_documents(asked))

        try:
            vectors = await self._cache.aio.get_or_compute_many(requests, embed, codec=codec)
            if ragged(vectors) and not codec.ragged:  # what is stored is of an older length
                with control(read=False):
                    vectors = await self._cache.aio.get_or_compute_many(requests, embed, codec=codec)
        except _MiscountedError as error:
            self._cache.bypass("miscounted")
            return error.vectors if error.texts == texts else await self._embeddings.aembed_documents(texts)
        return _each_its_own(vectors)

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query; errors of the model pass as they are."""
        requests = self._requests("query", [text])
        if requests is None:
            return self._embeddings.embed_query(text)

        def embed() -> list[float]:
            with upstream("embedding"):
                return self._embeddings.embed_query(text)

        return self._cache.get_or_compute(requests[0], embed, codec=VectorCodec(), share_errors=False)

    async def aembed_query(self, text: str) -> list[float]:
        """Return what ``embed_query`` returns, without a thread."""
        requests = self._requests("query", [text])
        if requests is None:
            return await self._embeddings.aembed_query(text)

        async def embed() -> list[float]:
            with upstream("embedding"):
                return await self._embeddings.aembed_query(text)

        return await self._cache.aio.get_or_compute(
            requests[0], embed, codec=VectorCodec(), share_errors=False
        )

    def _requests(self, use: Literal["document", "query"], texts: Sequence[str]) -> list[Request] | None:
        """Return a request for each text; None, counted, if there is something that cannot be keyed."""
        try:
            model = self._identity()
        except Uncacheable:  # the model was changed since it was given
            self._cache.bypass("uncacheable")
            return None
        if not all(isinstance(text, str) for text in texts):
            self._cache.bypass("uncacheable")
            return None
        return [Request(_KIND, [model, use, text]) for text in texts]

    def _identity(self) -> bytes | str:
        # Taken anew for each call: a field may be changed between two.
        return identity(self._embeddings) if self._model is None else self._model


class _MiscountedError(Exception):
    """The model returned another number of vectors than it was given texts: none can be assigned to its text."""

    def __init__(self, texts: list[str], vectors: list[list[float]]) -> None:
        super().__init__()
        self.texts, self.vectors = texts, vectors


def _texts(requests: Sequence[Request]) -> list[str]:
    return [request.body[2] for request in requests]  # type: ignore[index]  # made above


def _noted(codec: VectorCodec, texts: list[str], vectors: list[list[float]]) -> list[list[float]]:
    if len(vectors) != len(texts):
        raise _MiscountedError(texts, vectors)
    codec.note(vectors)
    return vectors


def _each_its_own(vectors: list[list[float]]) -> list[list[float]]:
    """Return the vectors, none of them twice: a caller may change one in place."""
    seen: set[int] = set()
    for place, vector in enumerate(vectors):
        if id(vector) in seen:
            vectors[place] = list(vector)
        seen.add(id(vector))
    return vectors
