"""The encoder's query and value layers: every bit as the reference gives, on every ISA."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import nola_edge as ne
from nola_edge import Adapter
from nola_edge.dtypes import numpy_dtype
from tests.conftest import ISAS, load_all, snapshot, write_safetensors, write_sharded
from tests.reference import merge as reference


@pytest.fixture(scope="module", params=["F32", "F16", "BF16"])
def base(request, encoder, tmp_path_factory):
    """The encoder cast to a dtype, in one file with its companions."""
    folder = tmp_path_factory.mktemp(request.param) / "base"
    shutil.copytree(encoder, folder)
    kind = numpy_dtype(request.param)
    tensors = {
        name: values.astype(kind) if values.dtype == np.float32 else values
        for name, values in load_all(encoder).items()
    }
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture(scope="module")
def expected(base, encoder_adapter):
    """What the slow reference makes of base and adapter."""
    adapter = Adapter.load(encoder_adapter)
    tensors = load_all(base)
    for module, c in adapter.modules.items():
        name = f"{module}.weight"
        weight = tensors[name]
        a, b = reference.factors(adapter.config, module, c.alpha, c.beta, *weight.shape)
        tensors[name] = reference.merge(weight, b, a, adapter.scaling)
    return tensors


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_bits_of_the_reference(base, expected, encoder_adapter, tmp_path):
    before = snapshot(base), snapshot(encoder_adapter)
    report = ne.merge_checkpoint(base, encoder_adapter, tmp_path / "out")
    assert report.merged == 12
    merged = load_all(tmp_path / "out")
    assert list(merged) == list(expected)
    for name, values in expected.items():
        assert merged[name].dtype == values.dtype
        assert merged[name].tobytes() == values.tobytes(), name
    assert ne.verify_checkpoint(tmp_path / "out", base, encoder_adapter).identical
    assert (snapshot(base), snapshot(encoder_adapter)) == before


def test_same_file_on_every_isa_and_thread_count(base, encoder_adapter, tmp_path):
    """Through the command line, in processes of their own, by NOLA_EDGE_ISA."""
    digests = set()
    for isa in ISAS:
        for threads in ("1", "2"):
            output = tmp_path / f"{isa}-{threads}"
            subprocess.run(
                [sys.executable, "-m", "nola_edge", "merge", base, encoder_adapter, "-o", output,
                 "--threads", threads, "-q"],
                check=True,
                env={**os.environ, "NOLA_EDGE_ISA": isa},
            )  # fmt: skip
            digests.add(digest(output / "model.safetensors"))
            shutil.rmtree(output)
    assert len(digests) == 1


def test_merging_at_load(base, expected, encoder_adapter):
    with ne.open_merged(base, encoder_adapter) as merged:
        assert list(merged) == list(expected)
        for name, values in expected.items():
            assert merged[name].tobytes() == values.tobytes()
        untouched = merged["embeddings.word_embeddings.weight"]
        assert not untouched.flags.writeable
        assert not untouched.flags.owndata


def test_three_shards(base, expected, encoder_adapter, tmp_path):
    write_sharded(tmp_path / "base", load_all(base), 3)
    shutil.copy(base / "config.json", tmp_path / "base")
    ne.merge_checkpoint(tmp_path / "base", encoder_adapter, tmp_path / "out")
    merged = load_all(tmp_path / "out")
    assert {n: v.tobytes() for n, v in merged.items()} == {
        n: v.tobytes() for n, v in expected.items()
    }
    assert set(os.listdir(tmp_path / "out")) == set(os.listdir(tmp_path / "base"))


def test_a_single_file(base, expected, encoder_adapter, tmp_path):
    ne.merge_checkpoint(base / "model.safetensors", encoder_adapter, tmp_path / "m.safetensors")
    assert load_all(tmp_path / "m.safetensors").keys() == expected.keys()
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_headers_and_companions_are_kept(base, encoder_adapter, tmp_path):
    ne.merge_checkpoint(base, encoder_adapter, tmp_path / "out")
    for file in base.rglob("*"):
        copy = tmp_path / "out" / file.relative_to(base)
        if file.is_file() and not file.name.startswith(".") and file.suffix != ".safetensors":
            assert copy.read_bytes() == file.read_bytes()
    with (base / "model.safetensors").open("rb") as a:
        length = int.from_bytes(a.read(8), "little")
        with (tmp_path / "out" / "model.safetensors").open("rb") as b:
            assert int.from_bytes(b.read(8), "little") == length
            assert a.read(length) == b.read(length)


def test_verify_finds_one_flipped_bit(base, encoder_adapter, tmp_path):
    ne.merge_checkpoint(base, encoder_adapter, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    data = bytearray(path.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    name = "encoder.layer.3.attention.self.value.weight"
    start = 8 + int.from_bytes(data[:8], "little") + header[name]["data_offsets"][0]
    data[start + 1001] ^= 1
    path.write_bytes(data)
    report = ne.verify_checkpoint(tmp_path / "out", base, encoder_adapter)
    assert [d.tensor for d in report.differences] == [name]
    assert report.differences[0].elements == 1


@pytest.mark.torch
@pytest.mark.filterwarnings("default")  # of torch, transformers and PEFT among themselves
def test_transformers_loads_it_and_peft_agrees(encoder, encoder_adapter, tmp_path):
    """PEFT as an independent judge: its merge of our exact LoRA equals ours, to rounding."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    ne.merge_checkpoint(encoder, encoder_adapter, tmp_path / "merged")
    ne.export_lora(encoder_adapter, encoder, tmp_path / "lora")
    ours = transformers.AutoModel.from_pretrained(tmp_path / "merged")
    plain = transformers.AutoModel.from_pretrained(encoder)
    judged = peft.PeftModel.from_pretrained(
        transformers.AutoModel.from_pretrained(encoder), str(tmp_path / "lora")
    ).merge_and_unload()
    changed = 0
    theirs = dict(judged.named_parameters())
    before = dict(plain.named_parameters())
    for name, values in ours.named_parameters():
        changed += not torch.equal(values, before[name])
        torch.testing.assert_close(values, theirs[name], rtol=1e-5, atol=1e-6)
    assert changed == 12
    ids = torch.arange(1000, 1016).reshape(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(ids).last_hidden_state, judged(ids).last_hidden_state, rtol=1e-4, atol=1e-5
        )
