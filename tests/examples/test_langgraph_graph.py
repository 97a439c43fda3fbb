"""The example of a graph, run as a reader would."""

import os
import subprocess
import sys
from pathlib import Path

from examples.standin import start

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, **environment):
    command = [sys.executable, "-m", "examples.langgraph_graph", *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return subprocess.run(
        command, env=inherited | environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_what_was_asked_before_runs_no_node(url):
    """Four questions, two of them new: four nodes run, four are served, and each thread keeps all it was told."""
    done = run("--url", url)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert printed[-3:] == [
        "monday keeps 9 messages",
        "tuesday keeps 3 messages",
        "the model was asked 4 times",
    ]
    sources = ["cache" in line for line in printed if " from the " in line]
    assert sources == [False] * 4 + [True] * 4


def test_another_process_is_served_what_the_first_one_wrote(url):
    """The second run asks the model nothing; a provider is asked if told so (here the stand-in, by its address)."""
    with start(latency=(0.0, 0.01), error_rate=0.0) as standin:
        for _ in range(2):
            done = run("--live", "--url", url, OPENAI_BASE_URL=standin.base_url, OPENAI_API_KEY="never-shown")
            assert done.returncode == 0, done.stderr
            assert "never-shown" not in done.stdout + done.stderr
        assert standin.stats().calls == 4
    assert "from the model" not in done.stdout


def test_without_a_key_it_says_what_is_missing():
    done = run("--live")
    assert (done.returncode, done.stdout) == (2, "")
    assert "OPENAI_API_KEY" in done.stderr
