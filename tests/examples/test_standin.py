"""The stand-in provider, as the real OpenAI client sees it."""

import inspect
import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import openai
import pytest
from examples.standin import Standin, start
from examples.standin.behaviour import Behaviour
from openai import OpenAI
from pydantic import BaseModel

MODEL = "gpt-4.1-mini"
QUESTION = {"role": "user", "content": f"Explain `shorten`.\n\n{inspect.getsource(textwrap.shorten)}"}
TOOL = {
    "type": "function",
    "function": {
        "name": "find_uses",
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "limit": {"type": "integer"}},
            "required": ["name", "limit"],
        },
    },
}


@pytest.fixture(scope="module")
def standin():
    with start(latency=(0.0, 0.01), error_rate=0.0) as running:
        yield running


@pytest.fixture(scope="module")
def client(standin: Standin):
    with OpenAI(base_url=standin.base_url, api_key="any", max_retries=0) as client:
        yield client


def test_an_answer_tells_what_is_in_the_source(client):
    """A function's name, docstring and parameters are found in the answer."""
    reply = client.chat.completions.create(model=MODEL, messages=[QUESTION])
    choice = reply.choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content.startswith("`shorten`.")
    assert "Collapse and truncate the given text" in choice.message.content
    assert "`text`, `width` and `**kwargs`" in choice.message.content
    assert reply.model == MODEL


def test_usage_follows_from_the_length_of_the_texts(client):
    """About four characters to a token, as providers say of English."""
    reply = client.chat.completions.create(model=MODEL, messages=[QUESTION])
    assert len(QUESTION["content"]) / 4 <= reply.usage.prompt_tokens <= len(QUESTION["content"]) / 4 + 4
    assert len(reply.choices[0].message.content) / 4 <= reply.usage.completion_tokens
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_stream_adds_up_to_the_whole_answer(client):
    """Streamed and whole, one request has one answer; without include_usage no chunk speaks of usage."""
    whole = client.chat.completions.create(model=MODEL, messages=[QUESTION])
    chunks = list(client.chat.completions.create(model=MODEL, messages=[QUESTION], stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert whole.choices[0].message.content == text
    assert [None] * (len(chunks) - 1) + ["stop"] == [chunk.choices[0].finish_reason for chunk in chunks]
    assert len(chunks) > 10
    assert {None} == {chunk.usage for chunk in chunks}
    assert {whole.id} == {chunk.id for chunk in chunks}


def test_a_stream_ends_with_the_usage_if_asked_for(client):
    """As at OpenAI: the last chunk has no choices and all the tokens."""
    whole = client.chat.completions.create(model=MODEL, messages=[QUESTION])
    *chunks, last = client.chat.completions.create(
        model=MODEL, messages=[QUESTION], stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks)


def test_a_tool_is_called_first_and_its_result_is_answered(client):
    """With tools, and no tool result at the end: a call that fits the schema, about what was quoted."""
    asked = client.chat.completions.create(model=MODEL, messages=[QUESTION], tools=[TOOL])
    assert asked.choices[0].finish_reason == "tool_calls"
    (call,) = asked.choices[0].message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert (call.function.name, arguments["name"]) == ("find_uses", "shorten")
    assert isinstance(arguments["limit"], int)
    result = {"role": "tool", "tool_call_id": call.id, "content": "textwrap.py:1: shorten\nb.py:2: shorten()"}
    history = [QUESTION, asked.choices[0].message.to_dict(), result]
    answered = client.chat.completions.create(model=MODEL, messages=history, tools=[TOOL])
    assert answered.choices[0].finish_reason == "stop"
    assert "2 lines, the first being: textwrap.py:1: shorten" in answered.choices[0].message.content


def test_a_tool_call_is_streamed_too(client):
    """The deltas of a stream hold the whole call."""
    chunks = client.chat.completions.create(model=MODEL, messages=[QUESTION], tools=[TOOL], stream=True)
    choices = [chunk.choices[0] for chunk in chunks]
    (call,) = [call for choice in choices for call in choice.delta.tool_calls or ()]
    assert json.loads(call.function.arguments)["name"] == "shorten"
    assert choices[-1].finish_reason == "tool_calls"


def test_a_tool_choice_of_none_is_obeyed(client):
    reply = client.chat.completions.create(model=MODEL, messages=[QUESTION], tools=[TOOL], tool_choice="none")
    assert reply.choices[0].message.tool_calls is None


class Inner(BaseModel):
    title: str
    good: bool


class Holder(BaseModel):
    page: Inner
    tags: list[str]


def test_structured_output_fits_its_schema(client):
    """The SDK's own parser accepts it, nested models included."""
    reply = client.chat.completions.parse(model=MODEL, messages=[QUESTION], response_format=Holder)
    assert reply.choices[0].message.parsed.page.title == "shorten"


def test_an_answer_is_cut_at_the_callers_limit(client):
    reply = client.chat.completions.create(model=MODEL, messages=[QUESTION], max_completion_tokens=5)
    assert (reply.choices[0].finish_reason, reply.usage.completion_tokens <= 6) == ("length", True)


def test_a_request_without_messages_is_refused_as_a_provider_would(client):
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model=MODEL, messages=[])


def test_models_are_listed(client):
    assert MODEL in [model.id for model in client.models.list()]


def test_it_counts_what_reaches_it(standin, client):
    """Calls, those that differ, streams and tokens; a refused body is no call."""
    before = standin.stats()
    question = [{"role": "user", "content": "a question that no other test asks"}]
    reply = client.chat.completions.create(model=MODEL, messages=question)
    list(client.chat.completions.create(model=MODEL, messages=question, stream=True))
    after = standin.stats()
    assert (
        after.calls - before.calls,
        after.distinct - before.distinct,
        after.streams - before.streams,
    ) == (2, 1, 1)
    assert 2 * reply.usage.prompt_tokens == after.prompt_tokens - before.prompt_tokens


def test_the_same_seed_gives_the_same_answers():
    """In another process too; another seed gives other words or other errors."""

    def answers(seed):
        with (
            start(seed=seed, latency=(0, 0), error_rate=0) as standin,
            OpenAI(base_url=standin.base_url, api_key="any") as client,
        ):
            return [
                client.chat.completions.create(
                    model=MODEL, messages=[QUESTION], temperature=temperature
                ).to_dict()
                for temperature in (0, 0.5, 1)
            ]

    first = answers(3)
    assert first == answers(3)
    assert first != answers(4)


def test_refusals_are_retried_by_the_client():
    """With this seed, one of three questions first meets a 429 and one a 500; the client asks again."""
    with (
        start(seed=113, latency=(0, 0), error_rate=0.5) as standin,
        OpenAI(base_url=standin.base_url, api_key="any", max_retries=2) as client,
    ):
        for number in range(3):
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": f"question {number}"}]
            )
        stats = standin.stats()
    assert (stats.calls, stats.errors) == (3, {"429": 1, "500": 1})


