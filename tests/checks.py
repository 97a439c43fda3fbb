"""
The one check command: everything that must hold, one after the other, and at the end what failed.

``python -m tests.checks`` runs all; ``--static`` leaves the tests out; any other arguments are given to pytest.
"""

from __future__ import annotations

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


def main() -> int:
    """Run the checks; return 0 if all hold."""
    arguments = sys.argv[1:]
    failed = [name for name, command in STATIC.items() if not _static(name, command)]
    if "--static" not in arguments and not _tests(arguments):
        failed.append("tests")
    print(f"failed: {', '.join(failed)}" if failed else "all checks hold")
    return 1 if failed else 0


def _tests(arguments: list[str]) -> bool:
    # The output is passed on as it comes.
    return subprocess.run([_BIN / "python", "-m", "pytest", "-q", *arguments], check=False).returncode == 0


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
