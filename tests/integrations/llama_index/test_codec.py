"""Answers as they are stored: every block and type comes back as it was, or the answer is not stored."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.base.llms import types as llama_index_types
from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    ChatMessage,
    ChatResponse,
    CitableBlock,
    CitationBlock,
    CompletionResponse,
    DocumentBlock,
    ImageBlock,
    LogProb,
    TextBlock,
)
from llama_index.core.llms import MockLLM
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from askonce import Cache, Uncacheable
from askonce_llama_index import _types as types
from askonce_llama_index import attach, register
from askonce_llama_index._blocks import ThinkingBlock, ToolCallBlock, VideoBlock
from askonce_llama_index._codec import CODEC, Entry, Piece
from askonce_llama_index._streams import Recorder
from askonce_llama_index._values import read, write, write_raw

from .conftest import needs, user
from .provider import Provider

Make = Callable[..., Any]


def back(answer: Any, **kwargs: Any) -> Any:
    return CODEC.decode(CODEC.encode(Entry(answer, **kwargs))).answer


PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 8


@needs("ThinkingBlock", "ToolCallBlock", "VideoBlock")
def test_every_block_survives() -> None:
    """Media, thoughts, tool calls, citations; bytes and odd names in additional_kwargs too."""
    blocks = [
        TextBlock(text="t"),
        ImageBlock(image=PNG),
        ImageBlock(url="http://x/a.png", detail="low"),
        AudioBlock(audio=b"RIFFxxxxWAVE", format="wav"),
        VideoBlock(video=b"0000ftypmp42", fps=2),
        DocumentBlock(data=b"%PDF-1.4 xx", title="d"),
        ThinkingBlock(content="hm", num_tokens=3, additional_information={"signature": "s", "n": [1, None]}),
        ToolCallBlock(tool_call_id="i", tool_name="f", tool_kwargs={"a": 1, "$k": {"$p": "x"}}),
        ToolCallBlock(tool_name="f", tool_kwargs='{"a": 1}'),
        CitationBlock(
            cited_content=TextBlock(text="c"), source="s", title="t", additional_location_info={"p": 1}
        ),
        CitableBlock(title="t", source="s", content=[TextBlock(text="a"), ImageBlock(image=PNG)]),
        CachePoint.model_validate({"cache_control": {"type": "ephemeral", "ttl": "5m"}}),
    ]
    assert {type(block).__name__ for block in blocks} | {"CacheControl", "LogProb"} == {
        name.partition(":")[2] for name in types.BY_FIELD
    }
    message = ChatMessage(
        role="assistant",
        blocks=blocks,
        additional_kwargs={"$k": 1, "b": b"\xff", "n": [None, 1.5], "i": {3: (1, "x")}},
    )
    got = back(ChatResponse(message=message))
    assert message == got.message
    assert [type(block) for block in blocks] == [type(block) for block in got.message.blocks]
    assert got.message.additional_kwargs == {"$k": 1, "b": b"\xff", "n": [None, 1.5], "i": {3: (1, "x")}}


KWARGS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(
            st.text(max_size=3) | st.sampled_from(["$p", "$o", "$k", "v", "$i", "$t"]), inner, max_size=3
        )
        | st.dictionaries(st.integers(0, 3), inner, max_size=2)
    ),
    max_leaves=8,
)
TEXTS = st.text(st.characters(exclude_categories=[])) | st.just("\ud800")
BLOCKS = st.builds(TextBlock, text=TEXTS)
if hasattr(llama_index_types, "ToolCallBlock"):  # which came after thoughts
    BLOCKS |= st.builds(ThinkingBlock, content=st.none() | TEXTS, num_tokens=st.none() | st.integers(0, 9))
    BLOCKS |= st.builds(
        ToolCallBlock, tool_call_id=st.none() | st.text(), tool_name=st.text(), tool_kwargs=st.text()
    )
LOGPROBS = st.none() | st.lists(
    st.lists(
        st.builds(
            LogProb, token=TEXTS, logprob=st.floats(-9, 0), bytes=st.lists(st.integers(0, 255), max_size=2)
        ),
        max_size=2,
    ),
    max_size=2,
)


@given(
    st.lists(BLOCKS, max_size=4),
    st.dictionaries(st.text(max_size=4), KWARGS, max_size=3),
    st.dictionaries(st.text(max_size=4), KWARGS, max_size=3),
    LOGPROBS,
    st.none() | TEXTS,
)
def test_what_is_written_is_read(blocks: Any, kwargs: Any, words: Any, logprobs: Any, delta: Any) -> None:
    """Messages of any blocks, values of any nesting, lone surrogates: equal, and of the same types."""
    message = ChatMessage.model_construct(role="assistant", blocks=blocks, additional_kwargs=kwargs)
    answer = ChatResponse.model_construct(
        message=message, raw=words, delta=delta, logprobs=logprobs, additional_kwargs=words
    )
    got = back(answer)
    assert [(type(block), vars(block)) for block in blocks] == [
        (type(block), vars(block)) for block in got.message.blocks
    ]
    assert (kwargs, words, words, logprobs, delta) == (
        got.message.additional_kwargs,
        got.additional_kwargs,
        got.raw,
        got.logprobs,
        got.delta,
    )
    assert repr(kwargs) == repr(got.message.additional_kwargs)  # tuples are tuples, 1 is not True


@given(TEXTS, st.lists(st.tuples(st.integers(0, 5), st.none() | TEXTS), max_size=5))
def test_pieces_are_read_as_written(text: str, lengths: Any) -> None:
    """How a stream was cut, and what it said of its end."""
    pieces = tuple(Piece(length, thought, "m" if thought else "r") for length, thought in lengths)
    entry = CODEC.decode(CODEC.encode(Entry(CompletionResponse(text=text), "stop", pieces, 1)))
    assert (pieces, "stop", 1, text) == (entry.pieces, entry.finish, entry.text, entry.answer.text)  # type: ignore[union-attr]


@given(st.binary())
def test_anything_else_is_not_read(data: bytes) -> None:
    """Bytes from elsewhere raise, and become a miss; they never become an answer of no kind."""
    for codec in (CODEC, Recorder()):
        try:
            value = codec.decode(data)
        except Exception:
            continue
        assert data.startswith((b"{", b"p"))
        assert value is not None


async def test_tool_calls_keep_their_type(make: Make) -> None:
    """LlamaIndex looks at attributes of what a plain dump would make mappings."""

    def age_of(name: str, age: int) -> str:
        "the age of somebody"
        return f"{name} is {age}"

    tools = [FunctionTool.from_defaults(age_of)]
    stream = await make().astream_chat_with_tools(tools, user_msg="x")
    streamed = [chunk async for chunk in stream][-1]
    called = make().chat_with_tools(tools, user_msg="x")
    for answer in (streamed, called):
        got = back(answer)
        calls = answer.message.additional_kwargs.get("tool_calls", [])
        assert [type(call) for call in calls] == [
            type(c) for c in got.message.additional_kwargs.get("tool_calls", [])
        ]
        assert answer.message == got.message
        assert answer.raw == got.raw
        assert type(answer.raw) is type(got.raw)
        assert answer.raw.to_dict() == got.raw.to_dict()  # what was not sent is not there
    assert streamed.message.additional_kwargs["tool_calls"]


def test_only_the_types_of_the_table_are_made() -> None:
    """Not what an entry names: an imported class, a model, a module's function."""
    made = []

    class Evil(BaseModel):
        def __init__(self, **kwargs: Any) -> None:
            made.append(kwargs)
            super().__init__(**kwargs)

    module = pytest.importorskip("llama_index.llms.openai.base")
    module.Evil = Evil
    try:
        for name in ("llama_index.llms.openai.base:Evil", "llama_index.llms.openai.base:OpenAI", "os:system"):
            assert read({"$p": name, "v": {"x": 1}}) == {"x": 1}
            with pytest.raises(ValueError, match="kind"):
                read({"$o": name, "v": {"x": 1}})
            with pytest.raises(ValueError, match="class"):
                CODEC.decode(
                    CODEC.encode(Entry(CompletionResponse(text="x")))[:-1] + b',"c":"%b"}' % name.encode()
                )
    finally:
        del module.Evil
    assert not made


