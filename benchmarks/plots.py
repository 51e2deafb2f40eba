"""Draw the plots of docs/performance.md: small SVG files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# The same results give the same files, and text stays text.
mpl.rcParams.update({"svg.hashsalt": "pymc_mpimap", "svg.fonttype": "none", "font.size": 9})


def contest(found: dict[str, Any]) -> Figure:
    """Draw what each contestant needs; the shorter the better."""
    groups = found["groups"]
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for axes, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        timings = group["timings"][::-1]
        colors = ["C1" if t["name"].startswith("map_rect") else "C7" for t in timings]
        names = [t["name"] for t in timings]
        axes.barh(names, [1e3 * t["median"] for t in timings], color=colors)
        axes.set(title=group["name"], xscale="log", xlabel="ms, median")
        axes.minorticks_off()
    return figure


def waiting(found: dict[str, Any]) -> Figure:
    """Draw the time of an evaluation after a pause."""
    figure = Figure(figsize=(4.5, 2.8), layout="constrained")
    axes = figure.subplots()
    rows = [row for row in found["latency"] if row["gap"]]
    for key in ("median", "minimum"):
        axes.loglog([1e3 * r["gap"] for r in rows], [1e6 * r[key] for r in rows], "o-", label=key)
    axes.set(xlabel="pause, ms", ylabel="evaluation after it, us")
    axes.minorticks_off()
    axes.legend(frameon=False)
    return figure


def data(found: dict[str, Any]) -> Figure:
    """Draw what it takes to compare, hash and send so many bytes."""
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    axes = figure.subplots()
    rows = found["prices"]
    for key in rows[0]:
        if key != "bytes":
            axes.loglog([r["bytes"] for r in rows], [1e6 * r[key] for r in rows], "o-", label=key)
    axes.set(xlabel="bytes", ylabel="us, median")
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    return figure


PLOTS = {"contest-2": contest, "waiting-2": waiting, "data-2": data}


def draw(results: Path, folder: Path) -> None:
    """Draw all whose results are there."""
    folder.mkdir(exist_ok=True)
    for name, plot in PLOTS.items():
        source = results / f"{name}.json"
        if source.exists():
            target = folder / f"{name.partition('-')[0]}.svg"
            plot(json.loads(source.read_text())).savefig(target, metadata={"Date": None})
