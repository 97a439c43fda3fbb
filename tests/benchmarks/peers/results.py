"""What a run found: a cell for each peer and comparison, and the page's tables made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.peers.figures import Figure, better
from tests.benchmarks.peers.roster import BARE, OURS, ROSTER


@dataclass(frozen=True)
class Column:
    """A comparison: its title, how its figures are written, and which are the better ones."""

    title: str
    form: str = "{:.2f}"
    higher: bool = False


#: The comparisons with a figure, in the order of the tables.
COLUMNS = {
    "hit": Column("hit"),
    "ahit": Column("hit, asyncio"),
    "at once": Column("64 at once: throughput", higher=True),
    "one key": Column("64 on one key: throughput", higher=True),
    "framework": Column("framework, hit", form="{:.1f}"),
    "memory": Column("bytes an entry of 2 KB", form="{:.0f}"),
    "used": Column("growth of used_memory an entry", form="{:.0f}"),
    "stampede": Column("model calls", form="{:.0f}"),
    "bounded": Column("hit rate", form="{:.3f}", higher=True),
    "outage": Column("a hit while the server is frozen"),
    "threads": Column("first call, threads", form="{:.2f} s"),
    "asyncio": Column("first call, asyncio", form="{:.2f} s"),
}
SPEED = ("hit", "ahit", "at once", "one key", "framework")
ROOM = ("memory", "used", "stampede", "bounded")
OUTAGE = ("threads", "asyncio")
#: Told from the least to the most, where the runs differ: no median of them ever happened.
COUNTS = ("stampede",)


@dataclass
class Results:
    """The figures, or the words in their place, by comparison and peer."""

    server: str
    rounds: int
    #: What a call of the baseline took, in microseconds, by comparison.
    base_us: dict[str, float] = field(default_factory=dict)
    #: What each peer that ran says of itself.
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: dict[str, dict[str, Figure]] = field(default_factory=dict)
    words: dict[str, dict[str, str]] = field(default_factory=dict)
    #: Peers that do not run here, and why.
    absent: dict[str, str] = field(default_factory=dict)
    #: What did not go as planned, in whole sentences.
    remarks: list[str] = field(default_factory=list)

    def note(self, comparison: str, name: str, found: Figure | str) -> None:
        """Put a figure, or a word, into its cell."""
        if isinstance(found, Figure):
            self.figures.setdefault(comparison, {})[name] = found
        else:
            self.words.setdefault(comparison, {})[name] = found

    def endured(self, colour: str, name: str, came: Sequence[tuple[float, str]]) -> None:
        """Put what came of the calls during an outage into their cells: the first, and the longest of the others."""
        ended = [f"{seconds:.2f} s, {outcome}" for seconds, outcome in came]
        self.note(f"{colour}, first", name, ended[0] if ended else "not within 10 s")
        later = max(came[1:], default=None)
        self.note(
            f"{colour}, later",
            name,
            ended[came.index(later, 1)] if later else "not within 10 s in all" if came else "",
        )
        if came:
            self.note(colour, name, Figure.of([came[0][0]]))

    def cell(self, comparison: str, name: str) -> str:
        """Return what stands in the table."""
        if figure := self.figures.get(comparison, {}).get(name):
            if comparison in COUNTS and figure.low != figure.high:
                return f"{figure.low:.0f} to {figure.high:.0f}"
            return COLUMNS[comparison].form.format(figure.median)
        return self.words.get(comparison, {}).get(name, "")

    def markdown(self, date: str, machine: str) -> str:
        """Return the part of the page that a run writes."""
        lines = [
            f"{date}, {self.server}, {machine}; medians of {self.rounds} rounds. "
            f"A bare `GET` took {self.base_us['hit']:.0f} us, by asyncio {self.base_us['ahit']:.0f} us, "
            f"with 64 tasks {self.base_us['at once']:.0f} us a call.",
            "",
            "Time of a call, as a ratio to the bare `GET` of the same round; throughput too, where more is better:",
            "",
            *self._table(SPEED, about="asked by"),
            "",
            *self._better(SPEED),
            "",
            "Room, stampedes and bounds:",
            "",
            *self._table(ROOM),
            "",
            *self._better(ROOM),
            "",
            "A hit while the server is frozen, with each cache's own settings; then the longest of four more:",
            "",
            *self._outage(),
            "",
            *self._better(OUTAGE),
            "",
            "What ran:",
            "",
            *self._versions(),
        ]
        if self.remarks:
            lines += ["", *(f"- {remark}" for remark in self.remarks)]
        return "\n".join(lines)

    @property
    def present(self) -> list[str]:
        """The peers that ran, in the order of the roster."""
        return [name for name in ROSTER if name in self.about]

    @property
    def all(self) -> list[str]:
        """Those too that do not run here."""
        return [name for name in ROSTER if name in self.about or name in self.absent]

    def _table(self, comparisons: tuple[str, ...], *, about: str = "") -> list[str]:
        """Return a table of those that ran; with a word *about* each, of the others too."""
        rows = []
        for name in self.all if about else self.present:
            cells = [self.cell(comparison, name) for comparison in comparisons]
            if about:
                cells.insert(0, "does not run here" if name in self.absent else self.about[name][about])
            rows.append([_strong(name), *cells])
        titles = ["", *([about] if about else []), *(COLUMNS[comparison].title for comparison in comparisons)]
        return table(titles, rows)

    def _better(self, comparisons: tuple[str, ...]) -> list[str]:
        return [
            line for ours in OURS if ours in self.present for line in self._better_than(ours, comparisons)
        ]

    def _better_than(self, ours: str, comparisons: tuple[str, ...]) -> list[str]:
        said = []
        for comparison in comparisons:
            column, found = COLUMNS[comparison], self.figures.get(comparison, {})
            ahead = [
                name
                for name in better(found, ours, higher=column.higher)
                if name not in {*BARE, *OURS} and self.cell(comparison, name) != self.cell(comparison, ours)
            ]
            if ahead:
                each = ", ".join(self._against(comparison, name, ours) for name in ahead)
                said.append(f"{column.title}: {each} (`{ours}` {self.cell(comparison, ours)})")
        return [f"- Better than `{ours}` here: {'; '.join(said) if said else 'none'}."]

    def _against(self, comparison: str, name: str, ours: str) -> str:
        found = self.figures[comparison]
        near = " (within the spread of the rounds)" if found[name].overlaps(found[ours]) else ""
        return f"{name} {self.cell(comparison, name)}{near}"

    def _outage(self) -> list[str]:
        cells = [f"{colour}, {call}" for colour in OUTAGE for call in ("first", "later")]
        rows = []
        for name in self.present:
            alone = self.words.get("outage", {}).get(name)
            rows.append(
                [_strong(name), *([alone, "", "", ""] if alone else [self.cell(c, name) for c in cells])]
            )
        return table(["", *cells], rows)

    def _versions(self) -> list[str]:
        rows = []
        for name in self.all:
            about = self.about.get(name, {"versions": {}, "note": ""})
            versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
            note = about["note"]
            if why := self.absent.get(name):
                needs = f"; it needs {ROSTER[name].needs}" if ROSTER[name].needs else ""
                note = f"does not run here: `{why}`{needs}"
            rows.append([_strong(name), versions, note])
        return table(["", "versions", "the measured call"], rows)


def _strong(name: str) -> str:
    return f"**{name}**" if name in OURS else name


def table(titles: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [
        "| " + " | ".join(titles) + " |",
        "|" + "---|" * len(titles),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
    ]