def test_a_value_outside_its_schema_keeps_its_type() -> None:
    """Compatible servers send finish reasons that OpenAI does not know."""
    completion = pytest.importorskip("openai.types.chat").ChatCompletion
    choice = {"index": 0, "finish_reason": "eos", "message": {"role": "assistant", "content": "hi"}}
    raw = completion.construct(id="c", object="chat.completion", created=1, model="m", choices=[choice])
    got = back(ChatResponse(message=ChatMessage(content="hi"), raw=raw)).raw
    assert type(got) is completion
    assert got.choices[0].message.content == "hi"
    assert got == raw


class Person(BaseModel):
    name: str


def test_an_unknown_type_is_not_flattened(cache: Cache) -> None:
    """In additional_kwargs it refuses the store, until it is registered; in raw it becomes a mapping."""
    message = ChatMessage(content="x", additional_kwargs={"p": Person(name="T")})
    with pytest.raises(Uncacheable, match="Person"):
        CODEC.encode(Entry(ChatResponse(message=message)))
    assert back(ChatResponse(message=ChatMessage(content="x"), raw=Person(name="T"))).raw == {"name": "T"}
    kept = set(types._dumped)
    try:
        register(MockLLM, identity=lambda _: 1, types=[Person])
        assert back(ChatResponse(message=message)).message.additional_kwargs == {"p": Person(name="T")}
    finally:
        types._dumped.intersection_update(kept)


