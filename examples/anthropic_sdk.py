"""
Anthropic's SDK with the same cache below it: messages and streams share one entry.

    python -m examples.anthropic_sdk

The model is the stand-in on this machine; with a provider's address and key it is the same line.
"""

import sys
from collections.abc import Sequence

from anthropic import Anthropic
from anthropic.types import MessageParam

import askonce_openai
from askonce import Cache
from examples.standin import start

MODEL = "claude-sonnet-4-6"
QUESTION: list[MessageParam] = [{"role": "user", "content": "What does `bisect.insort` do?"}]


def show(client: Anthropic) -> None:
    """Ask twice, then once more as a stream."""
    for _ in range(2):
        raw = client.messages.with_raw_response.create(model=MODEL, max_tokens=200, messages=QUESTION)
        said = "".join(block.text for block in raw.parse().content if block.type == "text")
        print(f"answer: {raw.headers['cache-status'].partition('; ttl')[0]}: {said.splitlines()[-1]}")
    with client.messages.stream(model=MODEL, max_tokens=200, messages=QUESTION) as stream:
        print(f"stream: {len(''.join(stream.text_stream))} characters")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; ``--url`` names a Redis to use instead of ASKONCE_URL or an embedded one."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    url = given[given.index("--url") + 1] if "--url" in given else None
    with start() as standin, Cache(url, namespace="examples") as cache:
        client = Anthropic(api_key="any", base_url=standin.base_url.removesuffix("/v1"), max_retries=6)
        show(askonce_openai.wrap(client, cache))  # this is all
        client.close()
        print(f"the model was asked {standin.stats().calls} times")
    return 0


if __name__ == "__main__":
    sys.exit(main())
