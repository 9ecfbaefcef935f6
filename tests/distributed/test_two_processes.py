"""Two processes train what one does, and merge their parts to the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch.distributed.tensor.placement_types import Partial, Replicate, Shard, _StridedShard

import nola_edge.torch as nt
from nola_edge import Adapter
from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.adapters.quantize import rounded
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.peft import NolaConfig
from nola_edge.torch.sharding import _is_one_window
from tests.distributed import worker
from tests.integrations.test_transformers import decoder, shapes_of
from tests.lora_folders import factors, with_magnitudes, write_lora

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[2]


def run_two(mode, folder):
    """Start two processes with torchrun; return what each wrote."""
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
            "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
            "-m", "tests.distributed.worker", mode, str(folder),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{mode}-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    """One process with the whole batch."""
    model = get_peft_model(worker.make(), NolaConfig(**worker.CONFIG))
    losses = worker.train(model, slice(None))
    found = worker.coefficients(model)
    assert all(v.abs().max() > 1e-3 for v in found.values()), "nothing was trained"
    return {"losses": losses, "coefficients": found, "model": model}


def check_training(results, alone):
    for result in results:
        torch.testing.assert_close(
            torch.stack(result["losses"]), torch.stack(alone["losses"]), rtol=1e-5, atol=1e-6
        )
        for name, values in alone["coefficients"].items():
            torch.testing.assert_close(result["coefficients"][name], values, rtol=1e-4, atol=1e-5)
    first, second = (r["coefficients"] for r in results)
    assert all(torch.equal(first[name], second[name]) for name in first), "the copies drift apart"


def merged_by_one(found):
    """The single-process merge of the same coefficients."""
    model = get_peft_model(worker.make(), NolaConfig(**worker.CONFIG))
    with torch.no_grad():
        for name, values in found.items():
            model.get_parameter(name).copy_(values)
    return worker.weights(model.merge_and_unload())


def test_data_parallel(alone, tmp_path):
    check_training(run_two("data_parallel", tmp_path), alone)


def test_an_aligned_start(tmp_path):
    """What one process finds with the whole batch; the same to the bit in both."""
    one, other = run_two("aligned_start", tmp_path)
    model = get_peft_model(worker.make(), NolaConfig(**worker.CONFIG))
    pairs = list(zip(*worker.data(), strict=True))
    gains = nt.align_start(model, pairs, loss=worker.square, progress=False)
    for name, values in one["coefficients"].items():
        assert torch.equal(values, other["coefficients"][name])
        assert values.norm() == pytest.approx(float(worker.coefficients(model)[name].norm()))
    assert one["gains"] == pytest.approx(gains, rel=1e-3)
    assert "is split over processes; call align_start before" in one["refused"]


@pytest.mark.parametrize("mode", ["fully_sharded", "tensor_parallel"])
def test_sharded_parameters(mode, alone, tmp_path):
    results = run_two(mode, tmp_path)
    check_training(results, alone)
    for result in results:
        expected = merged_by_one(result["coefficients"])
        assert result["merged"].keys() == expected.keys()
        for name, values in expected.items():
            assert torch.equal(result["merged"][name], values), name
    if mode == "tensor_parallel":
        assert [r["rows"] for r in results] == [(0, 20), (20, 40)]
        assert all(r["expanded"] == (20, 4) for r in results), "more than its own rows"


def test_another_tensor_parallel_layout_is_refused(tmp_path):
    for result in run_two("other_layout", tmp_path):
        assert "default layouts" in result["refused"]


def test_sharded_coefficients_are_saved_whole(tmp_path):
    results = run_two("save_sharded", tmp_path)
    names = ("saved-0", "saved-1", "gathered-0", "gathered-1")
    first, *others = (Adapter.load(tmp_path / name) for name in names)
    for module, saved in first.modules.items():
        for other in others:
            assert np.array_equal(saved.beta, other.modules[module].beta)
        alpha, beta = (
            results[0]["coefficients"][f"base_model.model.{module}.nola_{factor}.default"].numpy()
            for factor in ("alpha", "beta")
        )
        assert np.array_equal(saved.alpha, rounded(alpha, 4, exact_first=True))
        assert np.array_equal(saved.beta, rounded(beta, 4))


def test_shards_merge_to_the_bits_of_the_whole(tmp_path):
    torch.manual_seed(0)
    model = worker.make()
    for path, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            parent, _, name = path.rpartition(".")
            wrapped = nt.NolaLinear(layer, path, r=5, num_basis_a=40, num_basis_b=33, seed=4)
            torch.nn.init.normal_(wrapped.beta)
            setattr(model.get_submodule(parent), name, wrapped)
    adapter = nt.to_adapter(model)
    adapter.save(tmp_path / "adapter")
    for result in run_two("merge_shards", tmp_path):
        for refused in result["refused"]:
            assert "blocks.1.down.weight: is split over processes in pieces" in refused
        for (dtype, dim), values in result["merged"].items():
            whole = worker.make(getattr(torch, dtype.removeprefix("torch.")))
            before = worker.weights(whole)
            assert len(nt.merge_(whole, adapter)) == 4
            for name, expected in worker.weights(whole).items():
                assert torch.equal(values[name], expected), (dtype, dim, name)
                assert torch.equal(before[name], expected) == name.endswith("bias")


def write_family(folder):
    """Write LoRA that adds to biases, LoRA with a whole weight, and DoRA."""
    up = {f"blocks.{i}.up": (40, 24) for i in range(2)}
    down = {f"blocks.{i}.down": (24, 40) for i in range(2)}
    rng = np.random.default_rng(1)
    biased = {f"{PREFIX}{m}.lora_B.bias": rng.standard_normal(40).astype(np.float32) for m in up}
    write_lora(folder / "biases", {**factors(up), **biased}, lora_bias=True)
    held = {f"{PREFIX}blocks.1.down.weight": rng.standard_normal((24, 40)).astype(np.float32)}
    write_lora(folder / "whole", {**factors(up), **held}, modules_to_save=["blocks.1.down"])
    write_lora(folder / "dora", with_magnitudes(factors({**up, **down})), use_dora=True)


def test_shards_of_the_lora_family(tmp_path):
    """DoRA needs whole outputs: it is refused where these are split, and nothing is changed."""
    write_family(tmp_path)
    for result in run_two("merge_family_shards", tmp_path):
        for case, (refused, values) in result.items():
            whole = worker.make(torch.bfloat16)
            if case == "dora, 1":
                assert "split over processes along its inputs, and DoRA" in refused
            else:
                nt.merge_(whole, tmp_path / case.partition(",")[0])
            for name, expected in worker.weights(whole).items():
                assert torch.equal(values[name], expected), (case, name)


def test_a_model_that_transformers_splits_while_loading(tmp_path):
    model = decoder()
    model.save_pretrained(tmp_path / "base")
    adapter = trained_adapter(shapes_of(model, "_proj."), r=4, num_basis=20, seed=3)
    adapter.save(tmp_path / "adapter")
    nt.merge_(model, adapter)
    expected = worker.weights(model)
    for result in run_two("load_shards", tmp_path):
        assert {f"{module}.weight" for module in adapter.modules} <= set(result["split"])
        assert result["merged"].keys() == expected.keys()
        for name, values in expected.items():
            assert torch.equal(result["merged"][name], values), name


def test_which_splits_are_one_block():
    """Against the rows that each process of a mesh holds, as torch cuts them."""
    one, packed, added = (
        Shard(0),
        _StridedShard(0, split_factor=2),
        _StridedShard(0, split_factor=4),
    )
    for sizes, placements, expected in (
        ((2,), (one,), True),
        ((2,), (Replicate(),), True),
        ((2,), (packed,), False),
        ((1,), (packed,), True),
        ((2,), (Partial(),), False),
        ((2, 2), (packed, one), True),  # FSDP2 on top of tensor parallelism
        ((2, 2), (packed, Shard(1)), False),
        ((2, 2), (added, one), False),
        ((2, 2), (one, packed), False),
        ((2, 2), (added, packed), False),  # the same, of a packed layer
        ((2, 2), (one, one), True),
    ):
        assert _is_one_window(sizes, placements, 2) == expected, placements
        if not any(p.is_partial() for p in placements):
            rows = [held(sizes, placements, at) for at in np.ndindex(*sizes)]
            whole = all(kept == list(range(kept[0], kept[0] + len(kept))) for kept in rows)
            assert whole == expected, placements


def held(sizes, placements, at):
    """Return which of 16 rows a process holds, by its place in the mesh."""
    kept = torch.arange(16)[:, None].expand(16, 8)
    for dim in range(len(sizes)):
        if isinstance(placements[dim], Replicate):
            continue
        pieces, _ = placements[dim]._split_tensor(kept, sizes[dim], with_padding=False)
        kept = pieces[at[dim]]
    return kept[:, 0].tolist()
