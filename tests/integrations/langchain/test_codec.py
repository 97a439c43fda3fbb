"""What comes back as it was, and what is refused."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import uuid
from typing import Any

import ormsgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk
from pydantic import BaseModel, Field

from askonce import Uncacheable
from askonce_langchain._codec import GenerationsCodec, mark

CODEC = GenerationsCodec()
USAGE = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
NO_USAGE = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
CALL = {"name": "t", "args": {"a": {"b": [1, 2.5, None]}}, "id": "c1"}
INVALID_CALL = {"name": "z", "args": "{bad", "id": "c2", "error": "e"}
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}
THINKING = {"type": "thinking", "thinking": "..", "signature": "sig"}
TEXT = {"type": "text", "text": "hi"}
CHUNK = {"name": "t", "args": '{"a":1}', "id": "1", "index": 0}
SECRET = {"lc": 1, "type": "secret", "id": ["OPENAI_API_KEY"]}


class Colour(enum.Enum):
    RED = 1


class Word(enum.StrEnum):
    STOP = "stop"


class City(BaseModel):
    when: datetime.datetime
    name: str = Field(alias="cityName")


class OneWay(BaseModel):
    name: str = Field(alias="a", serialization_alias="b")


class OwnMessage(AIMessage):
    pass


class OwnGeneration(Generation):
    pass


class Text(str):
    __slots__ = ()


SameName = type("AIMessage", (AIMessage,), {})


def ai(content: Any = "x", **fields: Any) -> ChatGeneration:
    return ChatGeneration(message=AIMessage(content, **{"usage_metadata": USAGE, **fields}))


def told(value: Any) -> Generation:
    return Generation(text="x", generation_info={"v": value})


def back(generation: Generation) -> Generation:
    (found,) = CODEC.decode(CODEC.encode([generation]))
    return found


EQUAL = {
    "text": Generation(text="x"),
    "no text": Generation(text=""),
    "text with info": Generation(text="x", generation_info={"finish_reason": "stop", "logprobs": None}),
    "empty info": Generation(text="x", generation_info={}),
    "generation chunk": GenerationChunk(text="x"),
    "chat": ai(),
    "chat with info": ChatGeneration(message=AIMessage("x", usage_metadata=USAGE), generation_info={"a": 1}),
    "name": ai(name="bob"),
    "tool calls, valid and not": ai("", tool_calls=[CALL], invalid_tool_calls=[INVALID_CALL]),
    "tool calls in their older form": ai(
        "", additional_kwargs={"tool_calls": [{"id": "1", "function": {"name": "t", "arguments": "{}"}}]}
    ),
    "reasoning blocks": ai([{**REASONING, "encrypted_content": "x"}, TEXT]),
    "thinking blocks": ai([THINKING, TEXT]),
    "text as a block": ai(["hi", TEXT]),
    "message chunk": ChatGenerationChunk(message=AIMessageChunk("a", usage_metadata=USAGE)),
    "chunk with tool_call_chunks": ChatGenerationChunk(
        message=AIMessageChunk("a", usage_metadata=USAGE, tool_call_chunks=[CHUNK], chunk_position="last")
    ),
    "usage with details": ai(usage_metadata={**USAGE, "input_token_details": {"cache_read": 1}}),
    "usage with total_cost": ChatGeneration(
        message=AIMessage("x").model_copy(update={"usage_metadata": {**USAGE, "total_cost": 0}})
    ),
    "an lc dict in model output": ai("", tool_calls=[{"name": "t", "args": SECRET, "id": "1"}]),
    "bytes": ai(additional_kwargs={"b": b"\x00\xff"}),
    "int keys": told({1: "a", "b": {2: 3}}),
    "keys of other plain types": told({None: 1, True: 2, 1.5: 3, b"x": 4}),
    "inf": told(float("inf")),
    "64 bits": told([2**64 - 1, -(2**63)]),
    "ChatMessage": ChatGeneration(message=ChatMessage(role="r", content="x")),
    "ChatMessage without a role": ChatGeneration(message=ChatMessage(role="", content="")),
    "extra attribute": ai(foo="bar", empty=[]),
    "2 KB": ai("x" * 2048, response_metadata={"model_name": "m", "logprobs": None}),
}

REFUSED = {
    "pydantic object elsewhere": ai(additional_kwargs={"other": OneWay(a="x")}),
    "parsed object that does not rebuild": ai(additional_kwargs={"parsed": OneWay(a="x")}),
    "datetime": ai(response_metadata={"t": datetime.datetime(2025, 1, 1)}),
    "Decimal": told(decimal.Decimal("1.1")),
    "UUID": told(uuid.UUID(int=1)),
    "enum": told(Colour.RED),
    "text enum": told(Word.STOP),
    "enum as key": told({Colour.RED: 1}),
    "UUID as key": told({uuid.UUID(int=1): 1}),
    "date as key": told({datetime.date(2025, 1, 1): 1}),
    "set": told({1}),
    "text of another class": told(Text("x")),
    "mapping of another class": told(collections.OrderedDict(a=1)),
    "object": told(object()),
    "int over 64 bits": told(2**70),
    "lone surrogate": Generation(text="a\ud83d"),
    "lone surrogate in a key": told({"a\ud83d": 1, 1: 2}),
    "subclass of AIMessage": ChatGeneration(message=OwnMessage("x")),
    "subclass of the same name": ChatGeneration(message=SameName("x")),
    "subclass of Generation": OwnGeneration(text="x"),
    "another message": ChatGeneration(message=HumanMessage("x")),
    "tool call with more fields": ChatGeneration(
        message=AIMessage("x").model_copy(
            update={"tool_calls": [{**CALL, "type": "tool_call", "extras": {}}]}
        )
    ),
}


@pytest.mark.parametrize("generation", EQUAL.values(), ids=EQUAL)
def test_comes_back_equal(generation: Generation) -> None:
    """What is stored comes back equal, in the same classes."""
    found = back(generation)
    assert found == generation
    assert type(found) is type(generation)
    if isinstance(generation, ChatGeneration) and isinstance(found, ChatGeneration):
        assert type(found.message) is type(generation.message)


def test_objects_of_two_hits_share_nothing() -> None:
    """A hit may be changed by its caller, down to its mappings and lists."""
    data = CODEC.encode([ai()])
    (one,), (other,) = CODEC.decode(data), CODEC.decode(data)
    assert isinstance(one, ChatGeneration)
    assert isinstance(one.message, AIMessage)
    one.message.additional_kwargs["a"] = one.message.response_metadata["b"] = 1
    one.message.tool_calls.append({**CALL, "type": "tool_call"})  # type: ignore[typeddict-item]
    assert other == ai() == CODEC.decode(data)[0]


@pytest.mark.parametrize("generation", REFUSED.values(), ids=REFUSED)
def test_is_refused(generation: Generation) -> None:
    """What would come back as something else is not stored."""
    with pytest.raises(Uncacheable):
        CODEC.encode([generation])


class TestWhatChanges:
    def test_ids_do_not_come_back(self) -> None:
        """An id that comes back twice would cost a LangGraph thread one of its answers."""
        found = back(ai(id="lc_run--1", response_metadata={"id": "chatcmpl-1"}))
        assert isinstance(found, ChatGeneration)
        assert found.message.id is None
        assert found.message.response_metadata == {"id": "chatcmpl-1"}

    @pytest.mark.parametrize("usage", [None, {"total_cost": 0}])
    def test_usage_is_always_whole(self, usage: Any) -> None:
        """LangChain adds a cost to what is there; alone it would be no valid usage."""
        stored = ChatGeneration(message=AIMessage("x").model_copy(update={"usage_metadata": usage}))
        found = back(stored)
        assert isinstance(found, ChatGeneration)
        assert isinstance(found.message, AIMessage)
        assert found.message.usage_metadata == {**NO_USAGE, **(usage or {})}

    def test_a_parsed_object_is_its_fields(self) -> None:
        """LangChain rebuilds it with ``schema(**parsed)``, hence by alias."""
        city = City(when=datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC), cityName="Rome")
        found = back(ai(additional_kwargs={"parsed": city, "refusal": None}))
        assert isinstance(found, ChatGeneration)
        assert City(**found.message.additional_kwargs["parsed"]) == city
        assert found.message.additional_kwargs["refusal"] is None

    def test_a_tuple_is_a_list(self) -> None:
        """As everywhere in LangChain's own serialisation."""
        assert back(told((1, 2))) == told([1, 2])

    def test_the_answer_given_is_left_as_it_is(self) -> None:
        """Encoding changes nothing in the objects that the caller goes on to use."""
        given_, same = (ai("x", id="1", usage_metadata=None, additional_kwargs={"a": 1}) for _ in range(2))
        CODEC.encode([given_])
        assert given_ == same

    def test_many_keep_their_order(self) -> None:
        """Six hundred generations come back in the order in which they were stored."""
        many = [Generation(text=str(number)) for number in range(600)]
        assert CODEC.decode(CODEC.encode(many)) == many


