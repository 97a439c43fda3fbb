"""Which answers are kept, in both forms, and what of them."""

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
    THOUGHT,
    TOOL_USE,
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

from askonce_openai import wire

KEPT = None
TOOLS = {"tool_calls": [CALL]}
LEGACY = {"function_call": {"name": "f", "arguments": "{}"}}


def several(*answers: dict[str, Any]) -> dict[str, Any]:
    """One answer with the choice of each."""
    whole = copy.deepcopy(answers[0])
    whole["choices"] = [{**answer["choices"][0], "index": n} for n, answer in enumerate(answers)]
    return whole


CHAT: list[tuple[dict[str, Any], Any, str | None]] = [
    ({}, chat(), KEPT),
    ({}, chat("eos"), KEPT),
    ({}, chat("tool_calls", None, **TOOLS), KEPT),
    ({}, chat("stop", "", **TOOLS), KEPT),
    ({}, chat("function_call", None, **LEGACY), KEPT),
    ({}, chat(content=[{"type": "text", "text": "x"}]), KEPT),
    ({"max_tokens": 5}, chat("length"), KEPT),
    ({"max_completion_tokens": 5}, chat("length"), KEPT),
    ({}, chat("length"), "length"),
    ({"max_output_tokens": 5}, chat("length"), "length"),
    ({"max_tokens": 5}, chat("length", ""), "empty"),
    ({}, chat("content_filter"), "finish-reason content_filter"),
    ({}, chat("error"), "finish-reason error"),
    ({}, chat(None), "incomplete"),
    ({}, chat(content="  \n"), "empty"),
    ({}, chat(content=None), "empty"),
    ({}, chat(content=None, reasoning_content="thoughts alone"), "empty"),
    ({}, chat(content=None, refusal="no"), "refused"),
    ({}, chat(content="x", refusal="no"), "refused"),
    ({"n": 2}, chat(), "incomplete"),
    ({"n": 2}, several(chat(), chat(content="other")), KEPT),
    ({"n": 2}, several(chat(), chat("content_filter")), "finish-reason content_filter"),
    ({"n": 2}, several(chat(), chat(content="")), "empty"),
]


def as_chunks(answer: dict[str, Any]) -> bytes:
    """The stream by which a server would say this answer of chat."""
    parts: list[dict[str, Any]] = []
    for choice in answer["choices"]:
        delta = {name: value for name, value in choice["message"].items() if value is not None}
        if calls := delta.get("tool_calls"):
            delta["tool_calls"] = [{"index": n, **call} for n, call in enumerate(calls)]
        parts.append(chunk(delta, None, choice["index"]))
        parts.append(chunk({}, choice["finish_reason"], choice["index"]))
    return sse(*parts)


@pytest.mark.parametrize(("body", "answer", "reason"), CHAT)
def test_chat(body: dict[str, Any], answer: dict[str, Any], reason: str | None) -> None:
    """The same rules hold for JSON and for streams."""
    found = recorded(plan("chat", body), answer), streamed(plan("chat", body), as_chunks(answer))
    if reason is KEPT:
        assert [entry(one).form for one in found] == ["json", "sse"]
    else:
        assert (reason, reason) == found


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"error": {"message": "x"}}, "error"),
        ({**chat(), "error": {"message": "x"}}, "error"),
        ([], "error"),
        (None, "error"),
        ({}, "incomplete"),
        ({"choices": []}, "incomplete"),
        ({"choices": 7}, "incomplete"),
        ({"choices": [7]}, "unreadable"),
        ({"choices": [{"finish_reason": "stop", "message": "hi"}]}, "unreadable"),
    ],
)
def test_what_is_no_answer_is_not_stored(answer: Any, reason: str) -> None:
    """Whatever its status says."""
    assert reason == recorded(plan(), answer)


def test_a_choice_that_broke_is_not_stored() -> None:
    """OpenRouter reports an error inside a choice."""
    answer = chat()
    answer["choices"][0]["error"] = {"code": 502}
    assert recorded(plan(), answer) == "error"


COMPLETIONS: list[tuple[dict[str, Any], dict[str, Any], str | None]] = [
    ({}, text(), KEPT),
    ({"max_tokens": 5}, text("length"), KEPT),
    ({}, text("length"), "length"),
    ({}, text(said=" "), "empty"),
    ({}, text(None), "incomplete"),
    ({"prompt": ["a", "b"]}, text(), "incomplete"),
    ({"prompt": ["a", "b"]}, several(text(), text()), KEPT),
    ({"prompt": ["a", "b"], "n": 2}, several(text(), text()), "incomplete"),
    ({"prompt": [[1], [2]]}, text(), "incomplete"),
    ({"prompt": [1, 2]}, text(), KEPT),
]


