"""What the SDK makes of a hit: typed answers, both forms of one entry, headers, what is never stored."""

from __future__ import annotations

import contextlib
import json

import openai
import pytest
from tests.integrations.openai.kit import (
    FLAT_TOOLS,
    MESSAGES,
    TOOLS,
    ask,
    ask_raw,
    atext,
    entries,
    flights,
    status_of,
    text,
)

USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def test_a_hit_is_a_typed_answer(client):
    """Type, usage and request id are those of the answer as it was received."""
    made = client()
    first, second = ask(made), ask(made)
    assert first == second
    assert type(second).__name__ == "ChatCompletion"
    assert second.usage.total_tokens == 13
    assert second._request_id == first._request_id != None  # noqa: E711


def test_a_hit_has_no_cookie_and_no_rate_limit(client):
    """They were another caller's."""
    made = client()
    ask(made, model="m-ratelim")
    raw = ask_raw(made, model="m-ratelim")
    assert status_of(raw).startswith("askonce; hit")
    assert raw.request_id
    foreign = {"set-cookie", "openai-organization", "x-ratelimit-remaining-requests"}
    assert not foreign & set(raw.headers)


def test_the_first_caller_gets_all_headers(client):
    raw = ask_raw(client(), model="m-ratelim")
    assert raw.headers["x-ratelimit-remaining-requests"] == "7"
    assert "set-cookie" in raw.headers


@pytest.mark.parametrize("stream", [False, True])
def test_elapsed_is_known(client, stream):
    """It raises for a response that its client never closes."""
    made = client()
    for _ in range(2):
        raw = ask_raw(made, stream=stream)
        if stream:
            list(raw.parse())
        assert raw.http_response.elapsed.total_seconds() < 60


def test_both_forms_of_a_raw_response(client, provider):
    """One entry serves JSON and stream, as bytes and as lines."""
    made, seen = client(), []
    for _ in range(2):
        with made.chat.completions.with_streaming_response.create(model="m", messages=MESSAGES) as r:
            seen.append(b"".join(r.iter_bytes()))
        with made.chat.completions.with_streaming_response.create(
            model="m", messages=MESSAGES, stream=True
        ) as r:
            seen.append("\n".join(r.iter_lines()))
    assert json.loads(seen[0]) == json.loads(seen[2])
    assert seen[1] == seen[3]
    assert seen[1].rstrip().endswith("[DONE]")
    assert provider.calls["chat"] == 1


def test_forms_of_the_responses_api(client, provider):
    """JSON serves a stream, a stream serves JSON and the SDK's stream manager."""
    made = client()
    first, second = (made.responses.create(model="m", input="q") for _ in range(2))
    assert first == second
    events = list(made.responses.create(model="m", input="q", stream=True))
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == first.output_text
    events = list(made.responses.create(model="m", input="q2", stream=True))
    whole = made.responses.create(model="m", input="q2")
    assert whole.output_text == events[-1].response.output_text
    with made.responses.stream(model="m", input="q2") as stream:
        assert stream.get_final_response().output_text == whole.output_text
    assert provider.calls["responses"] == 2


def test_tool_calls_both_ways(client, provider):
    made = client()
    whole = ask(made, model="m-tools", tools=TOOLS)
    with made.chat.completions.stream(model="m-tools", messages=MESSAGES, tools=TOOLS) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert call.function.arguments == whole.choices[0].message.tool_calls[0].function.arguments
    list(ask(made, "other", model="m-tools", tools=TOOLS, **USAGE))
    joined = ask(made, "other", model="m-tools", tools=TOOLS)
    assert json.loads(joined.choices[0].message.tool_calls[0].function.arguments)["city"].startswith("c")
    assert joined.usage.total_tokens == 13
    assert provider.calls["chat"] == 2


def test_a_tool_call_of_the_responses_api_becomes_a_stream(client, provider):
    made = client()
    whole = made.responses.create(model="m-tools", input="q", tools=FLAT_TOOLS)
    with made.responses.stream(model="m-tools", input="q", tools=FLAT_TOOLS) as stream:
        got = stream.get_final_response()
    assert got.output[0].arguments == whole.output[0].arguments
    assert provider.calls["responses"] == 1


def test_three_choices_as_a_stream(client, provider):
    made = client()
    ask(made, n=3)
    assert {chunk.choices[0].index for chunk in ask(made, n=3, stream=True)} == {0, 1, 2}
    assert provider.calls["chat"] == 1


def test_a_stream_without_usage_is_replaced_by_an_answer_with_it(client, provider, cache):
    """A typed usage would be None: it is a miss for JSON, whose answer then serves all."""
    made = client()
    list(ask(made, stream=True))
    assert ask(made).usage.total_tokens == 13
    assert provider.calls["chat"] == 2
    assert list(ask(made, **USAGE))[-1].usage.total_tokens == 13
    list(ask(made, stream=True))
    assert (provider.calls["chat"], entries(cache)) == (2, 1)


def test_a_stream_with_usage_after_one_without(client, provider, cache):
    """The same, streamed: the entry is replaced."""
    made = client()
    list(ask(made, stream=True))
    assert list(ask(made, **USAGE))[-1].usage.total_tokens == 13
    assert [chunk.usage for chunk in ask(made, stream=True) if chunk.usage] == []
    assert ask(made).usage.total_tokens == 13
    assert (provider.calls["chat"], entries(cache)) == (2, 1)


