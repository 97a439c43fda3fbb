"""The example of a query engine, run as a reader would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llama_index.llms.openai")

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, **environment):
    command = [sys.executable, "-m", "examples.llama_index_query", *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return subprocess.run(
        command, env=inherited | environment, cwd=ROOT, capture_output=True, text=True, timeout=240
    )


def test_a_question_is_answered_once(url):
    """
    Three questions, two calls of the model; what is served is what was said, whole and streamed.

    Another process embeds nothing; it asks another stand-in, whose address is in the key of an answer.
    """
    done = run("--url", url)
    assert done.returncode == 0, done.stderr
    embedded, first, said, other, _, again, served, streamed, asked = done.stdout.splitlines()
    assert "0 from the cache" in embedded
    for line in (first, other):
        assert ".md" in line
        assert "0 from the cache, 2 computed" in line
    assert "2 from the cache, 0 computed" in again
    assert said == served
    assert streamed == f"streamed: {said.strip()}"
    assert asked == "the model was asked 2 times"
    embedded, *_, asked = run("--url", url).stdout.splitlines()
    assert embedded.endswith(", 0 computed")
    assert asked == "the model was asked 2 times"


def test_without_a_key_it_says_what_is_missing():
    done = run("--live")
    assert (done.returncode, done.stdout) == (2, "")
    assert "OPENAI_API_KEY" in done.stderr
