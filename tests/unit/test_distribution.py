"""The wheel: all that is needed, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "askonce": ROOT / "core",
    "askonce_langchain": ROOT / "integrations",
    "askonce_llama_index": ROOT / "integrations",
    "askonce_openai": ROOT / "integrations",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel of this tree, with no network, and open it."""
    target = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)],
        cwd=ROOT,
        env={**os.environ, "PIP_NO_INDEX": "1", "SOURCE_DATE_EPOCH": "1700000000"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (path,) = target.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def names(wheel):
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def sources(*suffixes: str) -> set[str]:
    return {
        str(path.relative_to(folder))
        for package, folder in PACKAGES.items()
        for path in (folder / package).rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts
    }


def test_every_module_is_in_the_wheel(names):
    """A line in .gitignore, or a folder without its entry in pyproject.toml, would leave one out."""
    modules = sources(".py")

    assert len(modules) > 40
    assert modules == {name for name in names if name.endswith(".py")}


def test_every_script_is_in_the_wheel(names):
    """Lua files are data, which builders like to forget."""
    scripts = sources(".lua")

    assert len(scripts) >= 11
    assert scripts == {name for name in names if name.endswith(".lua")}


def test_all_packages_are_typed(names):
    """Each of the four carries the marker of PEP 561."""
    assert {f"{package}/py.typed" for package in PACKAGES} == {
        name for name in names if name.endswith("py.typed")
    }


def test_nothing_else_is_in_the_wheel(names):
    """No tests, no examples, no caches: four packages of modules, scripts and markers."""
    assert {name.partition("/")[0] for name in names} == set(PACKAGES)
    assert {Path(name).suffix for name in names} == {".py", ".lua", ".typed"}
    assert not [name for name in names if "test" in name.lower() and "testing" not in name]


def test_the_metadata_says_what_is_needed(wheel):
    """Two dependencies, the extras, the licence and the description."""
    (place,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(wheel.read(place).decode())
    required = metadata.get_all("Requires-Dist") or []
    always = sorted(re.split("[<>=]", line)[0] for line in required if "extra ==" not in line)

    assert metadata["Name"] == "askonce"
    assert always == ["ormsgpack", "redis[hiredis]"]
    assert set(metadata.get_all("Provides-Extra") or []) == {
        "langchain",
        "llama-index",
        "openai",
        "embedded",
        "zstd",
        "all",
    }
    assert metadata["Requires-Python"] == ">=3.11"
    assert "redis" in str(metadata.get_payload()).lower()
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_the_wheel_is_pure_python(wheel):
    """One wheel for every platform."""
    (place,) = [name for name in wheel.namelist() if name.endswith(".dist-info/WHEEL")]
    text = wheel.read(place).decode()

    assert "Root-Is-Purelib: true" in text
    assert "Tag: py3-none-any" in text


def test_the_lower_bounds_are_tested():
    """What is promised to be old enough is what the environment of the oldest has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = (ROOT / "requirements" / "oldest.txt").read_text().splitlines()
    pinned = dict(line.partition(" ;")[0].split("==") for line in lines)

    for asked in (*project["dependencies"], *extras["embedded"], *extras["zstd"], *extras["llama-index"]):
        needed = Requirement(asked)
        (least,) = [one.version for one in needed.specifier if one.operator == ">="]
        assert Version(pinned[needed.name]) == Version(least), needed.name