def test_legacy_completions_both_ways(client, provider):
    made = client()
    whole = made.completions.create(model="m", prompt="p")
    chunks = made.completions.create(model="m", prompt="p", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    list(made.completions.create(model="m", prompt="p2", **USAGE))
    assert made.completions.create(model="m", prompt="p2").usage.total_tokens == 13
    assert provider.calls["completions"] == 2


def test_nothing_of_another_caller_is_echoed(client, provider, raw_values):
    """metadata and the like are those of each request, in every event; none is stored."""
    made = client()
    foreign = {
        "metadata": {"tenant": "Alpha"},
        "user": "alice",
        "safety_identifier": "sid1",
        "prompt_cache_key": "pck1",
    }
    made.responses.create(model="m", input="q", **foreign)
    whole = made.responses.create(model="m", input="q", metadata={"tenant": "B"})
    events = list(made.responses.create(model="m", input="q", stream=True, metadata={"tenant": "C"}))
    assert whole.metadata == {"tenant": "B"}
    assert whole.user is None
    assert all(e.response.metadata == {"tenant": "C"} for e in events if hasattr(e, "response"))
    assert provider.calls["responses"] == 1
    stored = raw_values()
    assert not any(word in stored for word in (b"Alpha", b"alice", b"sid1", b"pck1"))


@pytest.mark.parametrize("model", ["m-filter", "m-midway", "m-cut", "m-empty", "m-refuse", "m-length"])
def test_streams_that_are_no_answer_are_not_stored(client, cache, lib, model):
    """Whatever the SDK makes of them; and no flight is left."""
    made = client(max_retries=0)
    for _ in range(2):
        with contextlib.suppress(openai.APIError, lib.TransportError):
            list(ask(made, model=model, stream=True))
    assert (flights(made), entries(cache)) == (0, 0)


@pytest.mark.parametrize("model", ["m-filter", "m-empty", "m-refuse", "m-length"])
def test_answers_that_are_none_are_not_stored(client, cache, model):
    made = client()
    ask(made, model=model)
    made.responses.create(model=model, input="q")
    list(made.responses.create(model=model, input="q", stream=True))
    assert entries(cache) == 0
    assert cache.stats().rejected == 3


async def test_a_cut_stream_surfaces_as_it_does_without_a_cache(client, lib, cache):
    """As the SDK's connection error, or the library's own in openai 2."""
    made = client(openai.AsyncOpenAI, max_retries=0)
    with pytest.raises((openai.APIConnectionError, lib.RemoteProtocolError)):
        await atext(await ask(made, model="m-cut", stream=True))
    assert (flights(made), entries(cache)) == (0, 0)
    await made.close()


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_cut_short_is_stored_if_the_caller_set_the_limit(client, provider, stream):
    made = client()
    for limit, count in (({}, 2), ({"max_tokens": 5}, 3)):
        for _ in range(2):
            got = ask(made, model="m-length", stream=stream, **limit)
            if stream:
                list(got)
        assert provider.calls["chat"] == count


@pytest.mark.parametrize("stream", [False, True])
def test_compressed_answers(client, provider, stream):
    """They are stored without their encoding."""
    made = client()
    got = [ask_raw(made, model="m-gzip", stream=stream) for _ in range(1)]
    first = list(got[0].parse()) if stream else got[0].parse()
    if stream:
        got[0].http_response.close()
    assert flights(made) == 0  # what is left is concluded
    raw = ask_raw(made, model="m-gzip", stream=stream)
    assert (list(raw.parse()) if stream else raw.parse()) == first
    assert status_of(raw).startswith("askonce; hit")
    assert "content-encoding" not in raw.headers
    assert provider.calls["chat"] == 1


@pytest.mark.parametrize("model", ["m-nodone", "m-obf"])
def test_odd_streams_are_stored(client, provider, model):
    """Without [DONE], and padded against traffic analysis."""
    made = client()
    first, second = (text(ask(made, model=model, stream=True)) for _ in range(2))
    assert first == second
    assert provider.calls["chat"] == 1


def test_a_server_that_ignores_include_usage(client, provider):
    """It was asked and told none: that is the answer."""
    made = client()
    for _ in range(2):
        list(ask(made, model="m-nousage", **USAGE))
    assert provider.calls["chat"] == 1


@pytest.mark.parametrize(
    "body",
    [
        {"previous_response_id": "r"},
        {"background": True},
        {"store": True},
        {"conversation": "c"},
        {"tools": [{"type": "web_search"}]},
        {"prompt": {"id": "p"}},
    ],
    ids=lambda body: next(iter(body)),
)
def test_what_does_not_depend_on_the_request_alone_passes(client, provider, cache, body):
    made = client()
    for _ in range(2):
        made.responses.create(model="m", input="q", **body)
    assert (provider.calls["responses"], entries(cache)) == (2, 0)
    assert cache.stats().bypassed == 2


def test_structured_output_in_another_order_is_another_question(client, provider):
    """The order of a schema reaches the model."""
    made = client()
    for names in (("a", "b"), ("b", "a"), ("a", "b")):
        schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}}
        ask(made, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert provider.calls["chat"] == 2


async def test_async_forms(client, provider):
    """Streams replay, feed the SDK's stream helper, and serve JSON and back."""
    made = client(openai.AsyncOpenAI)
    first, second = [[e.model_dump() async for e in await ask(made, stream=True)] for _ in range(2)]
    assert first == second
    async with made.chat.completions.stream(model="m", messages=MESSAGES) as stream:
        assert (await stream.get_final_completion()).choices[0].message.content
    whole = await made.responses.create(model="m", input="q")
    events = [e async for e in await made.responses.create(model="m", input="q", stream=True)]
    assert events[-1].response.output_text == whole.output_text
    assert (provider.calls["chat"], provider.calls["responses"], flights(made)) == (1, 1, 0)
    await made.close()
