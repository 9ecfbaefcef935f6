"""Merging into GGUF: the bits of the reference, in the order that llama.cpp wants."""

from __future__ import annotations

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_edge.demo.synthetic import trained_adapter
from nola_edge.files.gguf import GgufFile
from nola_edge.gguf import merge_gguf, verify_gguf
from nola_edge.gguf.quantization import numbers_of
from nola_edge.merge import windows
from nola_edge.merge.low_rank import Term, make_update
from nola_edge.merge.target import Target
from tests.conftest import snapshot
from tests.gguf.encode import CODES, STRING, encode, llama_pairs, pair
from tests.reference import merge as reference

F = np.float32
HIDDEN, HEADS, KEY_HEADS = 64, 4, 2
BLOCK = "model.layers.{}."
NAMES = {
    "self_attn.q_proj": ("attn_q", (HIDDEN, HIDDEN)),
    "self_attn.k_proj": ("attn_k", (HIDDEN // 2, HIDDEN)),
    "self_attn.v_proj": ("attn_v", (HIDDEN // 2, HIDDEN)),
    "mlp.down_proj": ("ffn_down", (HIDDEN, 96)),
}
MODULES = {BLOCK.format(i) + name: shape for i in range(2) for name, (_, shape) in NAMES.items()}
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def stored_name(module):
    _, _, layer, *rest = module.split(".")
    return f"blk.{layer}.{NAMES['.'.join(rest)][0]}.weight"


def arrays_of(kind="F32", seed=1):
    """Return a small LLaMA's tensors; the matrices of its blocks have the type asked for."""
    rng = np.random.default_rng(seed)
    arrays = {"token_embd.weight": rng.standard_normal((50, HIDDEN)).astype(F)}
    for module, shape in MODULES.items():
        values = (rng.standard_normal(shape) * 0.1).astype(F)
        arrays[stored_name(module).replace("weight", "norm")] = np.ones(7, F)
        arrays[stored_name(module)] = (
            values.astype(DTYPES[kind]) if kind in DTYPES else quantized(values, kind)
        )
    return arrays


def quantized(values, kind):
    gguf = pytest.importorskip("gguf")
    data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    return kind, values.shape, data.tobytes()


def values_of(path, name):
    gguf = pytest.importorskip("gguf")
    with GgufFile.open(path) as file:
        info = file.tensors[name]
        data = np.empty((info.shape[0], info.nbytes // info.shape[0]), np.uint8)
        file.read_into(data.reshape(-1).data, info.start)
    return info.dtype, gguf.quants.dequantize(data, gguf.GGMLQuantizationType[info.dtype])


def adapter_of(**options):
    return trained_adapter(MODULES, **{"r": 4, "num_basis": 20, "seed": 5, **options})


def factors(adapter, module):
    held = adapter.modules[module]
    a, b = reference.factors(adapter.config, module, held.alpha, held.beta, *MODULES[module])
    if ".q_proj" in module or ".k_proj" in module:
        heads = HEADS if ".q_proj" in module else KEY_HEADS
        size = len(b) // heads
        order = [
            head * size + half * (size // 2) + i
            for head in range(heads)
            for i in range(size // 2)
            for half in (0, 1)
        ]
        b = b[order]
    return a, b


def wanted(values, adapter, module):
    a, b = factors(adapter, module)
    return reference.merge(values, b, a, adapter.scaling)


def write(path, arrays, pairs=None):
    path.write_bytes(encode(llama_pairs(HEADS, KEY_HEADS) if pairs is None else pairs, arrays))
    return path


@pytest.mark.parametrize("kind", DTYPES)
def test_the_bits_of_the_reference(kind, isa, tmp_path):
    arrays, adapter = arrays_of(kind), adapter_of()
    base = write(tmp_path / "base.gguf", arrays)
    before = snapshot(tmp_path)
    report = merge_gguf(base, adapter, tmp_path / "out.gguf")
    assert (report.merged, report.tensors) == (len(MODULES), len(arrays))
    expected = dict(arrays)
    for module in MODULES:
        name = stored_name(module)
        expected[name] = wanted(arrays[name], adapter, module)
        assert not np.array_equal(expected[name], arrays[name])
    assert (tmp_path / "out.gguf").read_bytes() == encode(llama_pairs(HEADS, KEY_HEADS), expected)
    assert report.nbytes == (tmp_path / "out.gguf").stat().st_size
    assert not report.survival
    assert {k: v for k, v in snapshot(tmp_path).items() if "out" not in k} == before


def test_bytes_that_no_adapter_changes_stay(tmp_path):
    arrays = arrays_of()
    arrays["other"] = ("Q4_K", (3, 256), bytes(i % 251 for i in range(432)))
    base = write(tmp_path / "base.gguf", arrays)
    module = BLOCK.format(1) + "self_attn.v_proj"
    adapter = trained_adapter({module: MODULES[module]}, r=4, num_basis=20, seed=5)
    merge_gguf(base, adapter, tmp_path / "out.gguf")
    old, new = base.read_bytes(), (tmp_path / "out.gguf").read_bytes()
    with GgufFile.open(base) as file:
        info = file.tensors[stored_name(module)]
    assert len(old) == len(new)
    assert old[: info.start] == new[: info.start]
    assert old[info.stop :] == new[info.stop :]
    assert old[info.start : info.stop] != new[info.start : info.stop]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_no_bit(threads, tmp_path):
    rng = np.random.default_rng(0)
    module, shape = "model.layers.0.self_attn.q_proj", (1024, 2048)  # several blocks of rows
    adapter = trained_adapter({module: shape}, r=4, num_basis=20, seed=5)
    values = rng.standard_normal(shape).astype(F)
    pytest.importorskip("gguf")
    for kind in ("F32", "Q8_0"):
        stored = values if kind == "F32" else quantized(values, kind)
        base = write(tmp_path / f"{kind}.gguf", {"blk.0.attn_q.weight": stored})
        one = merge_gguf(base, adapter, tmp_path / f"{kind}-one.gguf", num_threads=1)
        many = merge_gguf(base, adapter, tmp_path / f"{kind}-many.gguf", num_threads=threads)
        first, second = (tmp_path / f"{kind}-{name}.gguf" for name in ("one", "many"))
        assert first.read_bytes() == second.read_bytes()
        assert one.survival == many.survival


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_tensors_are_what_the_reference_quantiser_gives(kind, isa, tmp_path):
    gguf = pytest.importorskip("gguf")
    arrays, adapter = arrays_of(kind), adapter_of()
    base = write_any(tmp_path / "base.gguf", arrays)
    report = merge_gguf(base, adapter, tmp_path / "out.gguf")
    sums = np.zeros(3)
    code = gguf.GGMLQuantizationType[kind]
    for module in MODULES:
        name = stored_name(module)
        _, before = values_of(base, name)
        merged = wanted(before, adapter, module)
        found_kind, found = values_of(tmp_path / "out.gguf", name)
        assert found_kind == kind
        requantized = gguf.quants.dequantize(gguf.quants.quantize(merged, code), code)
        assert np.array_equal(found, requantized)
        change, got = (values.astype(float) - before for values in (merged, found))
        here = np.array([np.sum(change**2), np.sum(got * change), np.sum(got**2)])
        assert report.survival[name] == pytest.approx(here)
        part = here[1] / here[0]
        assert report.survival[name].part == pytest.approx(part)
        noise = np.linalg.norm(got - part * change) / np.linalg.norm(change)
        assert report.survival[name].noise == pytest.approx(noise)
        sums += here
    assert report.overall == pytest.approx(sums)


def write_any(path, arrays):
    """Write with the gguf package, which knows every type."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    for name, array in arrays.items():
        if isinstance(array, tuple):
            kind, shape, data = array
            rows = np.frombuffer(data, np.uint8).reshape(shape[0], -1)
            writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_coarser_types_keep_less_of_the_delta(tmp_path):
    """A small change drowns in four bits and lives in eight."""
    small = adapter_of()
    small = small.replace({m: (c.alpha, c.beta / 4) for m, c in small.modules.items()})
    survival = {}
    for kind in ("Q8_0", "Q5_0", "Q4_0"):
        base = write_any(tmp_path / f"{kind}.gguf", arrays_of(kind))
        survival[kind] = merge_gguf(base, small, tmp_path / f"{kind}-out.gguf").overall
    assert survival["Q8_0"].part > survival["Q5_0"].part > survival["Q4_0"].part >= 0
    assert 0 < survival["Q8_0"].noise < survival["Q5_0"].noise


@pytest.mark.parametrize("outtype", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("kind", ["F16", "Q4_0", "Q4_K"])
def test_another_type_for_merged_tensors(kind, outtype, tmp_path):
    gguf = pytest.importorskip("gguf")
    arrays = arrays_of("F16" if kind == "Q4_K" else kind)
    adapter = adapter_of()
    if kind == "Q4_K":  # nothing in Python writes it: scales of random bytes, rows of one block
        rng = np.random.default_rng(0)
        module = BLOCK.format(0) + "mlp.down_proj"
        adapter = trained_adapter({module: (8, 256)}, r=4, num_basis=20, seed=5)
        block = rng.integers(0, 255, (8, 144), np.uint8)
        block[:, :4] = np.array([0.01, 0.02], np.float16).view(np.uint8)
        arrays[stored_name(module)] = ("Q4_K", (8, 256), block.tobytes())
    base = write_any(tmp_path / "base.gguf", arrays)
    merge_gguf(base, adapter, tmp_path / "out.gguf", outtype=outtype)
    code = gguf.GGMLQuantizationType[outtype]
    for module in adapter.modules:
        name = stored_name(module)
        _, before = values_of(base, name)
        held = adapter.modules[module]
        if kind == "Q4_K":
            a, b = reference.factors(adapter.config, module, held.alpha, held.beta, 8, 256)
        else:
            a, b = factors(adapter, module)
        merged = reference.merge(before, b, a, adapter.scaling)
        found_kind, found = values_of(tmp_path / "out.gguf", name)
        assert found_kind == outtype
        if outtype in DTYPES:
            expected = merged.astype(DTYPES[outtype]).astype(F)
        else:
            expected = gguf.quants.dequantize(gguf.quants.quantize(merged, code), code)
        assert np.array_equal(found, expected)
    with GgufFile.open(base) as old, GgufFile.open(tmp_path / "out.gguf") as new:
        assert new.metadata == old.metadata
        assert list(new.tensors) == list(old.tensors)
        for name in set(old.tensors) - {stored_name(module) for module in adapter.modules}:
            one, other = old.tensors[name], new.tensors[name]
            left, right = bytearray(one.nbytes), bytearray(other.nbytes)
            old.read_into(memoryview(left), one.start)
            new.read_into(memoryview(right), other.start)
            assert (one.dtype, one.shape, left) == (other.dtype, other.shape, right)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")  # the library agrees about the layout
    assert [t.name for t in reader.tensors] == list(arrays)


def test_several_adapters_with_weights(tmp_path):
    arrays = arrays_of("F16")
    base = write(tmp_path / "base.gguf", arrays)
    first, second = adapter_of(), adapter_of(seed=9, r=8)
    merge_gguf(base, [(first, 0.7), (second, 0.3)], tmp_path / "out.gguf")
    expected = dict(arrays)
    for module in MODULES:
        parts = [(factors(x, module), w * x.scaling) for x, w in ((first, 0.7), (second, 0.3))]
        a = np.concatenate([a for (a, _), _ in parts])
        b = np.concatenate([b * F(s) for (_, b), s in parts], axis=1)
        name = stored_name(module)
        expected[name] = reference.merge(arrays[name], b, a, 1.0)
    assert (tmp_path / "out.gguf").read_bytes() == encode(llama_pairs(HEADS, KEY_HEADS), expected)


@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_any_rows_of_an_interleaved_update(heads, half, data):
    module, shape = "m", (heads * 2 * half, 7)
    adapter = trained_adapter({module: shape}, r=3, num_basis=5, seed=1)
    update, interleaved = (
        make_update((Term(adapter, module, 1.0, target),), shape, (0, shape[1]))
        for target in (
            Target.whole(module, shape, transposed=False, head_rows=head_rows)
            for head_rows in (None, 2 * half)
        )
    )
    whole = interleaved.left(0, shape[0])
    start = data.draw(st.integers(0, shape[0] - 1))
    stop = data.draw(st.integers(start, shape[0]))
    part = interleaved.left(start, stop)
    assert part.flags.c_contiguous
    assert np.array_equal(part, whole[start:stop])
    for row in range(shape[0]):  # row 2i + j of a head is its row j * half + i in the model
        head, rest = divmod(row, 2 * half)
        original = head * 2 * half + (rest % 2) * half + rest // 2
        assert np.array_equal(whole[row], update.left(original, original + 1)[0])


@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    """A file of 200 MB is merged in a few blocks of rows."""
    module, shape = "model.layers.0.mlp.down_proj", (12_500, 8192)
    adapter = trained_adapter({module: shape}, r=4, num_basis=8, seed=5)
    base = write(tmp_path / "base.gguf", {"blk.0.ffn_down.weight": np.zeros(shape, np.float16)})
    merge_gguf(base, adapter, tmp_path / "warm.gguf", num_threads=2)
    tracemalloc.start()
    merge_gguf(base, adapter, tmp_path / "out.gguf", num_threads=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30_000_000


def test_every_type_has_a_code_in_the_tests():
    from nola_edge.files.gguf_types import TENSOR_TYPES

    assert all(TENSOR_TYPES[name].code == code for name, code in CODES.items())


@pytest.mark.parametrize(("kind", "outtype"), [("F16", None), ("Q4_0", None), ("F16", "Q8_0")])
def test_verify_knows_a_right_merge_from_a_wrong_one(kind, outtype, tmp_path):
    pytest.importorskip("gguf")
    adapter = adapter_of()
    base = write(tmp_path / "base.gguf", arrays_of(kind))
    out = tmp_path / "out.gguf"
    merge_gguf(base, adapter, out, outtype=outtype)
    report = verify_gguf(out, base, adapter)
    assert report.identical
    assert (report.merged, report.tensors) == (len(MODULES), len(arrays_of(kind)))
    assert not verify_gguf(base, base, adapter)
    assert not verify_gguf(out, base, adapter_of(seed=6))
    name = stored_name(BLOCK.format(1) + "mlp.down_proj")
    data = bytearray(out.read_bytes())
    with GgufFile.open(out) as file:
        position = file.tensors[name].start + 5
    data[position] ^= 1
    out.write_bytes(data)
    found = verify_gguf(out, base, adapter)
    assert [difference.tensor for difference in found.differences] == [name]
    data[position] ^= 1
    position = data.index(b"token 7")
    data[position : position + 7] = b"token 8"
    out.write_bytes(data)
    found = verify_gguf(out, base, adapter)
    assert found.differences == []
    assert [difference.problem for difference in found.files] == ["metadata"]


def test_verify_finds_missing_and_surplus_tensors(tmp_path):
    adapter = adapter_of()
    arrays = arrays_of()
    base = write(tmp_path / "base.gguf", arrays)
    del arrays["token_embd.weight"]
    arrays["more"] = np.ones(3, F)
    arrays["blk.0.attn_v.norm"] = np.ones(8, F)
    found = verify_gguf(write(tmp_path / "out.gguf", arrays), base, adapter).differences
    problems = {difference.tensor: difference.problem for difference in found}
    assert problems["token_embd.weight"] == "missing"
    assert problems["more"] == "unexpected"
    assert problems["blk.0.attn_v.norm"] == "shape"


def test_a_long_header_is_not_brought_into_memory(tmp_path):
    arrays = arrays_of()
    module = BLOCK.format(0) + "self_attn.v_proj"
    adapter = trained_adapter({module: MODULES[module]}, r=4, num_basis=20, seed=5)
    pairs = [*llama_pairs(HEADS, KEY_HEADS), pair("long", STRING, "x" * 60_000_000)]
    base = write(tmp_path / "base.gguf", arrays, pairs)
    tracemalloc.start()
    merge_gguf(base, adapter, tmp_path / "out.gguf", num_threads=1)
    assert verify_gguf(tmp_path / "out.gguf", base, adapter, num_threads=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30_000_000
    data = bytearray((tmp_path / "out.gguf").read_bytes())
    data[50_000_000] ^= 1
    (tmp_path / "out.gguf").write_bytes(data)
    assert not verify_gguf(tmp_path / "out.gguf", base, adapter)


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0"])
def test_rows_that_nothing_changes_keep_their_bytes(kind, tmp_path):
    """Even where the reference quantiser would have chosen other codes for the same values."""
    arrays = arrays_of(kind)
    name = "blk.0.attn_v.weight"
    stored, shape, data = arrays[name]
    codes = bytearray(data)
    for start in range(0, len(codes), len(codes) // shape[0] // 2):
        codes[start + 4] = 0x77  # whatever they mean, they are somebody's choice
    arrays[name] = (stored, shape, bytes(codes))
    base = write_any(tmp_path / "base.gguf", arrays)
    fresh = adapter_of()
    fresh = fresh.replace({m: (c.alpha, c.beta * 0) for m, c in fresh.modules.items()})
    report = merge_gguf(base, fresh, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == base.read_bytes()
    assert report.overall.part is report.overall.noise is None
    assert all(kept.part is None for kept in report.survival.values())
    assert verify_gguf(tmp_path / "out.gguf", base, fresh)


def test_verify_says_different_of_a_file_quantised_by_other_means(tmp_path):
    pytest.importorskip("gguf")
    module = BLOCK.format(0) + "mlp.down_proj"
    name = stored_name(module)
    adapter = trained_adapter({module: (8, 256)}, r=4, num_basis=20, seed=5)
    plain = write(tmp_path / "plain.gguf", {name: np.ones((8, 256), np.float16)})
    quantised = write(tmp_path / "q.gguf", {name: ("Q4_K", (8, 256), bytes(8 * 144))})
    for candidate, base in ((quantised, plain), (quantised, quantised), (plain, quantised)):
        found = verify_gguf(candidate, base, adapter).differences
        assert [difference.tensor for difference in found] == [name]


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("module", ["q_proj", "v_proj"])
def test_strips_of_columns_do_not_show(tmp_path, monkeypatch, kind, module):
    """Where the factors are large; rows are interleaved in one of the tensors."""
    pytest.importorskip("gguf")
    names = {"q_proj": "blk.0.attn_q.weight", "v_proj": "blk.0.attn_v.weight"}
    rng = np.random.default_rng(1)
    shape = (64, 160)
    rows = rng.standard_normal(shape).astype(F)
    stored = rows.astype(np.float16)
    if kind != "F16":
        stored = (kind, shape, numbers_of(kind).encode(rows).tobytes())
    base = write(tmp_path / "base.gguf", {names[module]: stored}, llama_pairs(4, 4))
    modules = {f"model.layers.0.self_attn.{module}": shape}
    adapter = trained_adapter(modules, r=5, num_basis=9, seed=2)
    merge_gguf(base, adapter, tmp_path / "whole.gguf")
    monkeypatch.setattr(windows, "_STRIP_BYTES", 1)
    monkeypatch.setattr(windows, "_ALIGNMENT", 24)
    monkeypatch.setattr(windows, "_BLOCK_ALIGNMENT", 32)
    monkeypatch.setattr(windows, "BLOCK_BYTES", 700)
    merge_gguf(base, adapter, tmp_path / "strips.gguf", num_threads=3)
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "strips.gguf").read_bytes()
    assert verify_gguf(tmp_path / "whole.gguf", base, adapter).identical
    assert not verify_gguf(base, base, adapter).identical
