"""What would be too large to be read is not written, and nothing of it is left."""

import dataclasses

import pytest

from nola_edge import Adapter
from nola_edge.adapters import packed
from nola_edge.adapters.nola_config import MAX_NUM_BASIS
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import AdapterError, OutputError

MODULES = {"a": (4, 4), "b": (4, 4), "c": (4, 4)}


def test_a_configuration(tmp_path):
    adapter = trained_adapter(MODULES, r=1, num_basis=1)
    names = [f"{number:0100}" for number in range(10_000)]
    config = dataclasses.replace(adapter.config, bookkeeping={"target_modules": names})
    large = Adapter(config, adapter.modules)
    for write in (large.save, large.pack):
        with pytest.raises(OutputError, match="more than the limit of 1000000"):
            write(tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_modules_of_a_packed_file(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_MAX_MODULES", 2)
    with pytest.raises(OutputError, match="3 modules exceed the limit of 2"):
        trained_adapter(MODULES, r=1, num_basis=1).pack(tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_an_adapter_for_every_expert_names_its_targets_by_their_last_parts(tmp_path):
    modules = {f"layers.0.experts.{n}.{p}": (2, 2) for n in range(5000) for p in ("up", "down")}
    trained_adapter(modules, r=1, num_basis=1).save(tmp_path / "adapter")
    loaded = Adapter.load(tmp_path / "adapter")
    assert loaded.config.bookkeeping["target_modules"] == ["down", "up"]
    assert list(loaded.modules) == list(modules)


def test_coefficients():
    for field in ("num_basis_a", "num_basis_b"):
        with pytest.raises(AdapterError, match=f"{field}.*1..{MAX_NUM_BASIS}"):
            Adapter.create(
                MODULES,
                **{"num_basis_a": 1, "num_basis_b": 1, field: MAX_NUM_BASIS + 1},
                r=1,
                seed=1,
                lora_alpha=1,
            )