@pytest.mark.parametrize(("body", "answer", "reason"), COMPLETIONS)
def test_completions(body: dict[str, Any], answer: dict[str, Any], reason: str | None) -> None:
    """Every prompt has its choices."""
    parts = [{**answer, "choices": [choice]} for choice in answer["choices"]]
    found = recorded(plan("completions", body), answer), streamed(plan("completions", body), sse(*parts))
    if reason is KEPT:
        assert [entry(one).form for one in found] == ["json", "sse"]
    else:
        assert (reason, reason) == found


def saying(part: dict[str, Any]) -> dict[str, Any]:
    return {**MESSAGE, "content": [part]}


REFUSAL = {"type": "refusal", "refusal": "no"}
LIMITED = {"max_output_tokens": 9}
RESPONSES: list[tuple[dict[str, Any], dict[str, Any], str | None]] = [
    ({}, response(), KEPT),
    ({}, response("completed", None, FUNCTION), KEPT),
    ({}, response("completed", None, CUSTOM), KEPT),
    ({}, response("completed", None, THOUGHT, MESSAGE), KEPT),
    (LIMITED, response("incomplete", "max_output_tokens"), KEPT),
    ({}, response("incomplete", "max_output_tokens"), "length"),
    ({"max_tokens": 9}, response("incomplete", "max_output_tokens"), "length"),
    (LIMITED, response("incomplete", "content_filter"), "incomplete content_filter"),
    (LIMITED, response("incomplete", "steered"), "incomplete steered"),
    (LIMITED, response("incomplete"), "incomplete None"),
    ({}, response("failed"), "status failed"),
    ({}, response("queued"), "status queued"),
    ({}, response("completed", None, saying(REFUSAL)), "refused"),
    ({}, response("completed", None, MESSAGE, saying(REFUSAL)), "refused"),
    ({}, response("completed", None, saying({**SAID, "text": " "})), "empty"),
    ({}, response("completed", None, THOUGHT), "empty"),
    ({}, response(error={"code": "server_error"}), "error"),
]


@pytest.mark.parametrize(("body", "answer", "reason"), RESPONSES)
def test_responses(body: dict[str, Any], answer: dict[str, Any], reason: str | None) -> None:
    """Judged by the answer, which the last event of a stream holds."""
    assert reason == (
        None if isinstance(found := recorded(plan("responses", body), answer), wire.Entry) else found
    )
    if answer["status"] in {"completed", "incomplete"}:
        found = streamed(plan("responses", body), told(answer))
        assert reason == (None if isinstance(found, wire.Entry) else found)


MESSAGES: list[tuple[dict[str, Any], str | None]] = [
    (message(), KEPT),
    (message("tool_use", TOOL_USE), KEPT),
    (message("tool_use", {"type": "text", "text": "hi"}, TOOL_USE), KEPT),
    (message("stop_sequence"), KEPT),
    (message("max_tokens"), KEPT),
    (message("max_tokens", {"type": "text", "text": ""}), "empty"),
    (message("pause_turn"), "stop-reason pause_turn"),
    (message("refusal"), "stop-reason refusal"),
    (message("model_context_window_exceeded"), "stop-reason model_context_window_exceeded"),
    (message(None), "stop-reason None"),
]


@pytest.mark.parametrize(("answer", "reason"), MESSAGES)
def test_messages(answer: dict[str, Any], reason: str | None) -> None:
    """max_tokens is the caller's own limit, always: the API requires it."""
    found = recorded(plan("messages"), answer), streamed(plan("messages"), blocks(answer))
    if reason is KEPT:
        assert [entry(one).form for one in found] == ["json", "sse"]
    else:
        assert (reason, reason) == found


def test_thoughts_alone_are_no_message() -> None:
    """They answer nothing."""
    assert recorded(plan("messages"), message("end_turn", {"type": "thinking", "thinking": "hm"})) == "empty"


