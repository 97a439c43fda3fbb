"""Over HTTP, with the stand-in for a provider: many processes ask one cold question at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from examples.standin import start
from tests.conftest import every_server  # noqa: F401  a fixture

ROOT = Path(__file__).parents[3]
PROGRAM = """
import asyncio, sys
from langchain_openai import ChatOpenAI
from askonce_langchain import AskonceCache

url, base_url, way = sys.argv[1:]
cache = AskonceCache(url, deadline=2.0)
model = ChatOpenAI(model="gpt-4o-mini", base_url=base_url, api_key="any", cache=cache)

async def ask():
    question = "Explain `def f(a, b): return a + b` and name its edge cases."
    if way == "mixed":
        streams = [model.astream(question) for _ in range(4)]
        read = [asyncio.create_task(gather(stream)) for stream in streams]
        whole = [asyncio.create_task(model.ainvoke(question)) for _ in range(4)]
        return {*await asyncio.gather(*read), *[answer.text for answer in await asyncio.gather(*whole)]}
    if way == "stream":
        return {*await asyncio.gather(*[gather(model.astream(question)) for _ in range(8)])}
    return {answer.text for answer in await asyncio.gather(*[model.ainvoke(question) for _ in range(8)])}

async def gather(stream):
    return "".join([chunk.text async for chunk in stream])

print("ready", flush=True)
sys.stdin.readline()
print(len(said := asyncio.run(ask())), hash(min(said)), flush=True)
"""


@pytest.mark.parametrize("way", ["invoke", "stream", "mixed"])
def test_one_call(url: str, way: str) -> None:
    """Thirty-two tasks in four processes: one call, and all of them get its answer."""
    with start(latency=(0.3, 0.5), error_rate=0.0) as standin:
        command = [sys.executable, "-c", PROGRAM, url, standin.base_url, way]
        processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env={"PYTHONHASHSEED": "0", "PATH": "", "ASKONCE_URL": url},
            )
            for _ in range(4)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        said = {process.communicate(timeout=60)[0] for process in processes}
        assert len(said) == 1
        assert said.pop().split()[0] == "1"
        assert standin.stats().calls == 1
