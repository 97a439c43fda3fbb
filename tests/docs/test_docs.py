"""Every Python block of README and docs runs as it stands; every shell command in them exists."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from examples.standin import start
from tests.servers import Cluster, promised

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    """Return the page's blocks in a language."""
    return [code for kind, code in BLOCK.findall(page.read_text()) if kind == language]


def name(page):
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def provider():
    """A stand-in for the provider, quick and without faults."""
    with start(latency=(0.0, 0.0), error_rate=0.0) as standin:
        yield standin


@pytest.fixture(scope="module")
def cluster():
    """A cluster for the page that is about it."""
    with Cluster(promised()["valkey"]) as running:
        yield running


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_the_python_blocks_of_a_page_run(page, provider, server, cluster, tmp_path):
    """A page's blocks run in a fresh process, one after the other, as a reader would paste them."""
    environment = {
        **os.environ,
        "ASKONCE_URL": (cluster if page.stem == "cluster" else server).url,
        "OPENAI_API_KEY": "sk-test",
        "OPENAI_BASE_URL": provider.base_url,
        "PYTHONPATH": "",
    }
    for number, code in enumerate(blocks(page, "python"), 1):
        script = tmp_path / f"block_{number}.py"
        script.write_text(code)
        done = subprocess.run(
            [sys.executable, script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
        )
        assert done.returncode == 0, f"block {number} of {name(page)}:\n{code}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_commands_of_a_page_exist(page):
    """A make command names a target, an install names extras that the project has."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    project = (ROOT / "pyproject.toml").read_text()
    for code in blocks(page, "sh"):
        for line in code.splitlines():
            words = line.split("#")[0].split()
            if words[:1] == ["make"]:
                assert words[1] in targets, line
            elif words[:2] == ["pip", "install"]:
                for extra in re.findall(r"[a-z-]+", words[2].partition("[")[2]):
                    assert f"\n{extra} = [" in project, line
            else:
                assert words[:1] in ([], ["redis-cli"]), f"a command that no test knows: {line}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_links_of_a_page_lead_somewhere(page):
    """A relative link names a file of the repository."""
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_readme_python_version_is_the_project_s():
    """README asks for the Python that the project requires."""
    requires = re.search(r'requires-python = ">=(\d+\.\d+)"', (ROOT / "pyproject.toml").read_text())[1]

    assert f"Python {requires} or newer" in (ROOT / "README.md").read_text()
    assert shutil.which("make")
