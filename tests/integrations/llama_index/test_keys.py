"""What is in a key: everything that may shape the answer, of every class that is installed, and nothing else."""

from __future__ import annotations

import base64
import importlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core import PromptTemplate
from llama_index.core.base.llms import types
from llama_index.core.base.llms.types import (
    ChatMessage,
    CitableBlock,
    CompletionResponse,
    ImageBlock,
    TextBlock,
)
from llama_index.core.llms import CustomLLM, LLMMetadata, MockLLM
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, PrivateAttr, SecretStr

from askonce import Cache, ConfigurationError, Uncacheable
from askonce.keys import canonical
from askonce_llama_index import _rules as rules
from askonce_llama_index import attach, detach, register
from askonce_llama_index._canonical import plain
from askonce_llama_index._keys import chat_request, completion_request, embedding_requests

from .conftest import needs, user

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def _rules_as_they_were() -> Iterator[None]:
    kept = dict(rules._RULES)
    yield
    rules._RULES.clear()
    rules._RULES.update(kept)
    rules._plans.clear()


def key(model: Any, *args: Any, kind: str = "chat", **kwargs: Any) -> bytes:
    request = (chat_request if kind == "chat" else completion_request)(model, args, kwargs)
    return canonical([request.kind, request.body])


# --- every class, every field ---------------------------------------------------------------------------------------


def _class(module: str, name: str) -> Any:
    cls = getattr(pytest.importorskip(f"llama_index.{module}"), name, None)
    return cls or pytest.skip(f"this version of llama_index.{module} has no {name}")


LLMS: dict[str, Callable[..., Any]] = {
    "OpenAI": lambda **k: _class("llms.openai", "OpenAI")(model="gpt-4o", api_key="k", **k),
    "OpenAIResponses": lambda **k: _class("llms.openai", "OpenAIResponses")(model="gpt-4o", api_key="k", **k),
    "OpenAILike": lambda **k: _class("llms.openai_like", "OpenAILike")(
        model="m", api_base="http://x/v1", api_key="k", **k
    ),
    "OpenAILikeResponses": lambda **k: _class("llms.openai_like", "OpenAILikeResponses")(
        model="m", api_base="http://x/v1", api_key="k", **k
    ),
    "Anthropic": lambda **k: _class("llms.anthropic", "Anthropic")(
        model="claude-3-5-sonnet-20241022", api_key="k", **k
    ),
    "Ollama": lambda **k: _class("llms.ollama", "Ollama")(model="llama3", **k),
    "MockLLM": lambda **k: MockLLM(**k),
}


