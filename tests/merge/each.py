"""Adapters for one base, as tests of ``merge_each`` want them."""

from __future__ import annotations

import subprocess
import sys

import nola_edge as ne
from nola_edge import Adapter
from nola_edge.demo.synthetic import trained_adapter
from tests.conftest import MODULES, snapshot, tiny_adapter


def only(adapter, *modules):
    return Adapter(adapter.config, {name: adapter.modules[name] for name in modules})


def transposed():
    """An adapter for a module that is stored as (in, out)."""
    rows, cols = MODULES["layers.0.v"]
    return trained_adapter(
        {"layers.0.v": (cols, rows)}, r=3, num_basis=9, seed=8, fan_in_fan_out=True
    )


def one_by_one(base, adapters, folder, suffix=""):
    folder.mkdir()
    for name, adapter in adapters.items():
        alone = adapter if isinstance(adapter, list) else [adapter]
        ne.merge_checkpoint(base, alone, folder / f"{name}{suffix}")
    return snapshot(folder)


def saved(tmp_path, count=3):
    """Adapters on disk, each for other modules than its neighbours."""
    for i in range(count):
        modules = list(MODULES)[: 1 + i % 3]
        only(tiny_adapter(seed=20 + i), *modules).save(tmp_path / f"a{i}")
    return [tmp_path / f"a{i}" for i in range(count)]


def seeds(count):
    return {f"a{seed}": tiny_adapter(seed=seed) for seed in range(count)}


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "nola_edge", *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,
    )
