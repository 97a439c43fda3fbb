"""The example of an agent, run as a reader would."""

import os
import subprocess
import sys
from pathlib import Path

from examples.standin import start

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, **environment):
    command = [sys.executable, "-m", "examples.langchain_agent", *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return subprocess.run(
        command, env=inherited | environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_only_new_questions_reach_model_and_tool(url):
    """Of four questions one was asked before: it is served whole; another needs the same look-up, which is not made."""
    done = run("--url", url)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    sources = [line.split()[2].rstrip(":") for line in printed if line.startswith("  from the ")]
    new, served = ["model", "tool", "model"], ["cache"] * 3
    assert sources == [*new, *new, *served, "model", "cache", "model"]
    assert printed[-1] == "the model was asked 6 times"


def test_a_stream_is_served_too(url):
    """What is streamed in the end is the answer to the first question."""
    printed = run("--url", url).stdout.splitlines()
    streamed = next(line for line in printed if line.startswith("streamed: "))
    assert streamed.removeprefix("streamed: ") == printed[3].partition("model: ")[2] != ""


def test_another_process_is_served_what_the_first_one_asked(url):
    """The second run asks the model nothing; a provider is asked if told so (here the stand-in, by its address)."""
    with start(latency=(0.0, 0.01), error_rate=0.0) as standin:
        for _ in range(2):
            done = run("--live", "--url", url, OPENAI_BASE_URL=standin.base_url, OPENAI_API_KEY="never-shown")
            assert done.returncode == 0, done.stderr
            assert "never-shown" not in done.stdout + done.stderr
        assert standin.stats().calls == 6
    assert "from the model" not in done.stdout


def test_without_a_key_it_says_what_is_missing():
    done = run("--live")
    assert (done.returncode, done.stdout) == (2, "")
    assert "OPENAI_API_KEY" in done.stderr