def other(value: object) -> Any:
    """A value of the same kind that differs, None if there is none."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, dict):
        return {**value, "zz": 1}
    if isinstance(value, list | tuple):
        return [*value, "zz"]
    return "zz" if value is None else None


@pytest.mark.parametrize("name", list(LLMS))
def test_every_field_of_every_class_changes_the_key(name: str, cache: Cache) -> None:
    """Except those that are listed as of no account, by their exact names; each of both kinds is seen."""
    model = attach(LLMS[name](), cache)
    base, within, without = key(model, user("q")), [], []
    for field in type(model).model_fields:
        changed = other(getattr(model, field))
        if changed is None:
            continue
        copied = model.model_copy(update={field: changed})
        if field == "track_previous_responses":
            with pytest.raises(Uncacheable):
                key(copied, user("q"))
            continue
        (without if key(copied, user("q")) == base else within).append(field)
    assert set(without) <= rules.IGNORED, set(without) - rules.IGNORED
    assert not set(within) & rules.IGNORED
    assert "max_tokens" in within or name in {"Ollama", "OpenAIResponses", "OpenAILikeResponses"}
    assert name == "MockLLM" or "model" in within
    assert key(model, "q", kind="complete") != base


def test_a_field_counts_as_it_is_now(make: Make) -> None:
    """Also one that was assigned or filled since the last call; and 1 is not True."""
    llm = make(temperature=0.5)
    base = key(llm, user("q"))
    llm.temperature = 0.6
    assert key(llm, user("q")) != base
    llm.temperature = 0.5
    assert key(llm, user("q")) == base
    llm.additional_kwargs["top_p"] = 0.1
    assert key(llm, user("q")) != base
    llm.additional_kwargs.clear()
    assert key(llm, user("q")) == base
    ones = {key(llm.model_copy(update={"max_tokens": one}), user("q")) for one in (1, True, "1")}
    assert len(ones) == 3


@pytest.mark.parametrize("name", [name for name in LLMS if name != "MockLLM"])
def test_credentials_and_connections_are_not_in_the_key(name: str, cache: Cache) -> None:
    """Neither as they are nor as a digest: a new API key finds the old answers."""
    model = attach(LLMS[name](), cache)
    base = key(model, user("q"))
    for field in ("api_key", "timeout", "max_retries", "default_headers", "request_timeout", "keep_alive"):
        if field in type(model).model_fields:
            value = {"x": "SECRET"} if field == "default_headers" else "SECRET" if field == "api_key" else 9.0
            changed = model.model_copy(update={field: value})
            assert base == key(changed, user("q")), field
            assert b"SECRET" not in key(changed, user("q"))


def test_every_field_of_an_embedding_class_changes_the_key(embedder: Make, cache: Cache) -> None:
    """And its private engines, which differ for queries and texts."""
    model = attach(embedder(), cache)

    def texts(one: Any) -> bytes:
        return canonical([request.body for request in embedding_requests(one, "text", ["q"])])

    within, without = [], []
    for field in type(model).model_fields:
        changed = other(getattr(model, field))
        if changed is not None:
            copied = model.model_copy(update={field: changed})
            (without if texts(copied) == texts(model) else within).append(field)
    assert set(without) <= rules.IGNORED
    assert {"model_name", "dimensions", "additional_kwargs", "api_base"} <= set(within)
    model._text_engine = "another"
    assert texts(model) != texts(attach(embedder(), cache))


def test_what_is_in_the_key_of_a_call(make: Make) -> None:
    """Every argument, known or not; not which way it was passed."""
    llm = make()
    base = key(llm, user("k"))
    assert base == key(llm, messages=user("k"))
    assert base != key(llm, user("k"), unknown=1)
    assert base != key(llm, user("other"))
    assert base == key(llm, user("k"), stream=True)
    assert key(llm, user("k"), a=1, b=2) == key(llm, user("k"), b=2, a=1)
    assert key(llm, "k", kind="complete") == key(llm, "k", False, kind="complete")
    assert key(llm, "k", kind="complete") == key(llm, prompt="k", formatted=False, kind="complete")
    assert key(llm, "k", kind="complete") != key(llm, "k", True, kind="complete")
    for role in ("system", "assistant"):
        assert base != key(llm, [ChatMessage(role=role, content="k")])
    assert base != key(llm, [*user("k"), *user("k")])


def test_the_order_of_a_schema_is_in_the_key(make: Make) -> None:
    """Wherever it stands: it reaches the model."""

    def schema(*names: str) -> dict[str, Any]:
        return {"type": "object", "properties": {name: {"type": "string"} for name in names}}

    llm = make()
    for words in (
        lambda s: {"tools": [{"type": "function", "function": {"parameters": s}}]},
        lambda s: {"response_format": {"json_schema": s}},
        lambda s: {"format": s},
        lambda s: {"extra_body": {"guided_json": s}},
    ):
        assert key(llm, user("k"), **words(schema("a", "b"))) != key(
            llm, user("k"), **words(schema("b", "a"))
        )
    fields = [{"response_format": {"json_schema": schema(*names)}} for names in ("ab", "ba")]
    assert len({key(make(additional_kwargs=field), user("k")) for field in fields}) == 2


def test_classes_and_tools_by_their_schemas(make: Make) -> None:
    """Two classes of one name differ by their fields, two tools by their descriptions."""
    one = type("Same", (BaseModel,), {"__annotations__": {"a": int, "b": int}})
    two = type("Same", (BaseModel,), {"__annotations__": {"b": int, "a": int}})
    llm = make()
    assert key(llm, user("k"), response_format=one) != key(llm, user("k"), response_format=two)

    def tool(description: str) -> FunctionTool:
        return FunctionTool.from_defaults(lambda a: a, name="t", description=description)

    assert key(llm, user("k"), tools=[tool("x")]) == key(llm, user("k"), tools=[tool("x")])
    assert key(llm, user("k"), tools=[tool("x")]) != key(llm, user("k"), tools=[tool("y")])


def test_tool_calls_are_known_by_their_place(make: Make) -> None:
    """Ids are random; which result belongs to which call is not."""

    def history(one: str, two: str, *, swapped: bool = False) -> list[ChatMessage]:
        call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
        calls = [{**call, "id": one}, {**call, "id": two}]
        results = [(one, "1"), (two, "2")]
        if swapped:
            results = [(two, "1"), (one, "2")]
        return [
            ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": calls}),
            *[
                ChatMessage(role="tool", content=content, additional_kwargs={"tool_call_id": name})
                for name, content in results
            ],
        ]

    llm = make()
    assert key(llm, history("x", "y")) == key(llm, history("p", "q"))
    assert key(llm, history("x", "y")) != key(llm, history("x", "y", swapped=True))
    openai = pytest.importorskip("openai.types.chat.chat_completion_chunk")

    def typed(name: str) -> list[ChatMessage]:
        function = openai.ChoiceDeltaToolCallFunction(name="f", arguments="{}")
        call = openai.ChoiceDeltaToolCall(index=0, id=name, type="function", function=function)
        return [ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": [call]})]

    assert key(llm, typed("x")) == key(llm, typed("y"))


@needs("ToolCallBlock")
def test_tool_calls_in_blocks_are_known_by_their_place(make: Make) -> None:
    """So are those that stand in blocks; the order of their arguments counts."""
    llm = make()

    def blocks(name: str, said: str, kwargs: Any) -> list[ChatMessage]:
        block = types.ToolCallBlock(tool_call_id=name, tool_name="f", tool_kwargs=kwargs)
        return [
            ChatMessage(role="assistant", blocks=[block]),
            ChatMessage(role="tool", content=said, additional_kwargs={"tool_call_id": name}),
        ]

    assert key(llm, blocks("x", "1", {"a": 1})) == key(llm, blocks("y", "1", {"a": 1}))
    assert key(llm, blocks("x", "1", {"a": 1, "b": 2})) != key(llm, blocks("x", "1", {"b": 2, "a": 1}))


PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_media_by_their_content(make: Make, tmp_path: Path) -> None:
    """Bytes, open files, whose position stays, and what a path leads to."""

    def of(block: Any) -> bytes:
        return key(make(), [ChatMessage(role="user", blocks=[block])])

    assert of(ImageBlock(image=PNG)) != of(ImageBlock(image=PNG + b"\0"))
    assert of(ImageBlock(url="http://x/a.png")) != of(ImageBlock(url="http://x/b.png"))
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(PNG)
    of_path = of(ImageBlock(path=tmp_path / "a.png"))
    assert of_path == of(ImageBlock(path=tmp_path / "b.png"))
    (tmp_path / "a.png").write_bytes(PNG + b"\0")
    assert of_path != of(ImageBlock(path=tmp_path / "a.png"))
    nested = CitableBlock(title="t", source="s", content=[TextBlock(text="a"), ImageBlock(image=PNG)])
    assert of(nested) != of(CitableBlock(title="t", source="s", content=[TextBlock(text="a")]))
    if hasattr(types, "ThinkingBlock"):
        assert of(types.ThinkingBlock(content="a")) != of(TextBlock(text="a"))


@pytest.mark.skipif(not hasattr(types, "IOBase"), reason="this version of LlamaIndex takes no open files")
def test_an_open_file_counts_by_its_content(make: Make) -> None:
    """And stays where it was read to."""
    block, file = ImageBlock(image=PNG), io.BytesIO(PNG)
    file.seek(5)
    block.image = file
    assert key(make(), [ChatMessage(role="user", blocks=[block])])
    assert file.tell() == 5


def test_an_unreadable_file_is_the_providers_error(make: Make, cache: Cache) -> None:
    """Not ours: the call passes uncached."""
    lost = ImageBlock.model_construct(
        block_type="image", path="/no/such/file", image=None, url=None, detail=None
    )
    with pytest.raises(Exception) as caught:
        attach(make(), cache).chat([ChatMessage(role="user", blocks=[lost])])
    assert not isinstance(caught.value, Uncacheable)
    assert cache.stats().bypass_reasons == {"error": 1}


def test_functions_that_make_the_prompt_count_by_what_they_make(cache: Cache) -> None:
    """Lambdas have no name; a failing one leaves the call uncached, to fail as it would."""
    one, two, three = (
        MockLLM(messages_to_prompt=made) for made in (lambda m: "x", lambda m: "y", lambda m: "x")
    )
    assert key(one, user("q")) != key(two, user("q"))
    assert key(one, user("q")) == key(three, user("q"))
    one, two = (MockLLM(completion_to_prompt=made) for made in (lambda p: "x", lambda p: "y"))
    assert key(one, "q", kind="complete") != key(two, "q", kind="complete")
    assert key(one, "q", True, kind="complete") == key(two, "q", True, kind="complete")
    wrapped = MockLLM()
    wrapped.query_wrapper_prompt = PromptTemplate("{query_str}!")
    assert key(wrapped, user("q")) != key(MockLLM(), user("q"))


def test_the_key_is_the_same_in_every_process(make: Make) -> None:
    """Whatever the seed of hashes: sets, mappings, classes."""
    code = (
        "from llama_index.llms.openai import OpenAI\n"
        "from llama_index.core.llms import ChatMessage\n"
        "from askonce_llama_index._keys import chat_request\n"
        "from askonce.keys import canonical\n"
        "m = OpenAI(model='gpt-4o-mini', api_key='k', additional_kwargs={'logit_bias': {7: 1, 3: 2}})\n"
        "kw = dict(tools=[{'function': {'parameters': {}}}], stop={'b', 'a', 'c'}, response_format=ChatMessage)\n"
        "print(canonical(chat_request(m, ([ChatMessage(content='hi')],), kw).body).hex())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    llm = make(api_base=None, additional_kwargs={"logit_bias": {7: 1, 3: 2}})
    words = {
        "tools": [{"function": {"parameters": {}}}],
        "stop": {"c", "a", "b"},
        "response_format": ChatMessage,
    }
    fresh = importlib.import_module("llama_index.llms.openai").OpenAI(
        model="gpt-4o-mini", api_key="k", additional_kwargs=llm.additional_kwargs
    )
    assert (
        ran.stdout.strip() == canonical(chat_request(fresh, ([ChatMessage(content="hi")],), words).body).hex()
    )


def test_messages_that_can_be_read_once_are_refused(make: Make) -> None:
    """Reading them would leave nothing for the provider."""
    messages = iter(user("once"))
    with pytest.raises(Uncacheable, match="consume"):
        key(make(), messages)
    assert len(list(messages)) == 1


# --- values ---------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary()
    | st.sampled_from(["$bytes", "$dict", "$pairs", "$set", "$path", "$id"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=3) | st.sampled_from(["$bytes", "$dict", "$pairs", "$path"]), inner, max_size=3
        )
        | st.dictionaries(st.integers(0, 3), inner, max_size=2)
    ),
    max_leaves=8,
)


def _norm(value: Any) -> str:
    """An independent statement of what counts as the same value."""
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, int | float):
        return f"n{int(value)}" if float(value).is_integer() and abs(value) < 2**53 else f"n{value!r}"
    if isinstance(value, str | bytes):
        return repr(value)
    if isinstance(value, list):
        return "[" + ",".join(map(_norm, value)) + "]"
    return "{" + ",".join(sorted(f"{_norm(k)}:{_norm(v)}" for k, v in value.items())) + "}"


@given(VALUES, VALUES)
def test_different_values_have_different_forms(one: Any, two: Any) -> None:
    """And equal ones the same, whatever names they hold."""
    assert (_norm(one) == _norm(two)) == (canonical(plain(one)) == canonical(plain(two)))


@given(VALUES)
def test_a_value_is_no_other_ones_form(value: Any) -> None:
    """What stands in a key for bytes, a set or a path cannot be passed as a mapping."""
    for special in (b"x", {"a"}, Path("x"), SecretStr("x"), {1: 2}):
        form = plain(special)
        assert canonical(plain(form)) != canonical(form)
        if type(value) is not type(special):
            assert canonical(plain(value)) != canonical(form)


@pytest.mark.parametrize("value", [object(), lambda: 1, io.BytesIO(b"x").read, iter([1])])
def test_what_has_no_form_is_refused(value: Any) -> None:
    """Never by its repr, which holds an address."""
    with pytest.raises(Uncacheable):
        plain(value)


# --- rules ----------------------------------------------------------------------------------------------------------


class Nameless(CustomLLM):
    size: int = 3
    _prefix: str = PrivateAttr(default="a")
    _options: dict[str, Any] = PrivateAttr(default_factory=dict)
    _max_tokens: int = PrivateAttr(default=1)
    _api_key: str = PrivateAttr(default="k")
    _client: object = PrivateAttr(default_factory=object)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text="z")

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError


class Named(Nameless):
    model: str = "m"


def test_a_class_that_names_no_model_is_refused_until_it_is_described(cache: Cache) -> None:
    """Uncached and counted; then keyed by the identity that was registered."""
    with pytest.raises(Uncacheable, match="identity"):
        key(Nameless(), user("q"))
    assert attach(Nameless(), cache).complete("q").text == "z"
    assert (cache.stats().stored, cache.stats().bypass_reasons) == (0, {"uncacheable": 1})
    register(Nameless, identity=lambda model: f"size-{model.size}")
    assert key(Nameless(), user("q")) != key(Nameless(size=4), user("q"))
    llm = attach(Nameless(), cache)
    assert llm.complete("q").text == llm.complete("q").text
    assert cache.stats().hits == 1


def test_private_values_of_an_unknown_class_count(cache: Cache) -> None:
    """Plain ones, unless they are named like a credential or a client."""
    base = key(Named(), user("q"))
    for name, value, same in (
        ("_prefix", "b", False),
        ("_options", {"t": 1}, False),
        ("_max_tokens", 2, False),
        ("_api_key", "other", True),
        ("_client", object(), True),
    ):
        model = Named()
        setattr(model, name, value)
        assert same is (base == key(model, user("q"))), name


def test_what_is_registered_decides() -> None:
    """Included, ignored, refused."""
    register(
        Named, include=["_client"], ignore=["size", "_prefix"], cacheable=lambda m, kind, kw: "no" not in kw
    )
    model = Named(size=9)
    model._client = model._prefix = "b"  # type: ignore[assignment]
    plain_client = Named()
    plain_client._client = "b"
    assert key(plain_client, user("q")) == key(model, user("q"))
    plain_client._client = "c"
    assert key(plain_client, user("q")) != key(model, user("q"))
    with pytest.raises(Uncacheable):
        key(model, user("q"), no=1)
    for wrong in (
        {"identity": "x"},
        {"cacheable": 1},
        {"include": [1]},
        {"types": [dict]},
    ):
        with pytest.raises(ConfigurationError):
            register(Named, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        register("Named")  # type: ignore[arg-type]


def test_classes_of_which_two_models_look_alike() -> None:
    """LangChainLLM is left to the LangChain adapter; of GoogleGenAI its hidden configuration counts."""
    for module, name in (("langchain", "LangChainLLM"), ("huggingface", "HuggingFaceLLM")):
        names = {"__module__": f"llama_index.llms.{module}.base", "__qualname__": name}
        with pytest.raises(Uncacheable):
            key(type(name, (Named,), names)(), user("q"))
    names = {"__module__": "llama_index.llms.google_genai.base", "__qualname__": "GoogleGenAI"}
    google = type("GoogleGenAI", (Named,), {**names, "_generation_config": PrivateAttr(default=None)})
    hot, cold = google(), google()
    hot._generation_config, cold._generation_config = Configuration(t=0.9), Configuration(t=0.0)
    assert hot.model_dump() == cold.model_dump()
    assert key(hot, user("q")) != key(cold, user("q"))


class Configuration(BaseModel):
    t: float


def test_ollama_overwrites_its_own_field(cache: Cache) -> None:
    """Once it has asked its server; the key stays that of a model that has not."""
    model = attach(LLMS["Ollama"](), cache)
    before = key(model, user("q"))
    model.context_window = 8192
    assert before == key(model, user("q"))
    assert before != key(attach(LLMS["Ollama"](context_window=8192), cache), user("q"))


def test_models_inside_models(cache: Cache) -> None:
    """A field that holds another model counts by that model's fields, without its credentials."""

    class Router(Named):
        inner: Any = None

    def routed(**kwargs: Any) -> bytes:
        return key(Router(inner=attach(LLMS["OpenAI"](**kwargs), cache)), user("q"))

    assert routed() == key(Router(inner=detach(LLMS["OpenAI"](max_retries=9))), user("q"))
    assert routed() != routed(temperature=0.9)
    assert b"sk-INNER" not in key(Router(inner=LLMS["MockLLM"]()), user("q"))
