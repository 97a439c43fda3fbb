"""The example of an ingestion pipeline, run as a reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llama_index.llms.openai")

RUN = re.compile(r"(.+): (\d+) pieces of (\d+) pages, (\d+) found, (\d+) made, \d+ ms")
ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, **environment):
    command = [sys.executable, "-m", "examples.llama_index_ingestion", *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return subprocess.run(
        command, env=inherited | environment, cwd=ROOT, capture_output=True, text=True, timeout=240
    )


def runs(done):
    """What each run of the pipeline tells: its name, pieces, pages, and how many were found and made."""
    assert done.returncode == 0, done.stderr
    told = [match.groups() for match in map(RUN.fullmatch, done.stdout.splitlines()) if match]
    return [(name, *map(int, numbers)) for name, *numbers in told]


def test_what_did_not_change_is_not_made_again(url):
    """
    A second run finds what both transformations made; one that changed a page embeds a piece of that page.

    Another process finds it too.
    """
    first, again, changed = runs(run("--url", url))
    _, pieces, pages, *_ = first
    assert pieces > pages > 5
    assert first == ("first", pieces, pages, 0, pieces + 2)
    assert again == ("again", pieces, pages, 2, 0)
    assert changed == ("one page changed", pieces, pages, pieces - 1, 2 + 1)
    assert runs(run("--url", url))[0] == ("first", pieces, pages, 2, 0)


def test_without_a_key_it_says_what_is_missing():
    done = run("--live")
    assert (done.returncode, done.stdout) == (2, "")
    assert "OPENAI_API_KEY" in done.stderr
