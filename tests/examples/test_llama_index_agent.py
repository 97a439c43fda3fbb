"""The example of an agent of LlamaIndex, run as a reader would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llama_index.llms.openai")

from examples.standin import start

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, **environment):
    command = [sys.executable, "-m", "examples.llama_index_agent", *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return subprocess.run(
        command, env=inherited | environment, cwd=ROOT, capture_output=True, text=True, timeout=240
    )


def test_each_step_asks_the_model_once(url):
    """Three questions of two steps each, one asked twice; the tool runs each time."""
    done = run("--url", url)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition("looked up ")[2] for line in lines[:9:3]] == [
        "heapq.heappush)",
        "bisect.insort)",
        "heapq.heappush)",
    ]
    new, served = "  steps: 0 from the cache, 2 computed", "  steps: 2 from the cache, 0 computed"
    assert lines[1:9:3] == [new, new, served]
    assert lines[8] == lines[2] != ""
    assert lines[9] == "the model was asked 4 times"


def test_the_real_model_is_asked_if_told_so(url):
    """Here the stand-in again, by OPENAI_API_BASE; in the next process all is cached."""
    with start(latency=(0.0, 0.01), error_rate=0.0) as standin:
        for _ in range(2):
            done = run("--live", "--url", url, OPENAI_API_BASE=standin.base_url, OPENAI_API_KEY="never-shown")
            assert done.returncode == 0, done.stderr
            assert "never-shown" not in done.stdout + done.stderr
        assert standin.stats().calls == 4
    assert done.stdout.count("steps: 2 from the cache, 0 computed") == 3


def test_without_a_key_it_says_what_is_missing():
    done = run("--live")
    assert (done.returncode, done.stdout) == (2, "")
    assert "OPENAI_API_KEY" in done.stderr
