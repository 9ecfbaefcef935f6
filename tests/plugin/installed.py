"""Small distributions, installed into a folder as pip would."""

from __future__ import annotations

import shutil
from pathlib import Path

from nola_edge.adapters.methods import GROUP

RANK_ONE = Path(__file__).parent / "rank_one.py"


def install(site, package, method, value, source=None):
    """Write a distribution whose entry point reads a method; `source` is its module's text."""
    info = site / f"{package.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{method} = {value}\n")
    if source is not None:
        (site / f"{value.partition(':')[0]}.py").write_text(source)
    return site


def install_rank_one(site):
    """Install the package that brings the method RANK_ONE."""
    install(site, "rank-one", "RANK_ONE", "rank_one:RankOneAdapter")
    shutil.copy(RANK_ONE, site)
    return site
