"""One entry serves all forms: JSON made of streams, streams made of JSON, and the options of a hit."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from tests.integrations.openai.wired import (
    CALL,
    CUSTOM,
    FUNCTION,
    JSON,
    MESSAGE,
    SAID,
    SAYS,
    STREAM,
    TELLS_USAGE,
    THOUGHT,
    TOOL_USE,
    USAGE,
    WITH_USAGE,
    blocks,
    chat,
    chunk,
    entry,
    given,
    message,
    plan,
    read,
    recorded,
    response,
    sse,
    streamed,
    text,
    told,
)

from askonce import ConfigurationError
from askonce_openai import wire
from askonce_openai.wire.sse import events

BARE = {"stream": True}
COALESCED = wire.Hits(replay="coalesced")


def values(body: bytes | None) -> list[dict[str, Any]]:
    """Return the data of each event but the mark of the end."""
    assert body is not None
    return [json.loads(event.data) for event in events(body) if event.data and not event.is_done]


# --- the table of forms -------------------------------------------------------------------------------------------

FORMS: dict[str, dict[str, Any]] = {"json": {}, "bare": BARE, "usage": WITH_USAGE}
STORED = {
    "json": lambda api: recorded(plan(api), chat() if api == "chat" else text()),
    "stream with usage": lambda api: streamed(plan(api, WITH_USAGE), said(api, usage=True)),
    "stream with usage unasked": lambda api: streamed(plan(api, BARE), said(api, usage=True)),
    "stream without usage": lambda api: streamed(plan(api, BARE), said(api, usage=False)),
    "usage asked, none sent": lambda api: streamed(plan(api, WITH_USAGE), said(api, usage=False)),
}
TABLE = {
    ("json", "json"): True,
    ("json", "bare"): True,
    ("json", "usage"): True,
    ("stream with usage", "json"): True,
    ("stream with usage", "bare"): True,
    ("stream with usage", "usage"): True,
    ("stream with usage unasked", "json"): True,
    ("stream with usage unasked", "bare"): True,
    ("stream with usage unasked", "usage"): True,
    ("stream without usage", "json"): False,
    ("stream without usage", "bare"): True,
    ("stream without usage", "usage"): False,
    ("usage asked, none sent", "json"): False,
    ("usage asked, none sent", "bare"): True,
    ("usage asked, none sent", "usage"): True,
}


def said(api: str, *, usage: bool) -> bytes:
    parts = (
        list(SAYS)
        if api == "chat"
        else [{**text(None, "he"), "usage": None}, {**text("stop", "llo"), "usage": None}]
    )
    return sse(*parts, *([TELLS_USAGE] if usage else []))


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize(("stored", "form"), TABLE)
def test_each_row_of_the_table(api: str, stored: str, form: str) -> None:
    """Served with the same text and the usage that was asked for, or a miss."""
    by = entry(STORED[stored](api))
    body = given(plan(api, FORMS[form]), by)
    assert TABLE[stored, form] is (body is not None)
    if body is None:
        return
    if form == "json":
        answer = read(body)
        content = answer["choices"][0].get("message", answer["choices"][0])
        assert (content.get("content", content.get("text")), answer["usage"]) == ("hello", USAGE)
    else:
        chunks = values(body)
        parts = [choice.get("delta", choice) for one in chunks for choice in one["choices"]]
        assert "".join(part.get("content", part.get("text")) or "" for part in parts) == "hello"
        assert body.endswith(b"data: [DONE]\n\n")
        seen = [one["usage"] for one in chunks if one.get("usage")]
        if form == "usage" and stored != "usage asked, none sent":
            assert seen == [USAGE]
        if form == "bare" and stored in {"json", "stream with usage"}:
            assert b'"usage"' not in body or api == "completions"
            assert seen == []


def test_usage_that_nobody_asked_for_is_left_where_it_is() -> None:
    """Some servers always tell it: a replay equals the original."""
    body = sse(*SAYS[:3], {**SAYS[3], "usage": USAGE})
    assert given(plan("chat", BARE), entry(streamed(plan("chat", BARE), body))) == body


def test_usage_is_taken_out_of_chunks_that_say_more() -> None:
    """Running totals, in each chunk: the chunks stay."""
    parts = [{**part, "usage": {**USAGE, "completion_tokens": n}} for n, part in enumerate(SAYS)]
    by = entry(streamed(plan("chat", WITH_USAGE), sse(*parts, TELLS_USAGE)))
    assert given(plan("chat", BARE), by) == sse(*SAYS)


def test_a_request_is_given_its_content_type() -> None:
    """That of its form; as it was received if it is the same."""
    by = entry(
        wire.record(plan(), 200, {**JSON, "x-request-id": "r"}, json.dumps(chat()).encode(), ended=True)
    )
    as_json, as_stream = wire.render(plan(), by), wire.render(plan("chat", BARE), by)
    assert as_json is not None
    assert as_stream is not None
    assert as_json.headers == {**JSON, "x-request-id": "r"}
    assert as_stream.headers == {"content-type": "text/event-stream; charset=utf-8", "x-request-id": "r"}


def test_what_is_no_entry_is_a_miss() -> None:
    """A head or a chunk in its place."""
    assert wire.render(plan(), wire.Head({}, stream=True, wants_usage=False)) is None
    assert wire.render(plan(), b"x") is None


# --- replay -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("usage", [True, False])
def test_a_replay_equals_the_original(usage: bool) -> None:
    """To the byte, vendors' fields included."""
    parts = [{**part, "vendor": {"b": 1, "a": [2]}} for part in SAYS]
    body = sse(*parts, *([TELLS_USAGE] if usage else []))
    asked = plan("chat", WITH_USAGE if usage else BARE)
    assert body == given(asked, entry(streamed(asked, body)))


