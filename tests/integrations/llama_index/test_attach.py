"""Attaching changes nothing that an application can see; install, and what crosses a process boundary."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import redis
from llama_index.core import MockEmbedding, Settings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import CompletionResponse
from llama_index.core.extractors import TitleExtractor
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.llms import CustomLLM, LLMMetadata, MockLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.schema import TextNode
from pydantic import BaseModel

import askonce_llama_index
from askonce import Cache, ConfigurationError
from askonce_llama_index import attach, detach, install, uninstall, wrap
from askonce_llama_index._attach import cache_of, cached_class

from .conftest import ask, user
from .provider import Provider

Make = Callable[..., Any]


def test_it_is_the_same_class_to_the_application(make: Make, cache: Cache) -> None:
    """Name, instance checks, dumps, metadata; one class for a base and a cache."""
    openai = pytest.importorskip("llama_index.llms.openai").OpenAI
    plain, llm = make(), attach(make(), cache)
    assert isinstance(llm, openai)
    assert isinstance(llm, FunctionCallingLLM)
    assert (type(llm).__name__, type(llm).__module__) == (openai.__name__, openai.__module__)
    assert (llm.class_name(), llm.metadata) == (plain.class_name(), plain.metadata)
    assert llm.to_dict() == plain.to_dict()
    assert llm.to_json() == plain.to_json()
    assert vars(llm).keys() == vars(plain).keys()
    assert cached_class(openai, cache) is type(llm) is cached_class(type(llm), cache)


def test_copies_and_the_way_back(make: Make, cache: Cache) -> None:
    """Copies are cached as their original; wrap leaves the original alone; detach undoes it."""
    llm = attach(make(), cache)
    mock = attach(MockLLM(), cache)
    for other in (llm.model_copy(), copy.copy(mock), copy.deepcopy(mock), wrap(make(), cache)):
        assert cache_of(other) is cache
    original = make()
    wrap(original, cache)
    assert cache_of(original) is None
    kind = type(original)
    assert type(detach(llm)) is kind
    assert type(detach(detach(llm))) is kind
    assert detach(original) is original


class Person(BaseModel):
    name: str
    age: int


def test_a_structured_model_is_its_inner_one(make: Make, cache: Cache) -> None:
    """Its answers are made of those of the inner model, which asks."""
    inner = make()
    structured = attach(inner.as_structured_llm(Person), cache)
    assert type(structured) is StructuredLLM
    assert cache_of(inner) is cache
    detach(structured)
    assert cache_of(inner) is None
    wrapped = wrap(structured, cache)
    assert (cache_of(wrapped.llm), cache_of(inner)) == (cache, None)


def test_the_hash_of_a_pipeline_stays(make: Make, cache: Cache) -> None:
    """Else LlamaIndex would run all its transformations again."""
    nodes = [TextNode(text="x", id_="1")]
    plain = get_transformation_hash(nodes, TitleExtractor(llm=make()))
    assert plain == get_transformation_hash(nodes, TitleExtractor(llm=attach(make(), cache)))


@pytest.mark.parametrize("wrong", [1, "text", object()])
def test_what_is_no_model_or_no_cache_is_refused(wrong: Any, cache: Cache) -> None:
    """With what is allowed."""
    for call in (lambda: attach(wrong, cache), lambda: attach(MockLLM(), wrong), lambda: detach(wrong)):
        with pytest.raises(ConfigurationError):
            call()
    if not isinstance(wrong, str):
        with pytest.raises(ConfigurationError):
            install(wrong)


# --- other processes ------------------------------------------------------------------------------------------------


def test_a_model_travels_with_its_cache(make: Make, cache: Cache, url: str) -> None:
    """Once opened, a cache serves all models that come with it; one made from a client stays behind."""
    llm = attach(make(), cache, count_tokens_on_hit=False)
    one, two = (pickle.loads(pickle.dumps(llm)) for _ in range(2))
    assert cache_of(one) is cache_of(two) is cache
    assert type(one) is type(llm)
    client = Cache(client=redis.Redis.from_url(url), namespace="client")
    plain = pickle.loads(pickle.dumps(attach(make(), client)))
    assert (cache_of(plain), plain.model) == (None, "gpt-4o-mini")
    assert type(plain).__name__ == "OpenAI"


def _ask(llm: Any) -> tuple[str, str, Any]:
    answer = llm.chat(user("from a worker"))
    cache = cache_of(llm)
    assert cache is not None
    return answer.message.content, cache.namespace, cache.stats().hits


def test_a_spawned_worker_uses_the_same_entries(make: Make, cache: Cache, provider: Provider) -> None:
    """Asked here, answered there."""
    llm = attach(make(), cache)
    with provider.expects(1), multiprocessing.get_context("spawn").Pool(1) as pool:
        here = llm.chat(user("from a worker")).message.content
        assert pool.apply(_ask, (llm,)) == (here, "llama", 1)


# --- install --------------------------------------------------------------------------------------------------------


class Late(CustomLLM):
    model: str = "late"
    z: int = 3

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.model)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text="late")

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError


def test_install_serves_settings_and_every_later_model(
    make: Make, embedder: Make, cache: Cache, provider: Provider
) -> None:
    """And uninstall lets all of them pass."""
    held, missed = make(), make()
    Settings._llm, Settings._embed_model = held, MockEmbedding(embed_dim=2)
    constructor = type(held).__mro__[-1].__init__
    assert install(cache) is cache
    assert [cache_of(model) for model in (held, Settings._embed_model, missed)] == [cache, cache, None]
    later, embedding, custom = make(), embedder(), Late(z=4)
    after = type("After", (BaseEmbedding,), {"__module__": __name__})
    assert (
        vars(after)["__pydantic_custom_init__"] is False
    )  # else pydantic would build its models another way
    assert [cache_of(model) for model in (later, embedding, custom)] == [cache] * 3
    assert custom.z == 4
    assert custom.complete("x").text == "late"
    structured = custom.as_structured_llm(Person)
    assert type(structured) is StructuredLLM
    with provider.expects(1):
        assert later.chat(user("i")).message == held.chat(user("i")).message
    assert cache_of(attach(missed)) is cache
    uninstall()
    for model in (held, later, embedding, custom, missed, make(), Late()):
        assert cache_of(model) is None
    with provider.expects(2):
        later.chat(user("i"))
        held.chat(user("i"))
    assert type(held).__mro__[-1].__init__ is constructor
    uninstall()


def test_install_again_replaces(make: Make, make_cache: Callable[..., Cache]) -> None:
    """Later models and Settings get the new cache; models built before keep theirs."""
    one, two = make_cache(), make_cache(namespace="two")
    install(one)
    before = make()
    Settings._llm = settings = make()
    install(two, embeddings=False)
    assert [cache_of(model) for model in (before, settings, make())] == [one, two, two]
    assert cache_of(MockEmbedding(embed_dim=2)) is None
    attached = attach(MockLLM(), one)
    uninstall()
    assert [cache_of(model) for model in (settings, attached)] == [None, one]


def test_install_of_one_kind(make: Make, embedder: Make, cache: Cache, url: str) -> None:
    """By a URL, and with what tokens are counted."""
    made = install(url, llm=False)
    assert (cache_of(make()), cache_of(embedder())) == (None, made)
    uninstall()
    made = install(url, count_tokens_on_hit=False)
    assert type(make()).__askonce_counts_tokens__ is False
    made.close()


async def test_a_failing_install_costs_nothing(make: Make, cache: Cache, monkeypatch: Any) -> None:
    """A class that cannot be subclassed stays as it is, and is counted."""

    class Final(Late):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            raise TypeError("final")

    install(cache)
    model = Final()
    assert cache_of(model) is None
    assert (await ask(model, "complete", "x")).text == "late"
    assert cache.stats().bypass_reasons == {"class": 1}


def test_without_llama_index_the_extra_is_named() -> None:
    """In one sentence."""
    code = "import sys; sys.modules['llama_index'] = None; import askonce_llama_index"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "askonce_llama_index needs llama-index-core: pip install 'askonce[llama-index]'" in ran.stderr


def test_the_front_door() -> None:
    """What is public is listed, and nothing else is."""
    public = {name for name in vars(askonce_llama_index) if not name.startswith("_")}
    assert set(askonce_llama_index.__all__) == public - {"annotations"}
