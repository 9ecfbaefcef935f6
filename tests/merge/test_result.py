"""What a plan says of each tensor of its result, in pieces: made in any order, on any thread."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.dtypes import safetensors_dtype
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.gguf import GgufFile
from nola_edge.gguf import merge_gguf, requantize
from nola_edge.gguf.plan import plan_gguf
from nola_edge.gguf.requantize import Requantized
from nola_edge.merge import result as result_module
from nola_edge.merge import windows
from nola_edge.merge.merged import Merged, pieces_of_all
from nola_edge.merge.plan import load_adapters, plan_merge
from nola_edge.merge.result import Stored, Whole, fill
from nola_edge.workers import Workers
from tests.conftest import load_all, with_whole, write_safetensors, write_sharded
from tests.gguf.encode import encode, llama_pairs
from tests.gguf.test_merge import HEADS, KEY_HEADS, adapter_of, arrays_of
from tests.lora_folders import factors, with_magnitudes, write_lora

F = np.float32
KINDS = {"stored": Stored, "whole": Whole, "nola": Merged, "lora": Merged, "dora": Merged}


def made(result, order, threads=1):
    """Return the bytes of a tensor, its pieces made in some order, and check that they tile it."""
    pieces = list(result.pieces(threads))
    order.shuffle(pieces)
    found = {}

    def make(piece):
        data = bytes(piece.make(memoryview(bytearray(piece.nbytes))))
        assert len(data) == piece.runs.nbytes
        return [(offset, bytes(part)) for offset, part in piece.runs.parts(memoryview(data))]

    with ThreadPoolExecutor(threads) as pool:
        for parts in pool.map(make, pieces):
            for offset, part in parts:
                assert offset not in found
                found[offset] = part
    whole = b""
    for offset in sorted(found):
        assert offset == len(whole)
        whole += found[offset]
    return whole


def small_blocks(patch, data):
    """Cut tensors of a few kilobytes into many pieces."""
    nbytes = data.draw(st.integers(1, 5000))
    patch.setattr(windows, "BLOCK_BYTES", nbytes)
    patch.setattr(result_module, "BLOCK_BYTES", nbytes)
    patch.setattr(result_module, "BLOCK_ELEMENTS", data.draw(st.integers(1, 500)))
    patch.setattr(windows, "_STRIP_BYTES", data.draw(st.integers(1, 500)))
    patch.setattr(windows, "_ALIGNMENT", data.draw(st.integers(1, 40)))


def any_case(folder, data):
    """Write a base whose tensors have any of several fates; return adapters and the fates."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
    fates = data.draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=6))
    fates = {f"m{i}": kind for i, kind in enumerate([*fates, "nola"])}
    shapes = {module: data.draw(sizes) for module in fates}
    dtype = data.draw(st.sampled_from([np.float16, np.float32]))
    tensors = {f"{m}.weight": rng.standard_normal(s).astype(dtype) for m, s in shapes.items()}
    tensors["empty"] = np.empty((0, 3), dtype)
    write_sharded(folder / "base", tensors, data.draw(st.integers(1, len(shapes))))

    def of(kind):
        return {module: shapes[module] for module, fate in fates.items() if fate == kind}

    adapter = trained_adapter(of("nola"), r=2, num_basis=5, seed=3)
    whole = {f"{m}.weight": rng.standard_normal(s).astype(F) for m, s in of("whole").items()}
    whole["new.weight"] = rng.standard_normal((5, 7)).astype(F)
    adapters = [with_whole(adapter, **whole)]
    for kind in ("lora", "dora"):
        if of(kind):
            tensors = factors(of(kind))
            tensors = with_magnitudes(tensors, 4) if kind == "dora" else tensors
            fields = {"use_dora": kind == "dora", "target_modules": sorted(of(kind))}
            adapters.append(write_lora(folder / kind, tensors, **fields))
    return adapters, {f"{m}.weight": KINDS[fate] for m, fate in fates.items()}


