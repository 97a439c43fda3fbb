"""
The one check command: everything that must hold, one after the other, and at the end what failed.

``python -m tests.checks`` runs all; ``--static`` leaves the tests out; ``--sdk2 PYTHON`` names the environment with
openai 2 and LlamaIndex's client of it, whose tests run there as well.  Any other arguments are given to pytest, and
then only this environment's tests run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

_BIN = Path(sys.executable).parent

STATIC = {
    "lint": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "--quiet", "."],
    "mypy": ["mypy"],
    "pyright": ["pyright"],
    "imports": ["lint-imports", "--no-cache"],
}

#: What runs with openai 2 as well, or with it alone.
SDK2_TESTS = [
    "tests/integrations/openai",
    "tests/integrations/llama_index",
    *map(str, sorted(Path("tests/examples").glob("test_llama_index_*.py"))),
]


def main() -> int:
    """Run the checks; return 0 if all hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--sdk2", type=Path)
    options, arguments = parser.parse_known_args()
    failed = [name for name, command in STATIC.items() if not _static(name, command)]
    if not options.static and not _tests(_BIN / "python", arguments):
        failed.append("tests")
    if not options.static and options.sdk2 and not arguments and not _tests(options.sdk2, SDK2_TESTS):
        failed.append("tests with openai 2")
    print(f"failed: {', '.join(failed)}" if failed else "all checks hold")
    return 1 if failed else 0


def _tests(python: Path, arguments: list[str]) -> bool:
    # The output is passed on as it comes.
    return subprocess.run([python, "-m", "pytest", "-q", *arguments], check=False).returncode == 0


def _static(name: str, command: list[str]) -> bool:
    start = time.monotonic()
    done = subprocess.run([_BIN / command[0], *command[1:]], capture_output=True, text=True, check=False)
    print(
        f"{name:8s} {'ok' if done.returncode == 0 else 'FAILED'}  {time.monotonic() - start:.1f} s",
        flush=True,
    )
    if done.returncode:
        print(done.stdout + done.stderr, flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
