"""The documentation itself: a Markdown page a file, as the last round left it."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from examples.docgen.records import Done, Kind

_HEADINGS = {Kind.CHAIN: "", Kind.PLAIN: "**Example.** ", Kind.AGENT: "**Used by.** "}


def write_pages(folder: Path, done: Iterable[Done]) -> list[Path]:
    """Write the pages and return their paths, in order."""
    pages: defaultdict[str, dict[str, dict[Kind, str]]] = defaultdict(lambda: defaultdict(dict))
    for each in done:
        pages[each.job.function.path][each.job.function.name][each.job.kind] = each.text
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _write(folder / f"{Path(path).stem}.md", path, functions) for path, functions in sorted(pages.items())
    ]


def _write(page: Path, title: str, functions: dict[str, dict[Kind, str]]) -> Path:
    lines = [f"# {title}", ""]
    for name, texts in sorted(functions.items()):
        lines += [f"## {name}", ""]
        for kind, heading in _HEADINGS.items():
            if text := texts.get(kind):
                lines += [heading + text, ""]
    page.write_text("\n".join(lines), encoding="utf-8")
    return page