def test_a_429_says_when_to_come_back():
    with (
        start(latency=(0, 0), error_rate=1) as standin,
        OpenAI(base_url=standin.base_url, api_key="any", max_retries=0) as client,
    ):
        seen = []
        for number in range(8):
            with pytest.raises(openai.APIStatusError) as error:
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": f"question {number}"}]
                )
            seen.append((error.value.status_code, error.value.response.headers.get("retry-after")))
        assert {(429, "1"), (500, None)} == set(seen)
        assert standin.stats().calls == 0


def test_latency_is_drawn_from_the_given_range():
    """Pure: the same attempt always takes the same time."""
    behaviour = Behaviour(seed=1, latency=(0.2, 0.8))
    drawn = [behaviour.seconds(behaviour.dice(str(number), 1)) for number in range(1000)]
    assert drawn == [behaviour.seconds(behaviour.dice(str(number), 1)) for number in range(1000)]
    assert 0.2 <= min(drawn) < 0.25
    assert 0.7 < max(drawn) <= 0.8


def test_a_call_takes_its_latency_streamed_or_not():
    with (
        start(latency=(0.2, 0.2), error_rate=0) as standin,
        OpenAI(base_url=standin.base_url, api_key="any") as client,
    ):
        client.models.list()  # connects
        for stream in (False, True):
            began = time.perf_counter()
            reply = client.chat.completions.create(model=MODEL, messages=[QUESTION], stream=stream)
            if stream:
                list(reply)
            assert 0.18 < time.perf_counter() - began < 5


def test_it_ends_with_the_process_that_started_it():
    """Its input closes, however the parent ends: nothing is left behind."""
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.standin", "--until-stdin-closes"],
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.stdin.close()
        assert process.wait(timeout=10) == 0