@pytest.mark.parametrize(
    ("body", "vectors", "reason"),
    [
        ({}, [[0.1], [0.2]], KEPT),
        ({}, ["AACAPw==", "AAAAQA=="], KEPT),
        ({"input": "a"}, [[0.1]], KEPT),
        ({"input": [1, 2, 3]}, [[0.1]], KEPT),
        ({"input": [[1], [2]]}, [[0.1], [0.1]], KEPT),
        ({}, [[0.1]], "incomplete"),
        ({"input": "a"}, [[0.1], [0.2]], "incomplete"),
        ({}, [[0.1], []], "empty"),
        ({}, None, "incomplete"),
    ],
)
def test_embeddings(body: dict[str, Any], vectors: Any, reason: str | None) -> None:
    """One vector for each input."""
    data = vectors and [
        {"object": "embedding", "index": n, "embedding": one} for n, one in enumerate(vectors)
    ]
    found = recorded(plan("embeddings", body), {"object": "list", "data": data})
    assert reason == (None if isinstance(found, wire.Entry) else found)


# --- whole or not -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [201, 202, 204, 400, 429, 500])
def test_another_status_is_not_stored(status: int) -> None:
    """Only 200 is an answer."""
    assert f"status {status}" == wire.record(plan(), status, JSON, json.dumps(chat()).encode(), ended=True)


def test_a_cut_body_is_not_stored() -> None:
    """Neither when the reader has left, nor when the socket was closed."""
    body = json.dumps(chat()).encode()
    assert wire.record(plan(), 200, JSON, body, ended=False) == "incomplete"
    assert wire.record(plan(), 200, JSON, body[:-9], ended=True) == "unreadable"


BROKEN = [*SAYS[:2], {"error": {"message": "overloaded"}}]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (sse(*SAYS[:3], done=False), "incomplete"),
        (sse(*SAYS[:3]), "incomplete"),
        (sse(*BROKEN, done=False), "error"),
        (sse(*BROKEN, *SAYS[2:]), "error"),
        (sse(*SAYS[:2], done=False) + b'event: error\ndata: {"message":"x"}\n\n' + sse(*SAYS[2:]), "error"),
        (sse(*SAYS[:3], chunk({}, "content_filter")), "finish-reason content_filter"),
        (sse(*SAYS[:3], chunk({}, "length")), "length"),
        (sse(), "incomplete"),
        (b"", "incomplete"),
        (b"data: x\n\n", "unreadable"),
    ],
)
def test_a_stream_that_is_not_whole_and_good_is_not_stored(body: bytes, reason: str) -> None:
    """Even though its body ended as it should."""
    assert reason == streamed(plan("chat", {"stream": True}), body)


@pytest.mark.parametrize("last", ["response.failed", "error"])
def test_a_failed_response_is_not_stored(last: str) -> None:
    """Nor is what comes after an error."""
    body = told({**response("failed"), "error": {"code": "x"}}, last=last)
    assert streamed(plan("responses"), body) in {"error", "x"}
    assert streamed(plan("responses"), body + told(response())) == "error"


@pytest.mark.parametrize("api", ["responses", "messages"])
def test_a_stream_without_its_last_event_is_not_stored(api: str) -> None:
    """It may go on."""
    body = told(response()) if api == "responses" else blocks(message())
    cut = body[: body.rindex(b"event:")]
    assert streamed(plan(api), cut, ended=False) == "incomplete"
    assert streamed(plan(api), cut, ended=True) == "error"


def test_a_reader_may_leave_at_the_finish_reason() -> None:
    """All choices are finished: what is missing is the mark of the end, which is added."""
    whole = entry(streamed(plan("chat", {"stream": True}), sse(*SAYS)))
    left = streamed(
        plan("chat", {"stream": True}), sse(*SAYS, done=False) + b'data: {"id":"chatc', ended=False
    )
    assert whole == left


def test_a_reader_that_left_before_the_usage_leaves_nothing() -> None:
    """It was asked for, and may have come."""
    assert streamed(plan("chat", WITH_USAGE), sse(*SAYS, done=False), ended=False) == "incomplete"


def test_all_choices_must_be_finished() -> None:
    """One of two is not the answer."""
    two = plan("chat", {"stream": True, "n": 2})
    assert streamed(two, sse(*SAYS, done=False), ended=False) == "incomplete"
    other = [{**part, "choices": [{**part["choices"][0], "index": 1}]} for part in SAYS]
    assert entry(streamed(two, sse(*SAYS, *other, done=False), ended=False))


# --- what is stored of it -----------------------------------------------------------------------------------------

MINE = {
    "metadata": {"tenant": "acme-tenant"},
    "user": "alice",
    "safety_identifier": "sid-7",
    "prompt_cache_key": "pck-7",
    "prompt_cache_retention": "24h-x",
    "prompt_cache_options": {"mode": "mode-7"},
}
FOREIGN = (b"acme-tenant", b"alice", b"sid-7", b"pck-7", b"24h-x", b"mode-7", b"diag-7")


