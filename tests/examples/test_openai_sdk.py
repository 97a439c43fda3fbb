"""The examples of the SDKs, run as a reader would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from examples.standin import start

ROOT = Path(__file__).resolve().parents[2]


def run(example, *arguments, **environment):
    command = [sys.executable, "-m", f"examples.{example}", *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return subprocess.run(
        command, env=inherited | environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_openai(url):
    """Each section says what it shows, and nine questions reach the model."""
    done = run("openai_sdk", "--url", url)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == [
        *["answer"] * 2, *["stream"] * 2, "structured", *["embeddings"] * 3, "control", "asyncio",
    ]  # fmt: skip
    missed, hit = (line.partition(": ")[2] for line in lines[:2])
    assert missed.partition(": ")[0] == "askonce; fwd=miss"
    assert hit.partition(": ")[0] == "askonce; hit"
    assert missed.partition(": ")[2] == hit.partition(": ")[2] != ""
    assert lines[4].endswith("the same again: True")
    assert lines[5:8] == [
        "embeddings: askonce; fwd=miss",
        'embeddings: askonce; fwd=miss; detail="1 of 2 items stored"',
        "embeddings: askonce; hit",
    ]
    assert lines[-2:] == ["asyncio: five at once, 1 answer", "the model was asked 9 times"]


def test_openai_asks_the_real_model_if_told_so(url):
    """Here the stand-in again, by OPENAI_BASE_URL; in the next process most is cached."""
    with start(latency=(0.0, 0.01), error_rate=0.0) as standin:
        calls = []
        for _ in range(2):
            done = run(
                "openai_sdk",
                "--live",
                "--url",
                url,
                OPENAI_BASE_URL=standin.base_url,
                OPENAI_API_KEY="never-shown",
            )
            assert done.returncode == 0, done.stderr
            assert "never-shown" not in done.stdout + done.stderr
            calls.append(standin.stats().calls)
    assert calls == [9, 11]  # again: what asked not to be read, and what asked not to be stored


def test_openai_without_a_key_says_what_is_missing():
    done = run("openai_sdk", "--live")
    assert (done.returncode, done.stdout) == (2, "")
    assert "OPENAI_API_KEY" in done.stderr


def test_anthropic(url):
    """Two answers and a stream of one call."""
    pytest.importorskip("anthropic")
    done = run("anthropic_sdk", "--url", url)
    assert done.returncode == 0, done.stderr
    missed, hit, streamed, asked = done.stdout.splitlines()
    assert missed.startswith("answer: askonce; fwd=miss: ")
    assert hit.startswith("answer: askonce; hit: ")
    said = hit.removeprefix("answer: askonce; hit: ")
    assert missed.endswith(said)
    assert int(streamed.split()[1]) >= len(said)
    assert asked == "the model was asked 1 times"
