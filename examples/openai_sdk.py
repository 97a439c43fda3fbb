"""
The OpenAI SDK with a cache below it: answers, streams, structured output, embeddings, by threads and by asyncio.

    python -m examples.openai_sdk           the model is a stand-in on this machine
    python -m examples.openai_sdk --live    the model is OpenAI's, with OPENAI_API_KEY set

The cache is put in by one line.  Everything else is the SDK as ever.
"""

import asyncio
import sys
from typing import Any

from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

import askonce_openai
from askonce import Cache, control
from examples.provider import run

MODEL = "gpt-4.1-mini"
QUESTION: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What does `heapq.merge` do, in one sentence?"}
]


class Page(BaseModel):
    """What structured output is parsed into."""

    title: str
    tags: list[str]


def whole(client: OpenAI) -> None:
    """The same question twice: the second answer says where it came from."""
    for _ in range(2):
        raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION)
        said = raw.parse().choices[0].message.content or ""
        print(f"answer: {raw.headers['cache-status'].partition('; ttl')[0]}: {said.splitlines()[-1]}")


def streamed(client: OpenAI) -> None:
    """A stream of what was asked as a whole is made of the stored answer, and of what was streamed replayed."""
    for question in (QUESTION, [*QUESTION, *QUESTION]):
        pieces = []
        for chunk in client.chat.completions.create(model=MODEL, messages=question, stream=True):
            pieces += [choice.delta.content or "" for choice in chunk.choices]
        print(f"stream: {len(''.join(pieces))} characters")


def structured(client: OpenAI) -> None:
    """The SDK's parser reads a stored answer as it reads a fresh one."""
    pages = [
        client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Page)
        .choices[0]
        .message.parsed
        for _ in range(2)
    ]
    print(f"structured: {pages[0]}, the same again: {pages[0] == pages[1]}")


def embedded(client: OpenAI) -> None:
    """One entry for each text: a batch asks for what is missing."""
    model = "text-embedding-3-small"
    for texts in (["heap", "queue"], ["queue", "stack"], ["heap", "stack"]):
        raw = client.embeddings.with_raw_response.create(model=model, input=texts)
        print(f"embeddings: {raw.headers['cache-status']}")


def controlled(client: OpenAI) -> None:
    """Single calls say what they want: by a header, or in a block around any framework's code."""
    status = []
    for headers in ({"cache-control": "no-cache"}, {"x-askonce-scope": "tenant=acme"}):
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=QUESTION, extra_headers=headers
        )
        status.append(raw.headers["cache-status"])
    with control(write=False):
        client.responses.create(model=MODEL, input="not stored")
    print(f"control: {status}")


async def by_asyncio(client: AsyncOpenAI) -> None:
    """Five tasks ask at once: one reaches the model, and its answer serves threads too."""
    question = "What does `asyncio.gather` do?"
    answers = await asyncio.gather(*[client.responses.create(model=MODEL, input=question) for _ in range(5)])
    print(f"asyncio: five at once, {len({answer.id for answer in answers})} answer")
    await client.close()


def show(client: dict[str, Any], url: str | None) -> None:
    """Run the sections."""
    with Cache(url, namespace="examples") as cache:
        sync = askonce_openai.wrap(OpenAI(**client), cache)  # this is all
        for section in (whole, streamed, structured, embedded, controlled):
            section(sync)
        asyncio.run(by_asyncio(askonce_openai.wrap(AsyncOpenAI(**client), cache)))
        sync.close()


if __name__ == "__main__":
    sys.exit(run("openai_sdk", "The OpenAI SDK with a cache.", show))
