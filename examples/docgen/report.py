"""The results as a person reads them: a table, a column a round, and two lines of plain words."""

from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from examples.docgen.numbers import PRICED_MODEL, Result, percentile, total
from examples.docgen.prompts import NEXT_VERSION


def table(results: Sequence[Result], *, live: bool) -> Table:
    """All rounds side by side."""
    columns = [*results, total(results)]
    counted = "counted by us" if live else "counted by the model's stand-in"
    drawn = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        caption=f"reached the model: {counted}; coalesced: waited for the same call of another worker",
        caption_justify="left",
    )
    drawn.add_column("")
    for each in columns:
        drawn.add_column(each.title, justify="right")
    for label, cell, style in _ROWS:
        drawn.add_row(label, *map(cell, columns), style=style)
    return drawn


def summary(results: Sequence[Result]) -> Group:
    """What it comes to, in two lines."""
    everything, last = total(results), results[-1]
    hit, miss = percentile(everything.hit_ms, 50) or 0.0, percentile(everything.miss_ms, 50) or 0.0
    spared = everything.asked - sum(call.computed for call in everything.calls)
    return Group(
        Text(
            f"{spared:,} of {everything.asked:,} calls needed no model: {hit:.1f} ms instead of {miss:.0f} ms (p50)."
        ),
        Text(
            f"Saved about ${everything.usd_saved:.2f} ({PRICED_MODEL}, list price); "
            f"prompt {NEXT_VERSION}: {last.new_questions} of {last.questions} answers new."
        ),
    )


def _milliseconds(values: list[float]) -> str:
    middle, high = percentile(values, 50), percentile(values, 95)
    if middle is None or high is None:
        return "-"
    digits = 0 if middle >= 100 else 1
    return f"{middle:.{digits}f} / {high:.{digits}f}"


_ROWS: tuple[tuple[str, Callable[[Result], str], str], ...] = (
    ("calls asked", lambda r: f"{r.asked:,}", ""),
    ("reached the model", lambda r: f"{r.reached:,}", "bold"),
    ("hits", lambda r: f"{r.hits:,}", "green"),
    ("coalesced", lambda r: f"{r.coalesced:,}", "green"),
    ("new questions", lambda r: f"{r.new_questions} of {r.questions}", "bold"),
    ("429, 500 (retried)", lambda r: f"{r.refused:,}", "dim"),
    ("hit, ms (p50 / p95)", lambda r: _milliseconds(r.hit_ms), ""),
    ("miss, ms (p50 / p95)", lambda r: _milliseconds(r.miss_ms), ""),
    ("tokens saved", lambda r: f"{r.tokens_saved:,}", ""),
    ("money saved", lambda r: f"${r.usd_saved:.4f}", ""),
    ("entries in Redis", lambda r: f"{r.entries:,}", ""),
    ("bytes in Redis", lambda r: f"{r.bytes:,}", ""),
    ("seconds", lambda r: f"{r.seconds:.1f}", "dim"),
)
