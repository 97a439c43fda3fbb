"""What is shown while the workers work: a moving bar in a terminal, a line now and then in a log."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.docgen.records import Done

_LINES_A_ROUND = 4  # in a log


class Ticker:
    """Counts the jobs of one round as they end."""

    def __init__(self, console: Console, title: str, jobs: int) -> None:
        self._console = console
        self._title = title
        self._jobs = jobs
        self._done = self._calls = self._computed = 0
        self._bar = Progress(
            TextColumn("{task.description:<11}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[said]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(title, total=jobs, said="")

    def __enter__(self) -> "Ticker":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if kind is None:
            self._console.print(f"{self._title:<11} {self._said()}", highlight=False)

    def tick(self, done: Done) -> None:
        """Note a job that ended."""
        self._done += 1
        self._calls += len(done.calls)
        self._computed += sum(call.computed for call in done.calls)
        self._bar.update(self._task, completed=self._done, said=self._said())
        if not self._console.is_terminal and self._is_due():
            self._console.print(
                f"{self._title:<11} {self._done}/{self._jobs} jobs: {self._said()}", highlight=False
            )

    def _said(self) -> str:
        return f"{self._calls} calls, {self._computed} to the model"

    def _is_due(self) -> bool:
        # Not at the end: the round's last line says it.
        step = max(1, self._jobs // _LINES_A_ROUND)
        return self._done % step == 0 and self._done < self._jobs