@pytest.mark.parametrize(
    ("api", "body"), [("responses", told(response())), ("messages", blocks(message("tool_use", TOOL_USE)))]
)
def test_a_replay_equals_the_original_in_other_apis(api: str, body: bytes) -> None:
    """Names of events and pings included."""
    asked = plan(api, BARE)
    assert body == given(asked, entry(streamed(asked, body)))


def test_a_missing_mark_of_the_end_is_added() -> None:
    """The SDK stops at it."""
    body = sse(*SAYS, done=False)
    assert body + b"data: [DONE]\n\n" == given(plan("chat", BARE), entry(streamed(plan("chat", BARE), body)))


def test_coalesced_says_the_same_in_fewer_events() -> None:
    """One delta a choice."""
    by = entry(streamed(plan("chat", WITH_USAGE), sse(SAYS[0], *[SAYS[1]] * 200, SAYS[3], TELLS_USAGE)))
    for asked in (plan("chat", BARE), plan("chat", WITH_USAGE)):
        body = given(asked, by, COALESCED)
        assert body is not None
        assert 2 + asked.wants_usage == len(values(body))
        again = entry(streamed(asked, body))
        if asked.wants_usage:
            assert read(given(plan(), by)) == read(given(plan(), again))
        assert values(body)[0]["choices"][0]["delta"]["content"] == "he" * 200


@pytest.mark.parametrize("api", ["responses", "messages"])
def test_coalesced_in_other_apis(api: str) -> None:
    """The answer is the same."""
    body = told(response()) if api == "responses" else blocks(message("tool_use", TOOL_USE))
    by = entry(streamed(plan(api, BARE), body))
    again = entry(streamed(plan(api, BARE), given(plan(api, BARE), by, COALESCED) or b""))
    assert read(given(plan(api), by)) == read(given(plan(api), again))


def test_what_cannot_be_put_together_is_replayed_as_it_came() -> None:
    """A vendor's list in two pieces: nobody knows whether they add up or replace, so JSON is a miss."""
    parts = (chunk({"content": "a", "details": [1]}), chunk({"details": [2]}), SAYS[3], TELLS_USAGE)
    body = sse(*parts)
    by = entry(streamed(plan("chat", WITH_USAGE), body))
    assert given(plan(), by) is None
    assert given(plan("chat", WITH_USAGE), by) == body == given(plan("chat", WITH_USAGE), by, COALESCED)
    words = (chunk({"content": "a", "state": "x"}), chunk({"state": "x"}), *parts[2:])
    assert given(plan(), entry(streamed(plan("chat", WITH_USAGE), sse(*words)))) is None
    once = entry(streamed(plan("chat", WITH_USAGE), sse(parts[0], *parts[2:])))
    assert read(given(plan(), once))["choices"][0]["message"]["details"] == [1]


