"""Present figures: a table with the machine, a JSON record, a plot."""

from __future__ import annotations

import platform
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nola_edge import build_info
from nola_edge.threads import default_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from measure.timing import Figure


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    model = platform.processor()
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    info = build_info()
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "processor": model,
        "processors": default_threads(),
        "isa": info["active_isa"],
        "compiler": info["compiler"],
        "version": info["version"],
    }


def heading(about: dict[str, Any]) -> str:
    """Return one line about the machine."""
    return (
        f"{about['processor']}, {about['processors']} processors, {about['isa']}, "
        f"{about['compiler']}, nola-edge {about['version']}, {about['date']}"
    )


def row(figure: Figure) -> str:
    """Return a figure as a line of a table."""
    sign, word = (">=", "faster") if figure.faster else ("<=", "of it")
    mark = "ok" if figure.reached else "SHORT"
    return (
        f"{figure.name:38} {figure.ratio:8.2f}x {word:6} {sign} {figure.target:<6g} {mark:5} "
        f"vs {figure.peer}{'; ' + figure.note if figure.note else ''}"
    )


def record(figures: Sequence[Figure], about: dict[str, Any]) -> dict[str, Any]:
    """Return everything as JSON."""
    return {
        "machine": about,
        "figures": [
            {**asdict(f), "ratio": round(f.ratio, 4), "reached": f.reached} for f in figures
        ],
    }


def plot(figures: Sequence[Figure], about: dict[str, Any], path: Path) -> None:
    """Draw each ratio over its target, so that reaching it is the same line for all.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shares = [f.ratio / f.target if f.faster else f.target / f.ratio for f in figures]
    colours = ["#2a9d8f" if f.reached else "#e76f51" for f in figures]
    labels = [f"{f.name}\nvs {f.peer}: {f.ratio:.3g}x" for f in figures]
    fig, axes = pyplot.subplots(figsize=(9, 0.55 * len(figures) + 1.4))
    axes.barh(range(len(figures)), shares, color=colours)
    axes.set_yticks(range(len(figures)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("measured against target (right of the line: reached)")
    axes.set_title(heading(about), fontsize=8)
    fig.tight_layout()
    fig.savefig(path, dpi=150)
    pyplot.close(fig)
