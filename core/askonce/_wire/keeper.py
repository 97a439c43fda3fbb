"""
The keeper: starts one valkey-server, ends it when nobody has used it for a while, and ends with it.

Run by ``embedded.py``, in the data folder, as ``python -I -S keeper.py LINGER SOCKET COMMAND...``.  A script of the
standard library alone: it stays in memory beside the server, and must not pay for what askonce imports.

It promises that a folder has one keeper and one server, by three locks (``flock``: a lock ends with its holders).
``start.lock`` is held while a server is started, and here while one is ended, so that nobody joins a server on its
way out.  ``keeper.lock`` is held as long as a keeper lives.  ``server.lock`` is handed down to the server, so that it
is held as long as a process can write the data; a server whose keeper was killed is adopted by the next one.

It does not restart a server that ends, and reads no data.
"""

import contextlib
import fcntl
import os
import signal
import socket
import sys
import time


class Keeper:
    """One server: ``pid`` is 0 until it is known, ``start`` the open file of ``start.lock``."""

    def __init__(self, linger: float, path: str, start: int) -> None:
        self.linger, self.path, self.start = linger, path, start
        self.pid = 0
        self.born: tuple[int, int] | None = None  # its socket file
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: self.end())

    def end(self, signum: int = signal.SIGTERM) -> None:
        """Ask the server to end (SIGTERM: it flushes first), if there is one."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def watch(self) -> None:
        """Return when the server has ended: by itself, by a signal, or for want of use."""
        gone = open_lock("server.lock")  # opened anew: free once the server's own is
        while not take(gone, patience=0.01):
            link = socket.socket(socket.AF_UNIX)  # made again when someone ends it by CLIENT KILL
            with link, contextlib.suppress(OSError, EOFError):
                link.connect(self.path)
                self.born = identity(self.path)
                self.attend(link)
        if identity(self.path) == self.born:  # else it is another server's
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)

    def attend(self, link: socket.socket) -> None:
        """Look at the server every few seconds; raises when the connection ends, as it does with the server."""
        seen, since = 0, time.monotonic()
        while True:
            pid, clients, connections = census(link)
            if self.pid not in {0, pid} or identity(self.path) != self.born:
                # Nobody can reach ours any more: the folder was deleted, or the socket.  A clean end
                # would unlink the socket of whoever has the place now; what ours has acknowledged is
                # with the kernel already.
                self.end(signal.SIGKILL)
                self.born = None
                raise EOFError
            self.pid = pid
            if clients > 1 or connections != seen:
                seen, since = connections, time.monotonic()
            elif time.monotonic() - since >= self.linger and take(self.start):
                try:  # who looked before the lock was taken is in the numbers; who looks now waits for it
                    if census(link)[1:] == (1, seen):
                        self.end()
                        pause(link, 10.0)
                        self.end(signal.SIGKILL)  # stuck
                finally:
                    fcntl.flock(self.start, fcntl.LOCK_UN)
            pause(link, min(5.0, self.linger / 4 + 0.01))


def census(link: socket.socket) -> tuple[int, int, int]:
    """The server's pid, its clients now, and the connections it ever had; the keeper's own is among both."""
    link.settimeout(None)  # a frozen server is not a dead one
    with link.makefile("rb") as reader:
        link.sendall(b"INFO server clients stats\r\n")
        while (head := reader.readline()).startswith(b"-BUSY"):  # a script has been running for seconds
            time.sleep(1.0)
            link.sendall(b"INFO server clients stats\r\n")
        size = int(head[1:] or 0) + 2
        body = reader.read(size)
    if len(body) < size:
        raise EOFError
    fields = dict(line.split(b":", 1) for line in body.splitlines() if b":" in line)
    pid, clients, ever = (b"process_id", b"connected_clients", b"total_connections_received")
    return int(fields[pid]), int(fields[clients]), int(fields[ever])


def pause(link: socket.socket, seconds: float) -> None:
    """Wait; nothing is due on the connection, so that only its end interrupts the wait."""
    link.settimeout(seconds)
    with contextlib.suppress(TimeoutError):
        if not link.recv(1):
            raise EOFError


def identity(path: str) -> tuple[int, int] | None:
    """Which file stands at the path now, if any; inode numbers alone are used again."""
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return found.st_ino, found.st_mtime_ns
    return None


def open_lock(name: str) -> int:
    """The lock file, not locked yet; it is never deleted, or two processes could hold two files of one name."""
    return os.open(name, os.O_RDWR | os.O_CREAT, 0o600)


def take(lock: int, patience: float = 0.0) -> bool:
    """True if the lock is held by this process now."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)


def main(linger: float, path: str, command: list[str]) -> None:
    """Start or adopt the server of the current folder, and keep it until it has ended."""
    # Inherited from the starter: a blocked SIGTERM would make the server immortal, and an ignored
    # SIGCHLD hide from it that the rewrite of its append-only file is done.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    start, alone, life = (open_lock(name) for name in ("start.lock", "keeper.lock", "server.lock"))
    if not take(alone, patience=1.0):
        return
    if child := os.fork():  # the starter has its child back at once, and never a zombie
        os.pwrite(alone, b"%-10d\n" % child, 0)  # for people to read; the lock is the proof
        return
    keeper = Keeper(linger, path, start)
    if take(life, patience=1.0):  # else adopt
        os.set_inheritable(life, True)
        keeper.pid = os.posix_spawn(command[0], command, os.environ)
    os.close(life)
    keeper.watch()
    with contextlib.suppress(ChildProcessError):  # adopted: another's child
        os.waitpid(keeper.pid, 0)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], sys.argv[3:])
