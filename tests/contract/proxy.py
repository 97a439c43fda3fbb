"""A proxy that holds, cuts or changes what a real server answers, for the tests of the wires."""

import asyncio
import contextlib

import redis


class Proxy:
    """Stands in front of a server: ``open`` keeps its answers back, ``answers`` changes them, ``piece`` cuts them."""

    def __init__(self):
        self.open = asyncio.Event()
        self.open.set()
        self.piece = 1 << 20
        self.pause = 0.0  # seconds between two pieces
        self.answers = []  # said in place of what the server answers next
        self.asked = 0  # bytes that have come from the client
        self.takes, self.rest = 1 << 20, 0.0  # of these at most so many at a time, and seconds between
        self._writers, self._tasks = [], []

    async def start(self, url):
        parts = redis.connection.parse_url(url)
        self._target = parts["host"], parts["port"]
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def _serve(self, reader, writer):
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        self._writers += [writer, there_writer]
        self._tasks.append(asyncio.ensure_future(self._ask(reader, there_writer)))
        with contextlib.suppress(OSError):
            while data := await there_reader.read(1 << 20):
                await self.open.wait()
                if self.answers:
                    data = self.answers.pop(0)
                for start in range(0, len(data), self.piece):
                    writer.write(data[start : start + self.piece])
                    await asyncio.sleep(self.pause)
            writer.close()

    async def _ask(self, reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(self.takes):
                self.asked += len(data)
                writer.write(data)
                await asyncio.sleep(self.rest)
            writer.close()

    def say(self, data):
        """Say something to every client that nobody asked for."""
        for writer in self._writers[::2]:
            writer.write(data)

    async def asks(self, future):
        """Return once what *future* asks has come here."""
        before = self.asked
        while self.asked == before:
            assert not future.done()
            await asyncio.sleep(0.001)

    async def stop(self):
        self._server.close()
        self.open.set()
        for writer in self._writers:
            writer.close()
        await asyncio.wait(self._tasks) if self._tasks else None
