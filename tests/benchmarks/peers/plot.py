"""
Draws the figures of a run, read as JSON from stdin: ``python -m tests.benchmarks.peers.plot FILE.svg``.

One panel a comparison, one row a peer: a dot at the median, a line from quartile to quartile.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, LogLocator

OURS, BARE, THEIRS = "#c2410c", "#9ca3af", "#334155"


def main() -> None:
    """Draw."""
    given: dict[str, Any] = json.load(sys.stdin)
    mpl.rcParams["svg.hashsalt"] = "peers"  # the same figures give the same file
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["font.size"] = 9
    panels, ours = given["panels"], given["ours"]
    names = [name for name in given["names"] if any(name in panel["figures"] for panel in panels)]
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(12, 0.34 * len(names) + 1.3), sharey=True, layout="constrained"
    )
    for axis, panel in zip(axes, panels, strict=True):
        for row, name in enumerate(names):
            if name not in panel["figures"]:
                continue
            median, low, high = panel["figures"][name]
            colour = OURS if name in ours else BARE if name in given["bare"] else THEIRS
            axis.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="round")
            axis.plot(median, row, "o", color=colour, markersize=6)
        axis.axvline(1, color=BARE, linewidth=0.8, zorder=0)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=8))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.minorticks_off()
        axis.set_title(panel["title"], fontsize=9)
        axis.set_xlabel(f"to a bare GET; {'more' if panel['higher'] else 'less'} is better", fontsize=8)
        axis.grid(axis="y", color="#e5e7eb", linewidth=0.8)
        axis.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    for label, name in zip(axes[0].get_yticklabels(), names, strict=True):
        label.set_color(OURS if name in ours else "black")
    figure.savefig(sys.argv[1], metadata={"Date": None})


if __name__ == "__main__":
    main()
