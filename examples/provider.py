"""Whom an example asks: a stand-in on this machine, or, with ``--live``, OpenAI."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from examples.standin import start


def run(
    example: str,
    about: str,
    show: Callable[[dict[str, Any], str | None], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """
    Call ``show(client, url)`` and return an exit code; 2 if there is no key to ask a provider with.

    *client* are arguments for a client of OpenAI's, or of a framework's; *url* is a Redis, or None.
    """
    parser = argparse.ArgumentParser(prog=f"python -m examples.{example}", description=about)
    parser.add_argument("--live", action="store_true", help="ask OpenAI instead of the stand-in")
    parser.add_argument("--url", help="a Redis to use instead of ASKONCE_URL or an embedded one")
    options = parser.parse_args(arguments)
    if options.live and not has_key():
        return 2
    if options.live:
        show({}, options.url)
        return 0
    with start() as standin:
        show(standin_client(standin.base_url), options.url)
        print(f"the model was asked {standin.stats().calls} times")
    return 0


def has_key() -> bool:
    """Return whether there is a key; say what is missing if not."""
    if os.environ.get("OPENAI_API_KEY"):
        return True
    print("--live asks the real model and needs OPENAI_API_KEY in the environment.", file=sys.stderr)
    return False


def standin_client(base_url: str) -> dict[str, Any]:
    """Return the arguments by which a client asks the stand-in, which fails now and then."""
    return {"base_url": base_url, "api_key": "any", "max_retries": 6}
