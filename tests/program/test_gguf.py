"""`nola merge` into GGUF files writes the bytes of the Python tool's, or says what that says."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nola_edge.demo.synthetic import trained_adapter
from nola_edge.gguf import verify_gguf
from tests.conftest import ISAS
from tests.gguf.encode import STRING, encode, llama_pairs, pair
from tests.gguf.test_merge import BLOCK, MODULES, adapter_of, arrays_of, stored_name, write
from tests.program.conftest import Both

pytest.importorskip("gguf")

KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


class Merge(Both):
    """Merges with both tools."""

    def __call__(self, base, *adapters, options=(), **variables):
        """Return what both write, having compared what they say, but for times and advice."""
        command = ["merge", base, *adapters, *options]
        content, said = self.written(*command, output="out.gguf", **variables)
        lines = [stdout.partition(" in ")[0] + stdout.partition("\n")[2] for stdout, _ in said]
        warnings = [
            [line.partition(". To keep more")[0] for line in stderr.splitlines()]
            for _, stderr in said
        ]
        assert lines[0] == lines[1]
        assert warnings[0] == warnings[1]
        return content

    def refuse(self, base, *adapters, options=(), output="out.gguf"):
        """Return what both say."""
        return self.refused("merge", base, *adapters, "-o", self.folder / output, *options)


@pytest.fixture
def merge(nola, python_tool, tmp_path):
    return Merge(nola, python_tool, tmp_path)


def packed(adapter, path, **options):
    adapter.pack(path, **options)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_type(merge, tmp_path, kind):
    base = write(tmp_path / "base.gguf", arrays_of(kind))
    adapter = packed(adapter_of(), tmp_path / "a.nola")
    (tmp_path / "merged.gguf").write_bytes(merge(base, adapter))
    assert verify_gguf(tmp_path / "merged.gguf", base, adapter).identical
    other = packed(adapter_of(r=7, seed=3, use_rslora=True), tmp_path / "b.nola")
    merge(base, adapter, f"{other}=-0.5")
    merge(base, f"{adapter}=0")
    few = {name: shape for name, shape in MODULES.items() if "0.mlp" in name}
    merge(base, packed(trained_adapter(few, r=3, num_basis=8), tmp_path / "c.nola"), adapter)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["BF16", "Q4_1"])
def test_every_instruction_set_and_number_of_threads(merge, tmp_path, kind, isa):
    base = write(tmp_path / "base.gguf", arrays_of(kind))
    adapter = packed(adapter_of(r=8, num_basis=60), tmp_path / "a.nola")
    for threads in ("1", "3"):
        merge(base, adapter, options=["--threads", threads], NOLA_EDGE_ISA=isa)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture],
          deadline=None)  # fmt: skip
@given(
    kind=st.sampled_from(KINDS),
    heads=st.sampled_from([(1, 1), (2, 2), (3, 1), (8, 4)]),
    half=st.integers(1, 40),
    blocks=st.integers(1, 20),
    r=st.integers(1, 70),
    seed=st.integers(0, 1 << 32),
)
def test_any_shape(nola, python_tool, tmp_path_factory, kind, heads, half, blocks, r, seed):
    """Windows of rows that end within heads, among others."""
    folder = tmp_path_factory.mktemp("shapes")
    shapes = {
        f"{BLOCK.format(0)}self_attn.{name}_proj": (2 * half * count, 32 * blocks)
        for name, count in zip("qk", heads, strict=True)
    }
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in zip(("attn_q", "attn_k"), shapes.values(), strict=True):
        values = (rng.standard_normal(shape) * 0.05).astype(np.float32)
        arrays[f"blk.0.{name}.weight"] = stored(values, kind)
    base = folder / "base.gguf"
    base.write_bytes(encode(llama_pairs(*heads), arrays))
    adapter = packed(trained_adapter(shapes, r=r, num_basis=5, seed=seed), folder / "a.nola")
    ends = []
    for number, tool in enumerate((python_tool, nola)):
        done = tool("merge", base, adapter, "-o", folder / f"{number}.gguf")
        out = folder / f"{number}.gguf"
        ends.append((done.returncode, out.read_bytes() if out.exists() else done.stderr))
    assert ends[0] == ends[1]


def stored(values, kind):
    import gguf

    if kind in ("F32", "F16", "BF16"):
        return values.astype({"F32": np.float32, "F16": np.float16}.get(kind, ml_dtypes.bfloat16))
    data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    return kind, values.shape, data.tobytes()


def test_large_tensors(merge, tmp_path):
    """Several windows, and several strips of a high rank."""
    shapes = {BLOCK.format(0) + "self_attn.q_proj": (512, 4096), "lm_head": (2000, 4096)}
    rng = np.random.default_rng(2)
    for kind in ("F16", "Q5_1"):
        arrays = {
            name: stored(rng.standard_normal(shape).astype(np.float32), kind)
            for name, shape in zip(("blk.0.attn_q.weight", "output.weight"), shapes.values(),
                                   strict=True)
        }  # fmt: skip
        base = write(tmp_path / f"{kind}.gguf", arrays, llama_pairs(4, 4))
        for r in (4, 700):
            adapter = trained_adapter(shapes, r=r, num_basis=2)
            merge(base, packed(adapter, tmp_path / f"{kind}{r}.nola"))


def test_a_little_that_survives(merge, tmp_path):
    base = write(tmp_path / "base.gguf", arrays_of("Q4_0"))
    small = adapter_of()
    small = small.replace({m: (c.alpha, c.beta * 0.01) for m, c in small.modules.items()})
    merge(base, packed(small, tmp_path / "a.nola"))
    done = merge.nola("merge", base, tmp_path / "a.nola", "-o", tmp_path / "o.gguf", "-q")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("warning: only ")
    assert "nola export gguf-lora" in done.stderr


@pytest.mark.parametrize("kind", ["F16", "Q4_0"])
def test_json(merge, tmp_path, kind):
    base = write(tmp_path / "base.gguf", arrays_of(kind))
    adapter = packed(adapter_of(), tmp_path / "a.nola")
    found = []
    for tool in (merge.python_tool, merge.nola):
        out = tmp_path / "out.gguf"
        found.append(json.loads(tool("merge", base, adapter, "-o", out, "--json").stdout))
        out.unlink()
        assert found[-1].pop("seconds") > 0
    assert list(found[0]) == list(found[1])
    for key in found[0]:
        if key.startswith("survival"):
            assert list(found[0][key]) == list(found[1][key])
        else:
            assert found[0][key] == found[1][key]
    for one, other in zip(*(report["survival"].values() for report in found), strict=True):
        assert other == pytest.approx(one, rel=1e-12)
    if kind == "Q4_0":
        assert found[1]["survival_overall"] == pytest.approx(found[0]["survival_overall"])


def test_results_that_are_expected(merge, python_tool, tmp_path):
    base = write(tmp_path / "base.gguf", arrays_of("Q4_1"))
    path = tmp_path / "a.nola"
    adapter_of().save(tmp_path / "folder")
    done = python_tool("pack", tmp_path / "folder", "--expect", base, "-o", path)
    assert done.returncode == 0
    (tmp_path / "merged.gguf").write_bytes(merge(base, path))
    sha256 = python_tool("hash", tmp_path / "merged.gguf").stdout.strip()
    merge(base, path, options=["--expect", sha256.upper()])
    merge(base, path, options=["--no-check-result"])
    merge(base, path, path)
    merge.refuse(base, path, options=["--expect", "0" * 64])
    damaged = bytearray(base.read_bytes())
    damaged[-2000] ^= 4  # in a tensor that is merged into
    (tmp_path / "damaged.gguf").write_bytes(damaged)
    merge.refuse(tmp_path / "damaged.gguf", path)
    other = bytearray(base.read_bytes())
    at = other.index(b"token 7")
    other[at] ^= 1  # in what is copied
    (tmp_path / "other.gguf").write_bytes(other)
    merge.refuse(tmp_path / "other.gguf", path)


def test_what_is_refused(merge, tmp_path):
    adapter = packed(adapter_of(), tmp_path / "a.nola")
    base = write(tmp_path / "base.gguf", arrays_of("F16"))
    name = stored_name(BLOCK.format(1) + "mlp.down_proj")
    k_quants = {**arrays_of("F16"), name: ("Q4_K", (64, 256), bytes(64 * 144))}
    wide = trained_adapter({BLOCK.format(1) + "mlp.down_proj": (64, 256)}, r=2, num_basis=3)
    k_base = write(tmp_path / "k.gguf", k_quants)
    said = merge.nola.refused("merge", k_base, packed(wide, tmp_path / "w.nola"), "-o",
                                  tmp_path / "out.gguf")  # fmt: skip
    assert "has type Q4_K, which only llama.cpp's own quantiser writes. Leave the base" in said
    assert "(nola export gguf-lora), or write merged tensors as another type with nola-edge" in said
    merge.refuse(write(tmp_path / "o.gguf", arrays_of("F16"), [pair("x", STRING, "y")]), adapter)
    for kind in ("F16", "Q8_0"):
        arrays = arrays_of(kind)
        if kind == "F16":
            arrays[name] = arrays[name].copy()
            arrays[name][3, 7] = np.inf
        else:
            data = bytearray(arrays[name][2])
            data[:2] = np.float16(np.inf).tobytes()
            arrays[name] = (*arrays[name][:2], bytes(data))
        merge.refuse(write(tmp_path / f"inf{kind}.gguf", arrays), adapter)
    for output in ("out", "out.safetensors", "new/", "base.gguf", "a.nola", "-"):
        merge.refuse(base, adapter, output=output)
    merge.refuse(base, adapter, options=["--check-base"])
    merge.refuse(base, tmp_path / "missing.nola")
    (tmp_path / "out.gguf").write_bytes(b"mine")
    merge.refuse(base, adapter, options=["--force"])
    (tmp_path / "out.gguf").write_bytes(encode(llama_pairs(), {"a": np.ones(3, np.float32)}))
    merge.refuse(base, adapter)
    merge.refuse(base, adapter, options=["--force"])
    (tmp_path / "out.gguf").write_bytes(merge(base, adapter))
    before = (tmp_path / "out.gguf").read_bytes()
    merge.refuse(base, adapter)
    done = merge.nola("merge", base, f"{adapter}=2", "-o", tmp_path / "out.gguf", "--force")
    assert done.returncode == 0
    assert (tmp_path / "out.gguf").read_bytes() != before
    for option in ("--rounding", "--outtype"):
        said = merge.nola.refused("merge", base, adapter, "-o", "x.gguf", option, "f16")
        assert "use nola-edge merge of the Python package" in said


@pytest.mark.parametrize("alignment", [8, 32, 1024])
def test_padding_that_holds_something(merge, tmp_path, alignment):
    """It is kept where it is copied with its neighbours, and zero elsewhere; the last may lack."""
    from tests.gguf.encode import UINT32

    rng = random.Random(alignment)
    pairs = [*llama_pairs(), pair("general.alignment", UINT32, alignment)]
    arrays = arrays_of("F16")
    arrays = {name: array[:-1] if array.ndim == 1 else array for name, array in arrays.items()}
    data = bytearray(encode(pairs, {**arrays, "z": np.ones(3, np.float16)}, alignment))
    zeros = [i for i in range(len(data) // 2, len(data)) if not data[i]]
    for i in rng.sample(zeros, min(40, len(zeros))):
        data[i] = 7
    adapter = packed(adapter_of(), tmp_path / "a.nola")
    for number, end in enumerate((len(data), len(data) - alignment + 6)):
        base = tmp_path / f"{number}.gguf"
        base.write_bytes(data[:end])
        merge(base, adapter)


def test_memory_is_flat(nola, tmp_path):
    """However many rows a head has, and however long a row is."""
    few = trained_adapter({BLOCK.format(0) + "self_attn.q_proj": (1 << 19, 32)}, r=32, num_basis=1)
    long = trained_adapter({BLOCK.format(0) + "mlp.up_proj": (8, 1 << 23)}, r=1, num_basis=1)
    for name, adapter, array in (
        ("attn_q", few, np.zeros((1 << 19, 32), np.float16)),
        ("ffn_up", long, ("Q4_0", (8, 1 << 23), bytes((8 << 23) // 32 * 18))),
    ):
        base = write(tmp_path / "base.gguf", {f"blk.0.{name}.weight": array}, llama_pairs(1, 1))
        path = packed(adapter, tmp_path / "a.nola", force=True)
        for command in (
            ["merge", base, path, "-o", tmp_path / "o.gguf"],
            ["export", "gguf-lora", path, "--base", base, "-o", tmp_path / "o.gguf"],
        ):
            assert peak_bytes(nola, *command, "--threads", 2) < 100e6
            (tmp_path / "o.gguf").unlink()


def peak_bytes(nola, *arguments):
    """Run the program from a small process: a child begins with its parent's peak."""
    code = (
        "import os, subprocess, sys; child = subprocess.Popen(sys.argv[1:], "
        "stdout=subprocess.DEVNULL); _, status, usage = os.wait4(child.pid, 0); "
        "print(status, usage.ru_maxrss * 1024)"
    )
    command = [sys.executable, "-c", code, *nola.command, *map(str, arguments)]
    status, peak = subprocess.check_output(command, text=True).split()
    assert status == "0"
    return int(peak)
