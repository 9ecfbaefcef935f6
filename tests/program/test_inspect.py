"""`nola inspect` says what `nola-edge inspect` says, number by number."""

import json
from dataclasses import replace

import numpy as np
import pytest

from nola_edge import Adapter
from tests.conftest import tiny_adapter


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits": 8},
        {"bits": 4, "num_basis": 130},
        {"basis": "uniform", "num_basis": 7, "use_rslora": True},
        {"beta_unit": 2.5, "fan_in_fan_out": True},
    ],
    ids=str,
)
def test_the_same_of_each_kind(nola, python_tool, tmp_path, options):
    options = dict(options)
    bits = options.pop("bits", None)
    adapter = tiny_adapter(**options)
    if bits is not None:
        adapter = adapter.quantize(bits)
    path = tmp_path / "adapter.nola"
    adapter.pack(path)
    for more in ([], ["--modules"]):
        wanted = json.loads(python_tool("inspect", "--json", path, *more).stdout)
        found = json.loads(nola("inspect", "--json", path, *more).stdout)
        assert found == wanted
        assert list(found) == list(wanted)
        lines = python_tool("inspect", path, *more).stdout.splitlines()
        said = [line for line in lines if not line.startswith("compression")]
        assert nola("inspect", path, *more).stdout.splitlines() == said
    assert nola("inspect", "-q", path).stdout == ""


def test_numbers_of_any_distribution(nola, python_tool, tmp_path):
    """Also where all values are one, and where edges of bins are met."""
    base = tiny_adapter(num_basis=301)
    rng = np.random.default_rng(5)
    for number, values in enumerate((
        np.zeros(301), np.full(301, 0.1), np.arange(301) / 24, rng.standard_normal(301) * 1e-20,
    )):  # fmt: skip
        modules = {
            name: replace(c, alpha=values.astype(np.float32)) for name, c in base.modules.items()
        }
        path = tmp_path / f"{number}.nola"
        Adapter(base.config, modules).pack(path)
        wanted = json.loads(python_tool("inspect", "--json", path).stdout)
        assert json.loads(nola("inspect", "--json", path).stdout) == wanted


def test_refusals(nola, python_tool, tmp_path):
    path = tmp_path / "adapter.nola"
    tiny_adapter().pack(path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert nola.refused("inspect", path) == python_tool.refused("inspect", path)
    nothing = tmp_path / "nothing"
    assert nola.refused("inspect", nothing) == python_tool.refused("inspect", nothing)
    assert "nola-edge pack" in nola.refused("inspect", tmp_path)