@settings(max_examples=20)
@given(data=st.data(), order=st.randoms(use_true_random=False))
def test_every_result_is_what_is_written_opened_and_filled(tmp_path_factory, data, order):
    folder = tmp_path_factory.mktemp("any")
    adapters, kinds = any_case(folder, data)
    kinds |= {"empty": Stored, "new.weight": Whole}
    ne.merge_checkpoint(folder / "base", adapters, folder / "out")
    written = load_all(folder / "out")
    threads = data.draw(st.integers(1, 4))
    with pytest.MonkeyPatch.context() as patch, Checkpoint.open(folder / "base") as base:
        small_blocks(patch, data)
        plan = plan_merge(base, load_adapters(adapters))
        assert set(plan.names) == set(written) == set(kinds)
        for name, wanted in written.items():
            result = plan.result(name)
            assert type(result) is kinds[name]
            assert (result.dtype, result.shape) == (safetensors_dtype(wanted.dtype), wanted.shape)
            assert made(result, order, threads) == wanted.tobytes()
            memory = bytearray(wanted.nbytes)
            with Workers(threads) as workers:
                fill(result, memoryview(memory), workers, threads)
            assert memory == wanted.tobytes()
        with ne.open_merged(folder / "base", adapters, num_threads=threads) as opened:
            assert all(opened[name].tobytes() == written[name].tobytes() for name in written)
        with pytest.raises(KeyError):
            plan.result("absent")


@settings(max_examples=20)
@given(data=st.data())
def test_results_of_one_tensor_are_read_once(tmp_path_factory, data):
    """Whatever their ranks, and beside one that is unchanged; none spoils what the others get."""
    folder = tmp_path_factory.mktemp("any")
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    write_safetensors(folder / "base.safetensors", {"m.weight": weight})
    ranks = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    adapters = [trained_adapter({"m": shape}, r=r, num_basis=4, seed=r) for r in ranks]
    whole = with_whole(trained_adapter({"n": (1, 1)}, r=1, num_basis=1), **{"m.weight": weight})
    with (
        pytest.MonkeyPatch.context() as patch,
        Checkpoint.open(folder / "base.safetensors") as base,
    ):
        small_blocks(patch, data)
        results = {
            number: plan_merge(base, load_adapters(adapter)).result("m.weight")
            for number, adapter in enumerate(adapters)
        }
        results["whole"] = Whole(whole.whole_tensors.tensors["m.weight"])
        results["stored"] = Stored(*base.tensors["m.weight"])
        read, memory = Counter(), {key: bytearray(weight.nbytes) for key in results}
        for pieces in pieces_of_all(results, 2):
            assert len(pieces) == (1 if "whole" in pieces else len(ranks) + 1)
            first = next(iter(pieces.values()))
            data_read = first.read(memoryview(bytearray(first.nbytes)))
            before = bytes(data_read)
            for key, piece in pieces.items():
                assert piece.runs == first.runs
                changed = piece.change(data_read, memoryview(bytearray(len(before))))
                assert bytes(data_read) == before
                for offset, part in piece.runs.parts(changed):
                    memory[key][offset : offset + len(part)] = part
                    read.update((key, offset + i) for i in range(len(part)))
        assert set(read.values()) == {1}
        assert read.total() == weight.nbytes * len(results)
    for number, adapter in enumerate(adapters):
        with ne.open_merged(folder / "base.safetensors", adapter) as opened:
            assert memory[number] == opened["m.weight"].tobytes()
    assert memory["whole"] == memory["stored"] == weight.tobytes()


@pytest.mark.parametrize("outtype", [None, "F16", "F32", "Q8_0"])
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_gguf(kind, outtype, tmp_path, monkeypatch):
    """The same for a GGUF file; what survives is added up in one order, whatever that was."""
    pytest.importorskip("gguf")
    base, adapter = tmp_path / "base.gguf", adapter_of()
    base.write_bytes(encode(llama_pairs(HEADS, KEY_HEADS), arrays_of(kind)))
    report = merge_gguf(base, adapter, tmp_path / "out.gguf", outtype=outtype)
    order = np.random.default_rng(0)
    for size in (1 << 18, 700):
        monkeypatch.setattr(requantize, "_WINDOW_ELEMENTS", size)
        with GgufFile.open(base) as file, GgufFile.open(tmp_path / "out.gguf") as out:
            plan = plan_gguf(file, load_adapters(adapter), outtype=outtype)
            assert plan.names == list(out.tensors)
            for name, info in out.tensors.items():
                result = plan.result(name)
                direct = (outtype or kind) == kind and kind in ("F32", "F16")
                changed = Merged if direct else Requantized
                assert type(result) is (changed if name in plan.merges else Stored)
                assert (result.dtype, result.shape) == (info.dtype, info.shape)
                data = bytearray(info.nbytes)
                out.read_into(memoryview(data), info.start)
                assert made(result, order, 3) == data
                if name in report.survival and size > 700:
                    assert result.survival == report.survival[name]
    assert bool(report.survival) == ((outtype or kind) not in ("F32", "F16"))
