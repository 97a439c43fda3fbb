"""The real SDKs read what is made of an entry: a stream of JSON, JSON of a stream."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import openai
import pytest
from tests.integrations.openai.wired import (
    CALL,
    CUSTOM,
    FUNCTION,
    MESSAGE,
    SAYS,
    TELLS_USAGE,
    THOUGHT,
    TOOL_USE,
    USAGE,
    WITH_USAGE,
    blocks,
    chat,
    entry,
    message,
    plan,
    recorded,
    response,
    sse,
    streamed,
    text,
    told,
)

from askonce_openai import wire

BARE = {"stream": True}
HITS = [wire.Hits(), wire.Hits(replay="coalesced", fresh_ids=True, usage_on_hit="zero")]
ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def client(
    lib: ModuleType, asked: wire.Plan, by: wire.Entry, hits: wire.Hits, sdk: Any = openai.OpenAI
) -> Any:
    """Return an SDK client that is given what *by* gives to *asked*, whatever it asks."""
    rendered = wire.render(asked, by, hits, token="t")
    assert rendered is not None

    def canned(_: Any) -> Any:
        return lib.Response(200, headers=dict(rendered.headers), content=rendered.body)

    return sdk(api_key="k", http_client=lib.Client(transport=lib.MockTransport(canned)), max_retries=0)


@pytest.mark.parametrize("hits", HITS, ids=["as received", "all options"])
@pytest.mark.parametrize("stored", ["json", "stream"])
def test_chat(lib: ModuleType, hits: wire.Hits, stored: str) -> None:
    """By ``create(stream=True)``, by the ``stream`` helper, and as JSON."""
    by = entry(
        recorded(plan(), chat())
        if stored == "json"
        else streamed(plan("chat", WITH_USAGE), sse(*SAYS, TELLS_USAGE))
    )
    usage = 0 if hits.usage_on_hit == "zero" else USAGE["total_tokens"]
    sdk = client(lib, plan("chat", WITH_USAGE), by, hits)
    chunks = list(sdk.chat.completions.create(**ASKED, **WITH_USAGE))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello"
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [usage]
    assert len({chunk.id for chunk in chunks}) == 1
    with sdk.chat.completions.stream(**ASKED) as stream:
        final = stream.get_final_completion()
    sdk = client(lib, plan(), by, hits)
    for answer in (final, sdk.chat.completions.create(**ASKED)):
        (choice,) = answer.choices
        assert (choice.message.content, choice.finish_reason) == ("hello", "stop")
        assert (answer.model, answer.usage.total_tokens) == ("m-2025", usage)
        assert (answer.id == "chatcmpl-1") is not hits.fresh_ids


def test_chat_with_calls(lib: ModuleType) -> None:
    """Several calls of several choices, with log probabilities."""
    calls = [CALL, {**CALL, "id": "call_2"}]
    answer = chat("tool_calls", None, tool_calls=calls)
    answer["choices"].append({**chat()["choices"][0], "index": 1})
    answer["choices"][1]["logprobs"] = {
        "content": [{"token": "hello", "logprob": -1.0, "bytes": None, "top_logprobs": []}],
        "refusal": None,
    }
    asked = plan("chat", {"n": 2, **BARE})
    sdk = client(lib, asked, entry(recorded(asked, answer)), wire.Hits())
    with sdk.chat.completions.stream(**ASKED, n=2) as stream:
        first, second = stream.get_final_completion().choices
    assert [(call.id, call.function.name, call.function.arguments) for call in first.message.tool_calls] == [
        (call["id"], "f", '{"a": 1}') for call in calls
    ]
    assert (second.message.content, second.logprobs.content[0].token) == ("hello", "hello")


@pytest.mark.parametrize("form", [{}, BARE, WITH_USAGE])
def test_completions(lib: ModuleType, form: dict[str, Any]) -> None:
    """The form before chat."""
    asked = plan("completions", form)
    sdk = client(lib, asked, entry(recorded(plan("completions"), text())), wire.Hits())
    found = sdk.completions.create(model="m", prompt="p", **form)
    answers = list(found) if form else [found]
    assert "".join(choice.text for answer in answers for choice in answer.choices) == "hello"
    assert [answer.usage.total_tokens for answer in answers if answer.usage] == ([] if form == BARE else [3])


@pytest.mark.parametrize("hits", HITS, ids=["as received", "all options"])
@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({}, response("completed", None, THOUGHT, MESSAGE, FUNCTION, CUSTOM)),
        ({"max_output_tokens": 5}, response("incomplete", "max_output_tokens")),
    ],
    ids=["completed", "incomplete"],
)
def test_responses(lib: ModuleType, hits: wire.Hits, body: dict[str, Any], answer: dict[str, Any]) -> None:
    """The helper puts the made events together, and compares them with the last one."""
    asked = plan("responses", {**body, **BARE})
    sdk = client(lib, asked, entry(recorded(asked, answer)), hits)
    with sdk.responses.stream(model="m", input="q") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response() if answer["status"] == "completed" else None
    assert kinds[0] == "response.created"
    assert kinds[-1] == f"response.{answer['status']}"
    events = list(sdk.responses.create(model="m", input="q", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for found in [events[-1].response, *([final] if final else [])]:
        assert found.output_text == "hello"
        assert [item.type for item in found.output] == [item["type"] for item in answer["output"]]
        assert (found.id == "resp_1") is not hits.fresh_ids
        assert found.usage.total_tokens == (0 if hits.usage_on_hit == "zero" else 3)


@pytest.mark.parametrize("answer", [response("completed", None, THOUGHT, MESSAGE, FUNCTION, CUSTOM)])
def test_made_events_of_responses_have_the_fields_of_their_type(answer: dict[str, Any]) -> None:
    """The SDK itself does not look; others that read its events do."""
    types = pytest.importorskip("openai.types.responses")
    pydantic = pytest.importorskip("pydantic")
    known = pydantic.TypeAdapter(types.ResponseStreamEvent)
    asked = plan("responses", BARE)
    rendered = wire.render(asked, entry(recorded(asked, answer)))
    assert rendered is not None
    lines = [
        line.removeprefix(b"data: ") for line in rendered.body.splitlines() if line.startswith(b"data: ")
    ]
    kinds = [known.validate_json(line).type for line in lines]
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 4


def test_a_stream_of_responses_as_json(lib: ModuleType) -> None:
    """The answer of its last event."""
    by = entry(streamed(plan("responses", BARE), told(response("completed", None, THOUGHT, MESSAGE))))
    sdk = client(lib, plan("responses"), by, wire.Hits())
    found = sdk.responses.create(model="m", input="q")
    assert (found.output_text, found.usage.total_tokens) == ("hello", 3)


THINKS = {"type": "thinking", "thinking": "hm", "signature": "s"}
SAYS_IT = {"type": "text", "text": "hello"}


@pytest.mark.parametrize("hits", HITS, ids=["as received", "all options"])
@pytest.mark.parametrize("stored", ["json", "stream"])
@pytest.mark.parametrize("form", [{}, BARE])
def test_messages(lib: ModuleType, hits: wire.Hits, stored: str, form: dict[str, Any]) -> None:
    """Anthropic's helper puts the blocks together."""
    anthropic = pytest.importorskip("anthropic")
    httpx2 = pytest.importorskip("httpx2")  # anthropic 2 takes no other client
    answer = message("tool_use", SAYS_IT, TOOL_USE)
    if stored == "json":
        answer["content"].insert(0, THINKS)
    by = entry(
        recorded(plan("messages"), answer) if stored == "json" else streamed(plan("messages"), blocks(answer))
    )
    sdk = client(httpx2, plan("messages", form), by, hits, anthropic.Anthropic)
    if form:
        with sdk.messages.stream(**ASKED, max_tokens=9) as stream:
            found = stream.get_final_message()
    else:
        found = sdk.messages.create(**ASKED, max_tokens=9)
    *thoughts, said, used = found.content
    assert [(block.thinking, block.signature) for block in thoughts] == (
        [("hm", "s")] if stored == "json" else []
    )
    assert (said.text, used.name, used.input, found.stop_reason) == (
        "hello",
        "f",
        TOOL_USE["input"],
        "tool_use",
    )
    assert (used.id == "toolu_1", found.id == "msg_1") == (not hits.fresh_ids, not hits.fresh_ids)
    assert found.usage.output_tokens == (0 if hits.usage_on_hit == "zero" else 3)
