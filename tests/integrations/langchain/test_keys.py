"""Which requests of LangChain are alike, and which are not."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage

from askonce import Uncacheable
from askonce.keys import Verbatim, canonical
from askonce_langchain._keys import request

MODEL = '{"id": ["app", "Model"], "kwargs": {"model": "m"}, "lc": 1, "name": "Model", "type": "constructor"}'
CALL = "---[('stop', None)]"
USAGE = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
TOOL_CALL = {"name": "t", "args": {"a": 1, "b": 2}, "id": "1"}


def form(messages: Any, llm_string: str = MODEL + CALL) -> bytes:
    prompt = messages if isinstance(messages, str) else dumps(messages)
    return canonical(request(prompt, llm_string).body)


def after(answer: AIMessage) -> list[Any]:
    return [HumanMessage("a"), answer, HumanMessage("c")]


def with_tool(call: dict[str, Any] | None = None, **kwargs: Any) -> list[Any]:
    answer = AIMessage("", tool_calls=[call or TOOL_CALL])
    return [HumanMessage("a"), answer, ToolMessage("r", tool_call_id="1", **kwargs)]


def answer(**metadata: Any) -> list[Any]:
    return after(AIMessage("b", response_metadata=metadata))


PLAIN = after(AIMessage("b"))
TWO_TEXTS = [
    {"type": "text", "text": "b", "cache_control": {"type": "ephemeral", "ttl": "5m"}},
    {"cache_control": {"ttl": "5m", "type": "ephemeral"}, "text": "b", "type": "text"},
]


class TestMessagesThatAreAlike:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            pytest.param([HumanMessage("a", id="1")], [HumanMessage("a", id="2")], id="message id"),
            pytest.param(after(AIMessage("b", usage_metadata=USAGE)), PLAIN, id="usage"),
            pytest.param(
                after(AIMessage("b").model_copy(update={"usage_metadata": {"total_cost": 0}})),
                PLAIN,
                id="total_cost",
            ),
            pytest.param(answer(askonce={"source": "hit", "age": 1.5}), PLAIN, id="the mark of a hit"),
            pytest.param(answer(created=1, created_at=2, headers={"x": "y"}), PLAIN, id="created, headers"),
            pytest.param(
                answer(finish_reason="stop", logprobs={"a": 1}), PLAIN, id="finish_reason, logprobs"
            ),
            pytest.param(answer(stop_reason="end_turn", stop_sequence="."), PLAIN, id="stop_reason"),
            pytest.param(answer(system_fingerprint="fp", service_tier="x"), PLAIN, id="system_fingerprint"),
            pytest.param(answer(token_usage={"a": 1}, usage={"b": 2}), PLAIN, id="reports of usage"),
            pytest.param(answer(id="chatcmpl-1"), answer(id="chatcmpl-2"), id="id of a completion"),
            pytest.param(after(AIMessage("b", additional_kwargs={"parsed": {"a": 1}})), PLAIN, id="parsed"),
            pytest.param(
                after(AIMessage("b", additional_kwargs={"refusal": None})), PLAIN, id="refusal: None"
            ),
            pytest.param(after(AIMessageChunk("b")), PLAIN, id="chunk"),
            pytest.param(with_tool(artifact=object()), with_tool(), id="artifact"),
            pytest.param([HumanMessage(TWO_TEXTS[:1])], [HumanMessage(TWO_TEXTS[1:])], id="order in a block"),
        ],
    )
    def test_alike(self, one: list[Any], other: list[Any]) -> None:
        """What no provider is sent does not tell two requests apart."""
        assert form(other) == form(one)

    def test_chunk_with_tool_calls(self) -> None:
        """A streamed tool call in the history counts as one that came whole."""
        chunks = [{"name": "t", "args": '{"a": 1, "b": 2}', "id": "1", "index": 0}]
        streamed = AIMessageChunk("", tool_call_chunks=chunks, chunk_position="last")
        assert form(after(AIMessage("", tool_calls=[TOOL_CALL]))) == form(after(streamed))


class TestMessagesThatDiffer:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            pytest.param([HumanMessage("a")], [HumanMessage("b")], id="text"),
            pytest.param([HumanMessage("a")], [SystemMessage("a")], id="role"),
            pytest.param([HumanMessage("a", name="bob")], [HumanMessage("a")], id="name"),
            pytest.param(
                [HumanMessage("ab"), HumanMessage("c")], [HumanMessage("a"), HumanMessage("bc")], id="cut"
            ),
            pytest.param(
                answer(id="resp_1"), answer(id="resp_2"), id="response id, sent as previous_response_id"
            ),
            pytest.param(answer(unknown=1), PLAIN, id="unknown metadata"),
            pytest.param(
                [HumanMessage("a", additional_kwargs={"ts": 1})],
                [HumanMessage("a", additional_kwargs={"ts": 2})],
                id="unknown field",
            ),
            pytest.param(
                with_tool({**TOOL_CALL, "args": {"b": 2, "a": 1}}), with_tool(), id="order of arguments"
            ),
            pytest.param(
                after(AIMessage([{"type": "tool_use", "id": "1", "name": "t", "input": {"a": 1, "b": 2}}])),
                after(AIMessage([{"type": "tool_use", "id": "1", "name": "t", "input": {"b": 2, "a": 1}}])),
                id="order of arguments in a block",
            ),
            pytest.param(
                with_tool({**TOOL_CALL, "args": {"n": 2**70}}),
                with_tool({**TOOL_CALL, "args": {"n": 2**70 + 1}}),
                id="big int",
            ),
            pytest.param([HumanMessage("a\ud800")], [HumanMessage("a\ud801")], id="lone surrogates"),
            pytest.param([HumanMessage("a")], dumps([HumanMessage("a")])[1:-1], id="chat and text"),
        ],
    )
    def test_differ(self, one: list[Any], other: list[Any]) -> None:
        """What a model may see tells two requests apart, and so does what is not known to be hidden from it."""
        assert form(other) != form(one)

    def test_prompt_and_model_are_apart(self) -> None:
        """("ab", "c") is not ("a", "bc")."""
        assert form("a", "bc") != form("ab", "c")

    def test_text_is_left_alone(self) -> None:
        """The prompt of a completion model is text, whatever it looks like."""
        for text in ("q", "[1, 2]", '[{"lc": 1}]', '[{"lc": 1', '[{"lc": 1, "type": "secret", "id": ["X"]}]'):
            assert {"prompt": text} == {
                k: v for k, v in dict(request(text, "m").body).items() if k == "prompt"
            }


class TestArguments:
    def test_their_order_is_kept_once(self) -> None:
        """Only the outermost arguments are marked: below them all order counts already."""
        body = request(dumps(with_tool({**TOOL_CALL, "args": {"input": {"b": 1, "a": 2}}})), "m").body
        call = body["messages"][1][1]["tool_calls"][0]
        assert call["args"] == Verbatim({"input": {"b": 1, "a": 2}})


class TestObjectsInMessages:
    def test_an_address_is_refused(self) -> None:
        """An object whose repr is its address would never hit, or hit by chance."""
        with pytest.raises(Uncacheable):
            form([HumanMessage("a", additional_kwargs={"x": object()})])

    def test_a_shortened_repr_is_refused(self) -> None:
        """A repr that leaves something out is that of many objects."""

        class Long:
            def __repr__(self) -> str:
                return "array([1, 2, ..., 9])"

        with pytest.raises(Uncacheable):
            form([HumanMessage("a", additional_kwargs={"x": Long()})])

    def test_a_telling_repr_counts(self) -> None:
        """Bytes, say, are written whole."""
        one, other = ([HumanMessage("a", additional_kwargs={"x": data})] for data in (b"1", b"2"))
        assert form(one) == form(one) != form(other)

    def test_the_error_quotes_nothing(self) -> None:
        """An error may be logged; what was asked may not."""
        with pytest.raises(Uncacheable) as caught:
            form([HumanMessage("PRIVATE", additional_kwargs={"x": object()})])
        assert "PRIVATE" not in str(caught.value)


class TestModels:
    @pytest.mark.parametrize(
        "change",
        [
            {"timeout": 10},
            {"max_retries": 3},
            {"streaming": True},
            {"disable_streaming": True},
            {"verbose": True},
        ],
    )
    def test_how_the_call_is_made_does_not_count(self, provider: Any, change: dict[str, Any]) -> None:
        """Timeouts, retries and streaming change the call, not the question."""
        assert form(*provider.strings()) == form(*provider.strings(**change))

    @pytest.mark.parametrize(
        "change",
        [
            {"model": "gpt-y"},
            {"temperature": 1.0},
            {"temperature": 1.5},
            {"base_url": "http://other/v1"},
            {"n": 2},
            {"model_kwargs": {"user": "u"}},
            {"use_responses_api": True},
            {"output_version": "v1"},
            {"default_headers": {"x": "y"}},
            {"call": {"stop": ["."]}},
            {"call": {"stop": [".", "!"]}},
            {"call": {"tools": []}},
        ],
    )
    def test_what_the_model_is_told_counts(self, provider: Any, change: dict[str, Any]) -> None:
        """Every parameter is in the key unless it is known not to matter."""
        assert form(*provider.strings()) != form(*provider.strings(**change))

    def test_the_api_key_does_not_count(self, provider: Any) -> None:
        """LangChain does not tell it: tenants are kept apart by namespaces."""
        assert form(*provider.strings()) == form(*provider.strings(api_key="sk-OTHER"))

    def test_the_order_of_a_schema_counts(self) -> None:
        """The arguments of the call stay the text that LangChain made of them."""
        one = MODEL + "---[('stop', None), ('tools', [{'a': 1, 'b': 2}])]"
        other = MODEL + "---[('stop', None), ('tools', [{'b': 2, 'a': 1}])]"
        assert form("q", one) != form("q", other)

    @pytest.mark.parametrize("mark", ["---", "---[(", "---[('stop'"])
    def test_the_mark_between_model_and_call_may_stand_in_either(self, mark: str) -> None:
        """A tool's description and a model's own field may hold the text that separates the two."""
        for model, call in ((MODEL.replace('"m"', f'"m{mark}"'), CALL), (MODEL, f"---[('stop', 'x{mark}')]")):
            with_timeout = model.replace('{"model"', '{"timeout": 3, "model"')
            assert form("q", model + call) == form("q", with_timeout + call)
            assert form("q", model + call) != form("q", MODEL + CALL)

    @pytest.mark.parametrize(
        "tail",
        [
            "---[('response_format', <class 'app.Out'>)]",
            "---[('f', <function f at 0x7f>)]",
            "---[('x', <X at 0x1>)]",
        ],
    )
    def test_a_call_that_does_not_say_what_is_sent_is_refused(self, tail: str) -> None:
        """A class without its schema and an object with its address tell nothing that could be compared."""
        for llm_string in (MODEL + tail, tail):
            with pytest.raises(Uncacheable):
                form("q", llm_string)

    def test_an_object_in_the_model_is_refused(self) -> None:
        """LangChain strips such an object of its repr: two that differ would look alike."""
        shown = '{"id": ["builtins", "dict"], "lc": 1, "type": "not_implemented"}'
        with pytest.raises(Uncacheable, match="safety_settings"):
            form("q", MODEL.replace('"m"}', f'"m", "safety_settings": {shown}}}') + CALL)
        assert form("q", MODEL.replace('"m"}', f'"m", "http_client": {shown}}}') + CALL)

    @pytest.mark.parametrize(
        "text", ["", "{", "{}", "[]", '{"kwargs": 1}---[]', '{"a": ' * 5000, "\ud800", "---"]
    )
    def test_any_text_makes_a_key(self, text: str) -> None:
        """What is not LangChain's own form counts as it is."""
        assert form("q", text) == form("q", text) != form("q", text + "x")