class TestUntrustedBytes:
    GOOD = CODEC.encode(
        [ai([TEXT], tool_calls=[CALL]), Generation(text="x", generation_info={"v": {1: "a"}})]
    )

    @pytest.mark.parametrize(
        "rows",
        [
            [],
            {},
            "text",
            None,
            [1],
            [["Generation", None, "x"]],
            [["Generation", None, 1, None]],
            [["Generation", None, "x", 1]],
            [["HumanMessage", None, "x", None]],
            [["ChatGeneration", None, "x", None]],
            [["ChatGeneration", "HumanMessage", {"content": "x"}, None]],
            [["ChatGeneration", "AIMessage", {}, None]],
            [["ChatGeneration", "AIMessage", "x", None]],
            [["Generation", "AIMessage", {"content": "x"}, None]],
            [["ChatGenerationChunk", "AIMessage", {"content": "x"}, None]],
            [{"lc": 1, "type": "constructor", "id": ["langchain", "schema", "output", "Generation"]}],
        ],
    )
    def test_foreign_rows_raise(self, rows: Any) -> None:
        """What this codec cannot have written raises: the core takes it for a miss."""
        with pytest.raises(Exception):
            CODEC.decode(ormsgpack.packb(rows))

    @given(st.integers(min_value=0, max_value=len(GOOD) - 1))
    def test_cut_short_raises(self, length: int) -> None:
        """An entry that was cut raises."""
        with pytest.raises(Exception):
            CODEC.decode(self.GOOD[:length])

    @given(st.binary(max_size=200) | st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)))
    def test_junk_raises_or_is_generations(self, junk: Any) -> None:
        """Whatever the bytes, nothing but generations comes out, and never an empty list."""
        if isinstance(junk, tuple):
            at, byte = junk
            junk = self.GOOD[:at] + bytes([byte]) + self.GOOD[at + 1 :]
        try:
            found = CODEC.decode(junk)
        except Exception:
            return
        assert found
        assert {Generation, GenerationChunk, ChatGeneration, ChatGenerationChunk} >= set(map(type, found))


