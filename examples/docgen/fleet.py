"""The worker processes, from outside: start them, give them work, hear what they did, end them."""

import multiprocessing
from collections.abc import Iterator, Sequence
from queue import Empty
from types import TracebackType

from examples.docgen.records import Done, Job, Ready, Workplace
from examples.docgen.worker import Reports, Tasks, work

_PATIENCE = 1.0  # seconds between two looks at whether the silent workers still live


class Fleet:
    """Several workers. Leaving the block ends them."""

    def __init__(self, workers: int, place: Workplace) -> None:
        # spawn: a forked child would share its parent's threads and sockets in a broken state.
        context = multiprocessing.get_context("spawn")
        self._reports: Reports = context.Queue()
        self._tasks: list[Tasks] = [context.Queue() for _ in range(workers)]
        self._processes = [
            context.Process(target=work, args=(number, place, tasks, self._reports), daemon=True)
            for number, tasks in enumerate(self._tasks)
        ]

    def __enter__(self) -> "Fleet":
        for process in self._processes:
            process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tasks in self._tasks:
            tasks.put(None)
        for process in self._processes:
            process.join(timeout=5 if kind is None else 0.5)
            if process.is_alive():
                process.terminate()
                process.join()

    def wait_until_ready(self) -> None:
        """Return when every worker has told that it can start."""
        waited_for = set(range(len(self._processes)))
        while waited_for:
            report = self._hear()
            if isinstance(report, Ready):
                waited_for.discard(report.worker)

    def do(self, hands: Sequence[list[Job]]) -> Iterator[Done]:
        """Give each worker its list; yield each job as it ends, wherever that was."""
        for tasks, hand in zip(self._tasks, hands, strict=True):
            tasks.put(hand)
        for _ in range(sum(map(len, hands))):
            report = self._hear()
            if isinstance(report, Done):
                yield report

    def _hear(self) -> Ready | Done:
        while True:
            try:
                return self._reports.get(timeout=_PATIENCE)
            except Empty:
                self._check()

    def _check(self) -> None:
        for number, process in enumerate(self._processes):
            if process.exitcode is not None:
                raise RuntimeError(
                    f"worker {number} ended with status {process.exitcode}; its traceback is above"
                )
