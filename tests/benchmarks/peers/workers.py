"""The driver's side of a worker: its process, and a command at a time."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.peer import Lacks
from tests.benchmarks.peers.roster import ROSTER

ROOT = Path(__file__).resolve().parents[3]


class Failed(Exception):
    """A peer that does not run here, or fails at a command: why."""


class Remote:
    """
    A worker's process.

    ``environments``: the folder of the peers' environments.  Starting it waits for nothing: the first answer is asked
    for by ``hello``.
    """

    def __init__(self, name: str, url: str, environments: Path) -> None:
        self.name = name
        environment = ROSTER[name].environment
        python = str(environments / environment / "bin" / "python") if environment else sys.executable
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  goes with this object
        self._answers: queue.Queue[str] = queue.Queue()
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                [python, "-W", "ignore", "-m", "tests.benchmarks.peers.worker", name, url],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "core", ROOT / "integrations"))),
                },
            )
        except FileNotFoundError:
            return  # the first answer says so
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def hello(self, patience: float = 60.0) -> Any:
        """Return what the worker says of itself when it is ready; raise Failed if it never is."""
        return self._answer(patience)

    def ask(self, do: str, *, patience: float = 60.0, **words: Any) -> Any:
        """Return what the worker answers; raise Lacks or Failed.  Who does not answer in time is ended."""
        self.send(do, **words)
        return self._answer(patience)

    def send(self, do: str, **words: Any) -> None:
        """Give a command whose answer is fetched later, by ``fetch``."""
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.write(json.dumps({"do": do, **words}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says why

    def fetch(self, patience: float = 60.0) -> Any:
        """Return the answer to what was sent."""
        return self._answer(patience)

    def _answer(self, patience: float) -> Any:
        if self._process is None:
            raise Failed("its environment was not set up")
        try:
            line = self._answers.get(timeout=patience)
        except queue.Empty:
            self.end()
            raise Failed(f"no answer within {patience:g} s") from None
        if not line:
            self._log.seek(0)
            last = self._log.read().strip().splitlines()[-1:] or ["its process ended"]
            raise Failed(last[0][:160])
        answer = json.loads(line)
        if "lacks" in answer:
            raise Lacks(answer["lacks"])
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer["said"]

    def end(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