class TestMark:
    def test_messages_say_where_they_come_from(self) -> None:
        """A hit can be told by its metadata."""
        found = CODEC.decode(CODEC.encode([ai()]))
        mark(found, "hit", 1.5, keep_usage=True)
        assert isinstance(found[0], ChatGeneration)
        assert found[0].message.response_metadata["askonce"] == {"source": "hit", "age": 1.5}
        assert isinstance(found[0].message, AIMessage)
        assert found[0].message.usage_metadata == USAGE

    def test_usage_can_be_dropped(self) -> None:
        """A hit costs no tokens, for those who add them up."""
        found = CODEC.decode(
            CODEC.encode([ai(response_metadata={"token_usage": {"a": 1}, "model_name": "m"})])
        )
        mark(found, "hit", 1.5, keep_usage=False)
        assert isinstance(found[0], ChatGeneration)
        assert set(found[0].message.response_metadata) == {"model_name", "askonce"}
        assert isinstance(found[0].message, AIMessage)
        assert found[0].message.usage_metadata == NO_USAGE

    def test_plain_generations_are_left_alone(self) -> None:
        """Users compare them: there is no place in them that is ours."""
        found = CODEC.decode(CODEC.encode([Generation(text="x")]))
        mark(found, "hit", 1.5, keep_usage=False)
        assert found == [Generation(text="x")]
