"""
The one check command: everything that must hold, one after the other, and at the end what failed.

``python -m tests.checks`` runs all; ``--static`` leaves the tests out; ``--sdk2 PYTHON`` names the environment with
openai 2 and LlamaIndex's client of it, ``--oldest PYTHON`` that with the oldest LlamaIndex and redis-py, ``--redis62
SERVER`` the oldest server, on which the contract of the core is tested; what these ask for runs beside the rest.  Any
other arguments are given to pytest, and then only this environment's tests run.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_BIN = Path(sys.executable).parent

STATIC = {
    "lint": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "--quiet", "."],
    "mypy": ["mypy"],
    "pyright": ["pyright"],
    "imports": ["lint-imports", "--no-cache"],
}

PYTEST = ["-m", "pytest", "-q"]

#: What runs with openai 2 as well, or with it alone.
SDK2_TESTS = [
    "tests/integrations/openai",
    "tests/integrations/llama_index",
    *map(str, sorted(Path("tests/examples").glob("test_llama_index_*.py"))),
]

#: What runs with the oldest dependencies as well: what depends on what they are.
OLDEST_TESTS = [
    "tests/integrations/llama_index",
    "tests/unit",
    "--ignore=tests/unit/test_distribution.py",
    *[
        f"tests/contract/test_{name}.py"
        for name in ("borrowed", "cache", "codec", "faults", "held", "multiplexed")
    ],
    "tests/cluster/test_clients.py",
]


def main() -> int:
    """Run the checks; return 0 if all hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--sdk2", type=Path)
    parser.add_argument("--oldest", type=Path)
    parser.add_argument("--redis62", type=Path)
    options, arguments = parser.parse_known_args()
    failed = [name for name, command in STATIC.items() if not _static(name, command)]
    if not options.static:
        beside = ThreadPoolExecutor(1).submit(_others, options) if not arguments else None
        # The output is passed on as it comes.
        if subprocess.run([_BIN / "python", *PYTEST, *arguments], check=False).returncode:
            failed.append("tests")
        if beside is not None:
            failed += beside.result()
    print(f"failed: {', '.join(failed)}" if failed else "all checks hold")
    return 1 if failed else 0


def _others(options: argparse.Namespace) -> list[str]:
    """
    Run the tests of the other environments, and those on the oldest server; return the names of those that failed.

    Each output is printed as a whole.
    """
    runs: dict[str, tuple[list[Path | str], dict[str, str]]] = {}
    if options.sdk2 is not None:
        runs["tests with openai 2"] = [options.sdk2, *PYTEST, *SDK2_TESTS], {}
    if options.oldest is not None:
        alone = {"ASKONCE_TEST_SERVERS": ""}  # on the embedded Valkey: the servers do not depend on them
        runs["tests with the oldest dependencies"] = [options.oldest, *PYTEST, *OLDEST_TESTS], alone
    if options.redis62 is not None:
        promised = {"ASKONCE_TEST_SERVERS": f"redis62={shlex.quote(str(options.redis62.absolute()))}"}
        runs["tests on Redis 6.2"] = [_BIN / "python", *PYTEST, "tests/contract", "-k", "redis62"], promised
    failed = []
    for name, (command, environment) in runs.items():
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
        print(f"\n{name}\n{done.stdout}{done.stderr}", flush=True)
        if done.returncode:
            failed.append(name)
    return failed


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
