"""The stand-in's other APIs, as the real clients see them."""

import openai
import pytest
from examples.standin import start
from openai import OpenAI
from pydantic import BaseModel

MODEL = "gpt-4.1-mini"


@pytest.fixture(scope="module")
def standin():
    with start(latency=(0.0, 0.01), error_rate=0.0) as running:
        yield running


@pytest.fixture(scope="module")
def client(standin):
    with OpenAI(base_url=standin.base_url, api_key="any", max_retries=0) as client:
        yield client


def test_a_response_whole_and_streamed(client):
    """One request has one answer, in both forms; the SDK's stream helper accepts it."""
    words = {"model": MODEL, "input": "Why `heap`?", "metadata": {"page": "7"}}
    whole = client.responses.create(**words)
    assert whole.status == "completed"
    assert whole.metadata == {"page": "7"}
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    events = list(client.responses.create(**words, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    with client.responses.stream(**words) as stream:
        assert stream.get_final_response().output_text == whole.output_text


class Page(BaseModel):
    title: str


def test_structured_output_of_the_responses_api(client):
    answer = client.responses.parse(model=MODEL, input="Explain `shorten`.", text_format=Page)
    assert answer.output_parsed == Page(title="shorten")


def test_embeddings(client):
    """Equal texts have equal vectors, whatever the batch and the format."""
    packed = client.embeddings.create(model="e", input=["a", "b", "a"])
    plain = client.embeddings.create(model="e", input="a", encoding_format="float", dimensions=64)
    vectors = [item.embedding for item in packed.data]
    assert vectors[0] == vectors[2] != vectors[1]
    assert plain.data[0].embedding == pytest.approx(vectors[0], abs=1e-6)
    assert packed.usage.total_tokens == 3


@pytest.mark.parametrize("path", ["/responses", "/embeddings", "/messages"])
def test_a_request_that_asks_nothing_is_refused(client, path):
    with pytest.raises(openai.BadRequestError):
        client.post(path, cast_to=object, body={"model": MODEL})


def test_messages_whole_and_streamed(standin):
    """As Anthropic's own client reads them."""
    anthropic = pytest.importorskip("anthropic")
    base_url = standin.base_url.removesuffix("/v1")
    words = {
        "model": "a-model",
        "max_tokens": 200,
        "messages": [{"role": "user", "content": "Why `heap`?"}],
    }
    with anthropic.Anthropic(api_key="any", base_url=base_url, max_retries=0) as client:
        whole = client.messages.create(**words)
        assert whole.stop_reason == "end_turn"
        with client.messages.stream(**words) as stream:
            streamed = stream.get_final_message()
        assert (streamed.id, streamed.stop_reason, streamed.usage) == (
            whole.id,
            whole.stop_reason,
            whole.usage,
        )
        assert streamed.content[0].text == whole.content[0].text
        cut = client.messages.create(**{**words, "max_tokens": 2})
        assert cut.stop_reason == "max_tokens"