@pytest.mark.parametrize("form", ["json", "stream"])
def test_nothing_of_its_caller_is_stored(form: str) -> None:
    """What Responses echoes is taken out of every event."""
    answer = response(**MINE, prompt_cache_diagnostics={"x": "diag-7"})
    asked = plan("responses", MINE)
    stored = entry(recorded(asked, answer) if form == "json" else streamed(asked, told(answer)))
    data = wire.CODEC.encode(stored)
    assert [one for one in FOREIGN if one in data] == []


@pytest.mark.parametrize("form", ["json", "stream"])
@pytest.mark.parametrize("asked", ["json", "stream"])
def test_a_hit_echoes_its_own_request(form: str, asked: str) -> None:
    """In every event that holds the answer."""
    answer = response(**MINE)
    own = {"metadata": {"tenant": "other"}, "user": "bob"}
    by = plan("responses", MINE)
    stored = entry(recorded(by, answer) if form == "json" else streamed(by, told(answer)))
    body = given(plan("responses", {**own, "stream": asked == "stream"}), stored)
    if asked == "json":
        found = [read(body)]
    else:
        assert body is not None
        events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: ")]
        found = [event["response"] for event in events if "response" in event]
        assert len(found) == 3
        assert not any("metadata" in event for event in events)
    for one in found:
        assert own == {name: one[name] for name in own}
        assert one["safety_identifier"] is None


def test_who_sends_nothing_is_echoed_nothing() -> None:
    """The entry as it is stored."""
    stored = entry(recorded(plan("responses", MINE), response(**MINE)))
    assert read(given(plan("responses"), stored))["metadata"] == {}
    assert read(given(plan("responses"), stored))["user"] is None


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_an_echo_of_other_apis_is_scrubbed_too(api: str) -> None:
    """Compatible servers may send one; it is only filled where there was one."""
    answer = chat() if api == "chat" else text()
    stored = entry(recorded(plan(api), {**answer, "user": "alice"}))
    assert b"alice" not in stored.body
    assert read(given(plan(api, {"user": "bob"}), stored))["user"] == "bob"
    stored = entry(recorded(plan(api), answer))
    assert "user" not in read(given(plan(api, {"user": "bob"}), stored))
    parts = SAYS if api == "chat" else (text(),)
    stored = entry(streamed(plan(api), sse(*({**part, "user": "alice"} for part in parts))))
    assert b"alice" not in stored.body


def test_only_harmless_headers_are_stored() -> None:
    """No cookie, no rate limit, no organisation of another caller."""
    headers = {
        **STREAM,
        "x-request-id": "req_1",
        "openai-processing-ms": "12",
        "openai-organization": "org-secret",
        "set-cookie": "__cf_bm=z",
        "x-ratelimit-remaining-requests": "7",
        "content-encoding": "gzip",
        "content-length": "9",
    }
    stored = entry(wire.record(plan(), 200, headers, sse(*SAYS), ended=True))
    expected = {**STREAM, "x-request-id": "req_1", "openai-processing-ms": "12"}
    assert expected == stored.headers
    assert {**expected, "content-encoding": "gzip"} == wire.head(plan(), headers).headers


def test_what_json_cannot_say_is_not_rewritten() -> None:
    """A number beyond a double would become text that no JSON reader takes."""
    body = json.dumps({**chat(), "user": "alice"}).encode().replace(b'"created": 1', b'"created": 1e999')
    assert wire.record(plan(), 200, JSON, body, ended=True) == "unreadable"
    body = sse(*({**part, "user": "alice"} for part in SAYS)).replace(b'"created":1', b'"created":1e999')
    assert streamed(plan(), body) == "unreadable"


def test_obfuscation_is_dropped() -> None:
    """Padding against traffic analysis is of no use in a replay."""
    padded = entry(streamed(plan(), sse(*({**part, "obfuscation": "xxxx"} for part in SAYS))))
    assert padded == streamed(plan(), sse(*SAYS))
    padded = entry(
        streamed(plan("responses"), told(response()).replace(b'"delta":', b'"obfuscation":"x","delta":'))
    )
    assert b"obfuscation" not in padded.body


def test_json_is_stored_as_received() -> None:
    """To the byte: vendors' fields, blanks and the order of names survive."""
    body = json.dumps({**chat(), "citations": ["a"]}, indent=1).encode()
    assert body == entry(wire.record(plan(), 200, JSON, body, ended=True)).body