# --- streams into JSON --------------------------------------------------------------------------------------------


def put_together(*parts: dict[str, Any], **body: Any) -> dict[str, Any]:
    asked = plan("chat", {**WITH_USAGE, **body})
    return read(given(plan("chat", body), entry(streamed(asked, sse(*parts, TELLS_USAGE)))))


def test_tools_are_put_together() -> None:
    """By their index; servers that repeat id, type and name say them once."""
    first = {**CALL, "index": 0, "function": {"name": "f", "arguments": '{"a"'}}
    second = {**CALL, "id": "call_2", "index": 1, "function": {"name": "g", "arguments": ""}}
    answer = put_together(
        chunk({"role": "assistant", "content": "", "tool_calls": [first]}),
        chunk({"tool_calls": [second]}),
        chunk({"tool_calls": [{**first, "function": {"name": "f", "arguments": ": 1}"}}]}),
        chunk({"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]}),
        chunk({}, "tool_calls"),
    )
    expected = [CALL, {**CALL, "id": "call_2", "function": {"name": "g", "arguments": "{}"}}]
    assert expected == answer["choices"][0]["message"]["tool_calls"]
    assert answer["choices"][0]["message"]["content"] is None


def test_a_function_call_is_put_together() -> None:
    """The form before tools."""
    answer = put_together(
        chunk({"role": "assistant", "function_call": {"name": "f", "arguments": ""}}),
        chunk({"function_call": {"arguments": '{"a"'}}),
        chunk({"function_call": {"arguments": ": 1}"}}),
        chunk({}, "function_call"),
    )
    assert answer["choices"][0]["message"]["function_call"] == {"name": "f", "arguments": '{"a": 1}'}


def test_thoughts_and_log_probabilities_are_put_together() -> None:
    """In their order."""

    def with_logprobs(token: str, delta: dict[str, Any]) -> dict[str, Any]:
        part = chunk(delta)
        part["choices"][0]["logprobs"] = {"content": [{"token": token}], "refusal": None}
        return part

    answer = put_together(
        chunk({"role": "assistant", "reasoning_content": "h"}),
        chunk({"reasoning_content": "m"}),
        with_logprobs("he", {"content": "he"}),
        with_logprobs("llo", {"content": "llo"}),
        chunk({}, "stop"),
    )
    choice = answer["choices"][0]
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("hm", "hello")
    assert choice["logprobs"]["content"] == [{"token": "he"}, {"token": "llo"}]


def test_log_probabilities_of_completions_are_put_together() -> None:
    """Each list grows."""
    parts = [text(None, "a"), text("stop", "b")]
    for token, part in zip("ab", parts, strict=True):
        part["choices"][0]["logprobs"] = {"tokens": [token], "token_logprobs": [-1.0], "top_logprobs": None}
        part["usage"] = None
    by = entry(streamed(plan("completions", WITH_USAGE), sse(*parts, TELLS_USAGE)))
    choice = read(given(plan("completions"), by))["choices"][0]
    expected = {"tokens": ["a", "b"], "token_logprobs": [-1.0, -1.0], "top_logprobs": None}
    assert ("ab", "stop", expected) == (choice["text"], choice["finish_reason"], choice["logprobs"])


def test_the_head_is_that_of_the_answer() -> None:
    """Azure's first chunk has an empty id and model, and fields of its own; other fields come late."""
    azure = {"id": "", "model": "", "created": 0, "object": "", "choices": [], "prompt_filter_results": [1]}
    answer = put_together(azure, *SAYS[:3], {**SAYS[3], "service_tier": "default"})
    assert (answer["id"], answer["model"], answer["created"]) == ("chatcmpl-1", "m-2025", 1)
    assert (
        answer["object"],
        answer["prompt_filter_results"],
        answer["service_tier"],
    ) == ("chat.completion", [1], "default")


def test_several_choices_are_put_together() -> None:
    """In the order of their index, with what is theirs alone."""
    parts = [chunk({"content": word}, None, index) for index, word in ((1, "b"), (0, "a"), (1, "B"))]
    parts += [chunk({}, "stop", index) for index in (0, 1)]
    parts[-1]["choices"][0]["content_filter_results"] = {"hate": {"filtered": False}}
    answer = put_together(*parts, n=2)
    assert [(one["index"], one["message"]["content"]) for one in answer["choices"]] == [(0, "a"), (1, "bB")]
    assert answer["choices"][1]["content_filter_results"] == {"hate": {"filtered": False}}
    assert "content_filter_results" not in answer["choices"][0]


def test_what_has_been_said_so_far_is_no_part_of_a_choice() -> None:
    """Perplexity repeats it in each chunk; a call that came in deltas would be lost."""
    part = chunk({"role": "assistant", "content": "he", "tool_calls": [{"index": 0, **CALL}]})
    part["choices"][0]["message"] = {"role": "assistant", "content": "he"}
    (choice,) = put_together(part, SAYS[2], chunk({}, "tool_calls"))["choices"]
    assert (choice["message"]["content"], choice["message"]["tool_calls"]) == ("hello", [CALL])


def test_a_response_is_that_of_its_last_event() -> None:
    """Exactly."""
    answer = response("completed", None, THOUGHT, MESSAGE, FUNCTION)
    assert answer == read(given(plan("responses"), entry(streamed(plan("responses", BARE), told(answer)))))


def test_a_message_is_that_of_all_its_events() -> None:
    """Usage is told twice: what the end does not know stays as it was told at the beginning."""
    body = blocks(message()).replace(
        b'"usage":{"output_tokens":3}',
        b'"usage":{"output_tokens":3,"input_tokens":null},"context_management":{"edits":[]}',
    )
    answer = read(given(plan("messages"), entry(streamed(plan("messages", BARE), body))))
    assert answer == {**message(), "context_management": {"edits": []}}


# --- JSON into streams and back -----------------------------------------------------------------------------------


def three() -> dict[str, Any]:
    answer = chat(content="a", reasoning_content="hm", annotations=[])
    answer["choices"][0]["logprobs"] = {
        "content": [{"token": "a", "logprob": -1.0, "top_logprobs": []}],
        "refusal": None,
    }
    for index, one in enumerate(
        (chat("tool_calls", None, tool_calls=[CALL, {**CALL, "id": "c2"}]), chat()), 1
    ):
        answer["choices"].append({**one["choices"][0], "index": index})
    return answer


def lean(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer without what is empty in a message: a stream does not say it."""
    answer = copy.deepcopy(answer)
    for choice in answer.get("choices", ()):
        if "message" in choice:
            message = choice["message"]
            choice["message"] = {name: value for name, value in message.items() if value not in (None, [])}
    return answer


ANSWERS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("chat", {}, chat()),
    ("chat", {}, chat("tool_calls", None, tool_calls=[CALL])),
    ("chat", {}, chat("function_call", None, function_call={"name": "f", "arguments": "{}"})),
    ("chat", {"n": 3}, three()),
    ("chat", {}, {**chat(), "service_tier": "default", "citations": ["a"]}),
    ("completions", {}, text()),
    ("completions", {"prompt": ["a", "b"]}, {**text(), "choices": [{**text()["choices"][0], "index": n} for n in (0, 1)]}),
    ("responses", {}, response("completed", None, THOUGHT, MESSAGE, FUNCTION, CUSTOM)),
    ("responses", {"max_output_tokens": 5}, response("incomplete", "max_output_tokens")),
    ("messages", {}, message("tool_use", {"type": "text", "text": "t"}, TOOL_USE)),
    (
        "messages",
        {},
        message(
            "end_turn",
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "t", "citations": [{"type": "char_location", "cited_text": "c"}]},
            {"type": "text", "text": "u", "citations": None},
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("api", "body", "answer"), ANSWERS)
def test_there_and_back(api: str, body: dict[str, Any], answer: dict[str, Any]) -> None:
    """What a stream made of JSON is put together to is the JSON it was made of."""
    made = given(plan(api, {**body, **WITH_USAGE}), entry(recorded(plan(api, body), answer)))
    again = read(given(plan(api, body), entry(streamed(plan(api, {**body, **WITH_USAGE}), made or b""))))
    assert lean(again) == lean(answer)


def test_a_made_response_begins_as_one_that_is_in_progress() -> None:
    """Nothing said, nothing used; each item begins empty."""
    answer = response("completed", None, THOUGHT, MESSAGE, FUNCTION, CUSTOM)
    made = values(given(plan("responses", BARE), entry(recorded(plan("responses"), answer))))
    for event in made[:2]:
        assert {**answer, "status": "in_progress", "output": [], "usage": None} == event["response"]
    begun = [event["item"] for event in made if event["type"] == "response.output_item.added"]
    assert [item["id"] for item in begun] == ["rs_1", "msg_1", "fc_1", "ctc_1"]
    assert [begun[0]["summary"], begun[1]["content"], begun[2]["arguments"], begun[3]["input"]] == [
        [],
        [],
        "",
        "",
    ]
    assert [event["item"] for event in made if event["type"] == "response.output_item.done"] == answer[
        "output"
    ]


def test_made_calls_have_their_index() -> None:
    """Readers put pieces together by it."""
    calls = [CALL, {**CALL, "id": "call_2"}]
    made = values(
        given(plan("chat", BARE), entry(recorded(plan(), chat("tool_calls", None, tool_calls=calls))))
    )
    assert [call["index"] for call in made[0]["choices"][0]["delta"]["tool_calls"]] == [0, 1]


def test_an_annotation_has_its_event() -> None:
    """At its place."""
    noted = {
        **MESSAGE,
        "content": [{**SAID, "annotations": [{"type": "url_citation"}, {"type": "file_citation"}]}],
    }
    made = values(
        given(plan("responses", BARE), entry(recorded(plan("responses"), response("completed", None, noted))))
    )
    notes = [one for one in made if one["type"] == "response.output_text.annotation.added"]
    assert [(one["annotation_index"], one["annotation"]["type"]) for one in notes] == [
        (0, "url_citation"),
        (1, "file_citation"),
    ]


def test_a_server_without_usage_gives_none() -> None:
    """A made stream does not say what nobody knows."""
    answer = chat()
    del answer["usage"]
    body = given(plan("chat", WITH_USAGE), entry(recorded(plan(), answer)))
    assert b"usage" not in (body or b"usage")


# --- options of a hit ---------------------------------------------------------------------------------------------

BOTH_FORMS = [
    ("chat", {}, {**chat("tool_calls", None, tool_calls=[CALL])}, ("chatcmpl-1", "call_1")),
    ("responses", {}, response("completed", None, MESSAGE, FUNCTION), ("resp_1", "msg_1", "fc_1", "call_1")),
    ("messages", {}, message("tool_use", TOOL_USE), ("msg_1", "toolu_1")),
]


@pytest.mark.parametrize(("api", "body", "answer", "ids"), BOTH_FORMS)
@pytest.mark.parametrize("form", [{}, WITH_USAGE])
@pytest.mark.parametrize("stored", ["json", "stream"])
def test_fresh_ids(
    api: str,
    body: dict[str, Any],
    answer: dict[str, Any],
    ids: tuple[str, ...],
    form: dict[str, Any],
    stored: str,
) -> None:
    """Each hit has ids of its own: new everywhere, of the same kind, the same one wherever it stands."""
    by = entry(recorded(plan(api), answer))
    if stored == "stream":
        by = entry(streamed(plan(api, WITH_USAGE), given(plan(api, WITH_USAGE), by) or b""))
    asked = plan(api, {**body, **form})
    plain = given(asked, by)
    one, again, other = (given(asked, by, wire.Hits(fresh_ids=True), token) for token in ("a", "a", "b"))
    assert plain is not None
    assert one is not None
    assert other is not None
    assert one == again != other
    for old in ids:
        quoted = json.dumps(old).encode()
        assert quoted in plain
        assert quoted not in one
        assert one.count(f'"{old[: old.rindex("_" if "_" in old else "-") + 1]}'.encode()) >= plain.count(
            quoted
        )
    assert plain.count(b'"id"') == one.count(b'"id"')


def test_fresh_ids_change_nothing_else() -> None:
    """Not the arguments of a call that hold an id, nor text that equals it."""
    call = {**CALL, "function": {"name": "f", "arguments": '{"id": "call_1"}'}}
    by = entry(recorded(plan(), chat("tool_calls", "chatcmpl-1", tool_calls=[call])))
    answer = read(given(plan(), by, wire.Hits(fresh_ids=True), "t"))
    found = answer["choices"][0]["message"]
    assert (
        found["content"],
        found["tool_calls"][0]["function"]["arguments"],
    ) == ("chatcmpl-1", '{"id": "call_1"}')
    assert answer["id"] != "chatcmpl-1"
    assert (answer["model"], answer["usage"]) == ("m-2025", USAGE)


@pytest.mark.parametrize(("api", "body", "answer", "ids"), BOTH_FORMS)
@pytest.mark.parametrize("form", [{}, WITH_USAGE])
def test_usage_of_a_hit_can_be_zero(
    api: str, body: dict[str, Any], answer: dict[str, Any], ids: tuple[str, ...], form: dict[str, Any]
) -> None:
    """In every place, down to the details; the rest stays."""
    by = entry(recorded(plan(api), answer))
    asked = plan(api, {**body, **form})
    given_body = given(asked, by, wire.Hits(usage_on_hit="zero"))
    found = values(given_body) if form else [read(given_body)]
    usages = []
    for value in found:
        for holder in (value, value.get("response") or {}, value.get("message") or {}):
            usages += [holder["usage"]] if holder.get("usage") else []

    def numbers(value: Any) -> list[int]:
        if isinstance(value, dict):
            return [one for inner in value.values() for one in numbers(inner)]
        return [value]

    assert usages
    assert {0} == {one for usage in usages for one in numbers(usage)}
    assert ids[0].encode() in (given_body or b"")


def test_options_go_together() -> None:
    """Coalesced, with fresh ids and no usage."""
    by = entry(streamed(plan("chat", WITH_USAGE), sse(*SAYS, TELLS_USAGE)))
    hits = wire.Hits(replay="coalesced", fresh_ids=True, usage_on_hit="zero")
    made = values(given(plan("chat", WITH_USAGE), by, hits, "t"))
    assert len(made) == 3
    assert {"chatcmpl-1"}.isdisjoint(one["id"] for one in made)
    assert len({one["id"] for one in made}) == 1
    assert made[-1]["usage"]["total_tokens"] == 0


@pytest.mark.parametrize("wrong", [{"replay": "fast"}, {"usage_on_hit": 0}, {"fresh_ids": "yes"}])
def test_an_unknown_option_is_an_error(wrong: dict[str, Any]) -> None:
    """It names the option, what was given, and what is allowed."""
    (name,) = wrong
    with pytest.raises(ConfigurationError, match=f"{name}={wrong[name]!r}"):
        wire.Hits(**wrong)


def test_a_cut_entry_is_a_miss() -> None:
    """In every form."""
    for by in (wire.Entry("json", b'{"choi'), wire.Entry("sse", b"data: {", STREAM, usage_seen=True)):
        for form in ({}, BARE, WITH_USAGE):
            asked = plan("chat", {**form, "user": "u"})
            assert given(asked, by) is None or form == {} or by.form == "sse"
    assert given(plan("chat", WITH_USAGE), wire.Entry("json", b'{"choi')) is None
    assert given(plan(), wire.Entry("sse", b"data: {", STREAM, usage_seen=True)) is None
