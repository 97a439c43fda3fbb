"""A process that asks through the SDK, as a script: ``python -m tests.integrations.openai.processes URL PROVIDER ...``."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


class Asker:
    """One process; it writes a line for each thing that happens to it."""

    def __init__(self, url: str, provider: str, *words: str) -> None:
        command = [sys.executable, "-m", "tests.integrations.openai.processes", url, provider, *words]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def line(self) -> Any:
        """Return the next thing that happens there."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return json.loads(line)

    def kill(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.communicate()


def say(*what: Any) -> None:
    print(json.dumps(what), flush=True)


def main(url: str, provider: str, colour: str, form: str, model: str, lease: str) -> None:
    """Ask once, in this colour and form, and say what comes."""
    import openai

    import askonce_openai
    from askonce import Cache, Policy

    cache = Cache(url, namespace="processes", deadline=5.0, policy=Policy(lease=float(lease)))
    stream = form == "stream"
    words: Any = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    settings: Any = {"api_key": "k", "base_url": provider + "/v1", "max_retries": 0}

    def ask() -> None:
        client = askonce_openai.wrap(openai.OpenAI(**settings), cache)
        raw = client.chat.completions.with_raw_response.create(**words)
        got = raw.parse()
        if stream:
            said = ""
            for chunk in got:
                if not said:
                    say("first", raw.headers["cache-status"])
                said += (chunk.choices[0].delta.content or "") or "|"
        else:
            said = got.choices[0].message.content
        say("whole", said, raw.headers["cache-status"])

    async def aask() -> None:
        client = askonce_openai.wrap(openai.AsyncOpenAI(**settings), cache)
        raw = await client.chat.completions.with_raw_response.create(**words)
        got = raw.parse()
        if stream:
            said = ""
            async for chunk in got:
                if not said:
                    say("first", raw.headers["cache-status"])
                said += (chunk.choices[0].delta.content or "") or "|"
        else:
            said = got.choices[0].message.content
        say("whole", said, raw.headers["cache-status"])
        await client.close()

    say("ready")
    try:
        if colour == "asyncio":
            asyncio.run(aask())
        else:
            ask()
    except openai.APIError as error:
        say("error", type(error).__name__)


if __name__ == "__main__":
    main(*sys.argv[1:])
