"""The example of a chain, run as a reader would."""

import os
import subprocess
import sys
from pathlib import Path

from examples.standin import start

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, **environment):
    command = [sys.executable, "-m", "examples.langchain_chain", *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return subprocess.run(
        command, env=inherited | environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_a_chain_asks_the_model_once(url):
    """Seven calls, two questions, two calls of the model."""
    done = run("--url", url)
    assert done.returncode == 0, done.stderr
    first, again, *rest = done.stdout.splitlines()
    assert first.partition(" ms ")[2] == again.partition(" ms ")[2] != ""
    assert "five at once: 1 answer" in rest
    assert "the model was asked 2 times" in rest


def test_the_real_model_is_asked_if_told_so(url):
    """Here the stand-in again, by OPENAI_BASE_URL; in the next process all is cached."""
    with start(latency=(0.0, 0.01), error_rate=0.0) as standin:
        for _ in range(2):
            done = run("--live", "--url", url, OPENAI_BASE_URL=standin.base_url, OPENAI_API_KEY="never-shown")
            assert done.returncode == 0, done.stderr
            assert "never-shown" not in done.stdout + done.stderr
        assert standin.stats().calls == 2


def test_without_a_key_it_says_what_is_missing():
    done = run("--live")
    assert (done.returncode, done.stdout) == (2, "")
    assert "OPENAI_API_KEY" in done.stderr
