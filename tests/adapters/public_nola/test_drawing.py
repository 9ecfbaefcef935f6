"""What is drawn is drawn once while there is room to keep it, and the room is bounded."""

import tracemalloc

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.adapters.public_nola import drawn_factors
from nola_edge.adapters.public_nola.contents import factors_of
from nola_edge.dtypes import numpy_dtype
from tests.adapters.public_nola.checkpoints import pair, write_folder
from tests.conftest import snapshot, write_safetensors


@pytest.mark.parametrize("num_threads", [1, 3])
def test_every_random_matrix_is_drawn_once(tmp_path, kind, num_threads):
    base, source, options = kind
    adapter = ne.load_adapter(source, **options)
    ne.export_lora(adapter, base, tmp_path / "sized")  # the base says how large all is
    adapter = ne.load_adapter(source, **options)
    drawn = []
    adapter.drawn.advance = drawn.append
    with ne.open_merged(base, adapter, num_threads=num_threads) as merged:
        for name in merged.plan.merges:
            merged[name]
    assert sum(drawn) == adapter.drawn.elements
    shared = {factor.basis for factor in factors_of(adapter.modules)}
    assert sum(drawn) == sum(basis_size(basis) for basis in shared)


def basis_size(basis):
    _, _, count, (rows, cols), _, _ = basis
    return count * rows * cols


def test_the_same_bits_where_nothing_can_be_kept(tmp_path, monkeypatch, kind):
    base, source, options = kind
    adapter = ne.load_adapter(source, **options)
    ne.export_lora(adapter, base, tmp_path / "kept")
    monkeypatch.setattr(drawn_factors, "KEPT_BYTES", 0)
    monkeypatch.setattr(drawn_factors, "_DRAWN_BYTES", 1)
    ne.export_lora(ne.load_adapter(source, **options), base, tmp_path / "drawn again")
    assert snapshot(tmp_path / "kept") == snapshot(tmp_path / "drawn again")


def test_memory_does_not_grow_with_the_model(tmp_path, monkeypatch):
    """Thirty factors of 256 kB each, of which two megabytes are kept."""
    monkeypatch.setattr(drawn_factors, "KEPT_BYTES", 2 << 20)
    rank, width = 64, 1024
    tensors, base = {}, {}
    for number in range(15):
        seeds = (number, number + 100)
        tensors |= pair(f"{PREFIX}layers.{number}", width, width, rank, 1, seeds)
        base[f"layers.{number}.weight"] = np.zeros((width, width), numpy_dtype("BF16"))
    write_folder(tmp_path / "in", tensors, r=rank, nola_num_basis=1)
    write_safetensors(tmp_path / "base.safetensors", base)
    adapter = ne.load_adapter(tmp_path / "in", drawn_on="cpu")
    tracemalloc.start()
    try:
        output = tmp_path / "out.safetensors"
        ne.merge_checkpoint(tmp_path / "base.safetensors", adapter, output, num_threads=1)
        current, peak = tracemalloc.get_traced_memory()
        del adapter
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert peak < 16_000_000
    assert 1_500_000 < current - left < 3_000_000
