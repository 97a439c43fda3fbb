"""Models of LlamaIndex over a provider on 127.0.0.1, a cache on a real server, and what observers of LlamaIndex see."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("llama_index.core")

os.environ.setdefault("OPENAI_API_KEY", "sk-test")

from llama_index.core import Settings
from llama_index.core.base.llms import types
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.event_handlers import BaseEventHandler
from llama_index_instrumentation.span_handlers import BaseSpanHandler
from pydantic import Field
from tests.servers import one_server  # noqa: F401  a fixture

from askonce import Cache
from askonce_llama_index import uninstall

from .provider import Provider

Settings.tokenizer = str.split  # the default one is fetched from the network


@pytest.fixture(scope="session")
def provider() -> Iterator[Provider]:
    running = Provider()
    yield running
    running.shutdown()


@pytest.fixture(autouse=True)
def _as_it_was(provider: Provider) -> Iterator[None]:
    """Leave LlamaIndex and the provider as they were found."""
    held = Settings._llm, Settings._embed_model
    yield
    uninstall()
    Settings._llm, Settings._embed_model = held
    provider.gate = lambda _body, _chunk: None


@pytest.fixture
def cache(make_cache: Callable[..., Cache]) -> Cache:
    return make_cache()


@pytest.fixture
def make_cache(url: str) -> Iterator[Callable[..., Cache]]:
    made: list[Cache] = []

    def make(at: str | None = None, **kwargs: Any) -> Cache:
        kwargs.setdefault("deadline", 2.0)  # a busy machine is no fault of Redis
        kwargs.setdefault("namespace", "llama")
        made.append(Cache(at or url, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def make(provider: Provider) -> Callable[..., Any]:
    """Make OpenAI models that ask the provider."""
    openai = pytest.importorskip("llama_index.llms.openai").OpenAI
    return lambda **kwargs: openai(
        **{
            "model": "gpt-4o-mini",
            "api_base": provider.url,
            "api_key": "sk-SECRET",
            "max_retries": 0,
            **kwargs,
        }
    )


@pytest.fixture
def embedder(provider: Provider) -> Callable[..., Any]:
    """Make embedding models that ask the provider."""
    embedding = pytest.importorskip("llama_index.embeddings.openai").OpenAIEmbedding
    return lambda **kwargs: embedding(api_base=provider.url, api_key="sk-SECRET", **kwargs)


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip a test where the installed LlamaIndex does not have these kinds of blocks yet."""
    missing = [name for name in names if not hasattr(types, name)]
    return pytest.mark.skipif(bool(missing), reason=f"this version of LlamaIndex has no {', '.join(missing)}")


def user(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


CHAT = ("chat", "achat", "stream_chat", "astream_chat")
COMPLETE = ("complete", "acomplete", "stream_complete", "astream_complete")


async def ask(model: Any, name: str, asked: Any, **kwargs: Any) -> Any:
    """Call one of the eight methods; a stream is read to its end and is the list of its chunks."""
    out = getattr(model, name)(asked, **kwargs)
    if inspect.isawaitable(out):
        out = await out
    if hasattr(out, "__aiter__"):
        return [chunk async for chunk in out]
    return list(out) if "stream" in name else out


def last(out: Any) -> Any:
    return out[-1] if isinstance(out, list) else out


class Events(BaseEventHandler):
    seen: list[Any] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Events"

    def handle(self, event: Any, **_: Any) -> None:
        shown: dict[str, Any] = {"type": type(event).__name__}
        for name in ("model_dict", "additional_kwargs", "messages", "prompt"):
            if hasattr(event, name):
                shown[name] = getattr(event, name)
        response = getattr(event, "response", None)
        if response is not None:
            message = getattr(response, "message", None)
            shown["text"] = response.text if message is None else message.content
            shown["delta"] = response.delta
        self.seen.append((shown, event.tags.get("askonce.cache")))


class Spans(BaseSpanHandler[Any]):
    seen: list[Any] = Field(default_factory=list)

    def new_span(
        self,
        id_: str,
        bound_args: Any,
        instance: Any = None,
        parent_span_id: Any = None,
        tags: Any = None,
        **_: Any,
    ) -> None:
        arguments = {name: repr(value) for name, value in bound_args.arguments.items()}
        tag = (tags or {}).get("askonce.cache")
        self.seen.append((id_.rsplit("-", 5)[0], arguments, type(instance).__name__, tag, parent_span_id))

    def prepare_to_exit_span(self, *_: Any, **__: Any) -> None: ...

    def prepare_to_drop_span(self, *_: Any, **__: Any) -> None: ...


class Callbacks(BaseCallbackHandler):
    def __init__(self) -> None:
        super().__init__([], [])
        self.seen: list[Any] = []

    def on_event_start(
        self, event_type: Any, payload: Any = None, event_id: str = "", parent_id: str = "", **_: Any
    ) -> str:
        self.seen.append(("start", event_type.value, sorted(name.value for name in payload or {})))
        return event_id

    def on_event_end(self, event_type: Any, payload: Any = None, event_id: str = "", **_: Any) -> None:
        self.seen.append(("end", event_type.value, sorted(name.value for name in payload or {})))

    def start_trace(self, trace_id: str | None = None) -> None:
        self.seen.append(("trace", trace_id))

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None:
        self.seen.append(("end of trace", trace_id))


class Watch:
    """What event and span handlers were told since it was last taken."""

    def __init__(self) -> None:
        self.events, self.spans = Events(), Spans()

    def take(self) -> tuple[list[Any], list[Any]]:
        taken = list(self.events.seen), list(self.spans.seen)
        self.events.seen.clear()
        self.spans.seen.clear()
        return taken


@pytest.fixture
def watch() -> Iterator[Watch]:
    watching, root = Watch(), get_dispatcher()
    root.add_event_handler(watching.events)
    root.add_span_handler(watching.spans)
    watching.take()
    yield watching
    root.event_handlers = [handler for handler in root.event_handlers if handler is not watching.events]
    root.span_handlers = [handler for handler in root.span_handlers if handler is not watching.spans]
    watching.take()