def test_an_answer_that_cannot_be_written_reaches_its_caller(
    cache: Cache, provider: Provider, make: Make
) -> None:
    """It is counted, and nobody else is given it."""

    class Odd(type(make())):  # type: ignore[misc]
        def chat(self, messages: Any, **kwargs: Any) -> Any:
            answer = super().chat(messages, **kwargs)
            answer.additional_kwargs["odd"] = object()
            return answer

    llm = attach(Odd(model="gpt-4o-mini", api_base=provider.url, api_key="k"), cache)
    with provider.expects(2):
        for _ in range(2):
            assert llm.chat(user("odd")).additional_kwargs["odd"]
    assert (cache.stats().uncacheable, cache.stats().stored) == (2, 0)


def test_raw_is_kept_as_well_as_it_goes() -> None:
    """An object of no known kind is left out; the answer is not."""
    got = back(ChatResponse(message=ChatMessage(content="x"), raw=object()))
    assert (got.raw, got.message.content) == (None, "x")
    assert write_raw({"a": {1, 2}}) is None


def test_images_do_not_multiply() -> None:
    """LlamaIndex appends additional_kwargs["images"] to the blocks at each validation."""
    png = base64.b64encode(PNG).decode()
    message = ChatMessage.model_construct(
        role="assistant", blocks=[TextBlock(text="hi")], additional_kwargs={"images": [png]}
    )
    answer = ChatResponse.model_construct(
        message=message, raw=None, delta=None, logprobs=None, additional_kwargs={}
    )
    got = back(answer).message
    assert (message.additional_kwargs, 1) == (got.additional_kwargs, len(got.blocks))


def test_answers_of_a_class_of_their_own() -> None:
    """Anthropic's have citations, and its SDK's types in raw."""
    base = pytest.importorskip("llama_index.llms.anthropic.base")
    from anthropic.types import TextBlock as AnthropicText
    from anthropic.types import Usage

    raw = {
        "content": [AnthropicText(type="text", text="hi")],
        "usage": Usage(input_tokens=1, output_tokens=2),
        "stop_reason": "end_turn",
    }
    message = ChatMessage(role="assistant", content="hi")
    answer = base.AnthropicChatResponse(message=message, citations=[{"cited_text": "c"}], raw=raw)
    got = back(answer)
    assert (type(answer), answer.citations, answer.raw) == (type(got), got.citations, got.raw)

    class Unknown(ChatResponse):
        more: int = 1

    with pytest.raises(Uncacheable, match="Unknown"):
        CODEC.encode(Entry(Unknown(message=message)))


def test_a_broken_entry_is_a_miss(
    make: Make, make_cache: Callable[..., Cache], provider: Provider, raw: Any
) -> None:
    """Whatever stands in Redis: the call is made, and its answer stored in place of it."""
    cache = make_cache()
    llm = attach(make(), cache)
    llm.chat(user("broken"))
    (key,) = [name for name in raw.scan_iter() if b":e:" in name]
    whole = raw.get(key)
    for broken in (whole[:-3], whole[:60] + b"{}", whole.replace(b'"f"', b'"F"')):
        raw.set(key, broken, keepttl=True)
        with provider.expects(1):
            assert llm.chat(user("broken")).message.content
        with provider.expects(0):
            assert llm.chat(user("broken")).message.content


@pytest.fixture
def raw(url: str) -> Any:
    import redis

    return redis.Redis.from_url(url)


@pytest.mark.parametrize("value", [object(), {1, 2}, Person(name="x"), lambda: 1])
def test_what_would_not_come_back_is_refused(value: Any) -> None:
    """Rather than changed on the way."""
    with pytest.raises(Uncacheable):
        write({"a": [value]})
