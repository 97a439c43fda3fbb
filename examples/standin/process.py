"""The stand-in as a process of its own, for as long as a block of code runs."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.standin.behaviour import Behaviour, Stats

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Standin:
    """A running stand-in: give `base_url` to any OpenAI client, of any process."""

    base_url: str

    def stats(self) -> Stats:
        """What has reached it so far."""
        url = self.base_url.removesuffix("/v1") + "/standin/stats"
        with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310  (our own http:// address)
            return Stats(**json.load(reply))


@contextmanager
def start(
    *, seed: int = 7, latency: tuple[float, float] = (0.2, 0.8), error_rate: float = 0.03
) -> Iterator[Standin]:
    """A stand-in on a free port of 127.0.0.1, gone when the block ends."""
    behaviour = Behaviour(seed=seed, latency=latency, error_rate=error_rate)
    process = subprocess.Popen(  # noqa: S603  (our own words and numbers)
        [*_command(behaviour), "--until-stdin-closes"],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for its parent to hear
    )
    try:
        assert process.stdout is not None  # noqa: S101  (for the type checker: PIPE was asked for)
        base_url = process.stdout.readline().strip()
        if not base_url:
            raise RuntimeError(f"the stand-in ended with status {process.wait()} before it listened")
        yield Standin(base_url)
    finally:
        _end(process)


def _command(behaviour: Behaviour) -> list[str]:
    low, high = behaviour.latency
    options = f"--seed {behaviour.seed} --latency {low} {high} --error-rate {behaviour.error_rate}"
    return [sys.executable, "-m", "examples.standin", *options.split()]


def _end(process: subprocess.Popen[str]) -> None:
    """Close its input, which tells it to stop; insist if it does not."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
