"""`nola merge` writes the bytes that `nola-edge merge` writes."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.adapters.tensor_parts import TensorPart
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.dtypes import numpy_dtype
from tests.conftest import (
    ISAS,
    MODULES,
    load_all,
    snapshot,
    tiny_adapter,
    write_safetensors,
    write_sharded,
)


class Both:
    """Merges with both tools, and compares everything that they write."""

    def __init__(self, nola, python_tool, folder):
        self.nola = nola
        self.python_tool = python_tool
        self.folder = folder
        self.count = 0

    def __call__(self, base, *adapters, options=(), runs=((),), **variables):
        suffix = base.suffix if base.is_file() else ""
        wanted = self.folder / f"wanted{self.count}{suffix}"
        arguments = [base, *adapters, *options]
        done = self.python_tool("merge", *arguments, "-o", wanted)
        assert done.returncode == 0, done
        for run in runs:
            self.count += 1
            got = self.folder / f"got{self.count}{suffix}"
            found = self.nola("merge", *arguments, "-o", got, *run, **variables)
            assert found.returncode == 0, found
            assert found.stderr == done.stderr
            if wanted.is_dir():
                assert snapshot(got) == snapshot(wanted)
            else:
                assert got.read_bytes() == wanted.read_bytes()
        assert not [p for p in self.folder.iterdir() if p.name.startswith(".nola-edge")]
        return wanted


@pytest.fixture
def both(nola, python_tool, tmp_path):
    return Both(nola, python_tool, tmp_path)


def packed(adapter, path):
    adapter.pack(path)
    return path


def matrices(shapes, dtype, seed=1):
    rng = np.random.default_rng(seed)
    kind = numpy_dtype(dtype)
    tensors = {f"{n}.weight": rng.standard_normal(s).astype(kind) for n, s in shapes.items()}
    return {**tensors, "norm.weight": np.ones(7, np.float32)}


THREADS = [("--threads", "1"), ("--threads", "3"), ()]


def test_a_sharded_folder(both, tiny, tmp_path):
    base, _ = tiny
    for name in (".hidden", "pytorch_model.bin", "adapter_config.json"):
        (base / name).write_text("{}")
    (base / "checkpoint-5").mkdir()
    (base / "checkpoint-5" / "optimizer.pt").write_text("x")
    write_safetensors(base / "sub" / "part.safetensors", {"other.weight": np.ones(3, np.float32)})
    write_safetensors(base / "extra.safetensors", {"x": np.ones(3, np.float32)})
    adapter = packed(tiny_adapter(), tmp_path / "adapter.nola")
    merged = both(base, adapter, runs=THREADS)
    assert sorted(p.name for p in merged.iterdir() if p.is_dir()) == ["sub"]
    for options in ([], ["--json"]):
        said = [
            tool("merge", base, adapter, "-o", tmp_path / "again", "--force", *options).stdout
            for tool in (both.python_tool, both.nola)
        ]
        if options:
            reports = [json.loads(text) for text in said]
            for report in reports:
                assert report.pop("seconds") > 0
            assert reports[0] == reports[1]
            assert reports[0]["carried_weights"] == ["sub/part.safetensors"]
        else:
            lines = [text.splitlines() for text in said]
            assert lines[0][1:] == lines[1][1:]
            assert lines[0][0].split(" in ")[0] in said[1]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("isa", ISAS)
def test_every_type_and_instruction_set(both, tmp_path, dtype, isa):
    if len(both.nola.command) > 1:
        pytest.skip("the program is for another processor")
    base = tmp_path / "base.safetensors"
    write_safetensors(base, matrices(MODULES, dtype))
    adapter = packed(tiny_adapter(), tmp_path / "adapter.nola")
    both(base, adapter, NOLA_EDGE_ISA=isa)


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_few_bits_and_uniform(both, tiny, tmp_path, bits):
    adapter = tiny_adapter(basis="uniform", use_rslora=True).quantize(bits)
    both(tiny[0], packed(adapter, tmp_path / "adapter.nola"))


@pytest.mark.parametrize("transposed", [False, True])
def test_windows_and_strips(both, tmp_path, transposed):
    """Weights of more than one window and, for a large rank, of more than one strip."""
    shapes = {"wide": (70, 9000), "long": (9000, 700), "odd": (3, 5)}
    stored = {n: s[::-1] if transposed else s for n, s in shapes.items()}
    base = tmp_path / "base.safetensors"
    write_safetensors(base, matrices(stored, "BF16"))
    for rank in (3, 300):
        some = {n: s for n, s in shapes.items() if rank == 3 or n != "odd"}
        adapter = trained_adapter(some, r=rank, num_basis=3, fan_in_fan_out=transposed)
        both(base, packed(adapter, tmp_path / f"{rank}.nola"), runs=THREADS)


@pytest.mark.parametrize("transposed", [False, True])
def test_parts_of_tensors(both, tmp_path, transposed):
    """Modules in lines of one tensor, with and without a gap, beside whole ones."""
    stored = {"attn.qkv": (60, 40), "mlp": (24, 40)}
    base = tmp_path / "base.safetensors"
    turned = {n: s[::-1] if transposed else s for n, s in stored.items()}
    write_safetensors(base, matrices(turned, "F16"))
    shapes = {"q": (24, 40), "v": (16, 40), "mlp": (24, 40)}
    adapter = trained_adapter(shapes, r=4, num_basis=9, fan_in_fan_out=transposed)
    parts = {
        "q": TensorPart("attn.qkv.weight", (0, 24)),
        "v": TensorPart("attn.qkv.weight", (40, 56)),
    }
    config = dataclasses.replace(adapter.config, tensors=parts)
    adapter = ne.Adapter(config, adapter.modules)
    first = packed(adapter, tmp_path / "parts.nola")
    both(base, first, runs=THREADS)
    whole = trained_adapter(
        {"attn.qkv": (60, 40)}, r=2, num_basis=5, seed=8, fan_in_fan_out=transposed
    )
    second = packed(whole, tmp_path / "whole.nola")
    both(base, first, f"{second}=0.5")
    both(base, second, first)


@pytest.mark.parametrize(
    ("own", "stored"),
    [("{}", "model.{}"), ("base.model.{}", "{}"), ("bert.{}", "{}"), ("{}", "{}")],
)
def test_prefixes(both, tmp_path, own, stored):
    base = tmp_path / "base.safetensors"
    write_safetensors(base, matrices({stored.format(n): s for n, s in MODULES.items()}, "BF16"))
    adapter = trained_adapter({own.format(n): s for n, s in MODULES.items()}, r=4, num_basis=10)
    both(base, packed(adapter, tmp_path / "adapter.nola"))


def test_recorded_names_that_a_base_lacks(both, tmp_path):
    base = tmp_path / "base.safetensors"
    write_safetensors(base, matrices(MODULES, "BF16"))
    adapter = tiny_adapter()
    parts = {"layers.0.q": TensorPart("elsewhere.weight")}
    adapter = ne.Adapter(dataclasses.replace(adapter.config, tensors=parts), adapter.modules)
    both(base, packed(adapter, tmp_path / "adapter.nola"))


def test_sums_and_weights(both, tiny, tmp_path):
    base, _ = tiny
    one = packed(tiny_adapter(), tmp_path / "one.nola")
    other = packed(tiny_adapter(seed=4, r=3, use_rslora=True), tmp_path / "other=2.nola")
    both(base, f"{one}=0.7", f"{other}=-.3e0")
    both(base, other, one)
    both(base, f"{one}=0")


def test_a_base_fingerprint(both, tiny, nola, tmp_path):
    base, _ = tiny
    adapter = packed(tiny_adapter(base=base), tmp_path / "adapter.nola")
    merged = both(base, adapter)
    both(merged, adapter, options=["--no-check-base"])
    single = tmp_path / "single.safetensors"
    large = {f"{name}.weight": (300, 300) for name in ("a", "b")}
    write_safetensors(
        single, matrices({n.removesuffix(".weight"): s for n, s in large.items()}, "F32")
    )
    made = trained_adapter({"a": (300, 300), "b": (300, 300)}, r=2, num_basis=3, base=single)
    both(single, packed(made, tmp_path / "single.nola"))


def test_diffusers_and_single_files_of_a_folder(both, tmp_path):
    adapter = packed(tiny_adapter(), tmp_path / "adapter.nola")
    for name in ("diffusion_pytorch_model.safetensors", "anything.safetensors"):
        base = tmp_path / f"of {name}"
        base.mkdir()
        write_safetensors(base / name, matrices(MODULES, "F16"))
        (base / "modules.json").write_text('[{"path": ""}, {"path": "2_Dense"}]')
        (base / "2_Dense").mkdir()
        (base / "2_Dense" / "pytorch_model.bin").write_text("weights")
        both(base, adapter)
    base = tmp_path / "variant"
    write_sharded(base, matrices(MODULES, "F16"), 2)
    (base / "model.safetensors.index.json").rename(base / "model.safetensors.index.fp16.json")
    both(base, adapter)


def test_links_of_the_hub_cache(both, tiny, tmp_path):
    base, _ = tiny
    cache = tmp_path / "models--a--b"
    (cache / "snapshots").mkdir(parents=True)
    snapshot_folder = cache / "snapshots" / "1"
    base.rename(snapshot_folder)
    (cache / "blobs").mkdir()
    for path in list(snapshot_folder.iterdir()):
        if path.is_file():
            path.rename(cache / "blobs" / path.name)
            path.symlink_to(f"../../blobs/{path.name}")
    both(snapshot_folder, packed(tiny_adapter(), tmp_path / "adapter.nola"))


def test_expectations(nola, tiny, tmp_path):
    base, _ = tiny
    adapter = packed(tiny_adapter(), tmp_path / "adapter.nola")
    out = tmp_path / "out"
    ne.merge_checkpoint(base, adapter, tmp_path / "wanted")
    wanted = ne.content_hash(tmp_path / "wanted").sha256
    before = snapshot(tmp_path)
    said = nola.refused("merge", base, adapter, "-o", out, "--expect", "0" * 64)
    assert f"would have the SHA-256 {wanted}, not {'0' * 64}" in said
    assert snapshot(tmp_path) == before
    done = nola("merge", base, adapter, "-o", tmp_path / "new" / "out", "--expect", wanted.upper())
    assert done.returncode == 0
    assert snapshot(tmp_path / "new" / "out") == snapshot(tmp_path / "wanted")


def test_replacing(nola, tiny, tmp_path):
    base, _ = tiny
    first = packed(tiny_adapter(), tmp_path / "first.nola")
    second = packed(tiny_adapter(seed=2), tmp_path / "second.nola")
    out = tmp_path / "out"
    assert nola("merge", base, first, "-o", out).returncode == 0
    assert nola("merge", base, second, "-o", out, "--force").returncode == 0
    assert ne.verify_checkpoint(out, base, second).identical
    (out / "notes.txt").write_text("mine")
    before = snapshot(tmp_path)
    said = nola.refused("merge", base, first, "-o", out, "--force")
    assert "holds notes.txt, which is not part of such an output, so --force does not" in said
    assert snapshot(tmp_path) == before


def test_inputs_are_read_only(nola, tiny, tmp_path):
    base, _ = tiny
    adapter = packed(tiny_adapter(), tmp_path / "adapter.nola")
    for path in [adapter, base, *base.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in base.rglob("*")}
    assert nola("merge", base, adapter, "-o", tmp_path / "out").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in base.rglob("*")} == before
    assert load_all(tmp_path / "out").keys() == load_all(base).keys()


def test_memory_stays_flat(nola, tmp_path):
    """Of a base of 200 MB, no more than some windows are held."""
    if len(nola.command) > 1:
        pytest.skip("measures the program itself")
    base = tmp_path / "base.safetensors"
    shapes = {f"layers.{i}.up": (4096, 4096) for i in range(6)}
    write_safetensors(base, {f"{n}.weight": np.zeros(s, np.float16) for n, s in shapes.items()})
    adapter = packed(trained_adapter(shapes, r=16, num_basis=4), tmp_path / "adapter.nola")
    measure = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    )

    done = subprocess.run(
        [sys.executable, "-c", measure, *nola.command, "merge", base, adapter, "-q",
         "-o", tmp_path / "out.safetensors", "--threads", "2"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 48 * 1024
