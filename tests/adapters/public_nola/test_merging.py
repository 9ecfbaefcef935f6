"""A checkpoint of the public NOLA code is merged like any other adapter, by every verb."""

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.errors import MismatchError
from nola_edge.export.gguf_lora import export_gguf_lora
from nola_edge.gguf import merge_gguf, verify_gguf
from tests.adapters.public_nola.checkpoints import (
    pair,
    tiny_checkpoint,
    vit_base,
    vit_tensors,
    write_folder,
)
from tests.adapters.public_nola.slow_factor import slow_factor
from tests.conftest import load_all, snapshot, write_safetensors
from tests.gguf import test_merge as gguf
from tests.lora_folders import write_lora


def test_merging_is_merging_the_exact_lora(tmp_path, kind):
    base, source, options = kind
    adapter = ne.load_adapter(source, **options)
    suffix = "" if base.is_dir() else ".safetensors"
    ne.export_lora(adapter, None, tmp_path / "lora")
    outputs = [tmp_path / f"{name}{suffix}" for name in ("direct", "detour")]
    for output, given_ in zip(outputs, (adapter, tmp_path / "lora"), strict=True):
        report = ne.merge_checkpoint(base, given_, output)
        assert report.merged == len(adapter.modules)
        told = "no file confirms" in str(report.notes)
        assert told == (given_ is adapter and bool(options))
    direct, detour = (load_all(output) for output in outputs)
    assert all(np.array_equal(direct[n].view(np.uint8), detour[n].view(np.uint8)) for n in detour)
    changed = [n for n, values in load_all(base).items() if not np.array_equal(values, direct[n])]
    assert len(changed) == len(adapter.modules)
    assert ne.verify_checkpoint(outputs[1], base, adapter).identical


def test_every_way_to_merge_gives_the_same_bits(tmp_path, kind):
    base, source, options = kind
    adapter = ne.load_adapter(source, **options)
    suffix = "" if base.is_dir() else ".safetensors"
    ne.merge_checkpoint(base, adapter, tmp_path / f"one{suffix}")
    wanted = load_all(tmp_path / f"one{suffix}")
    ne.merge_each(base, {"x": adapter, "y": adapter}, tmp_path / "each", shard="1/2")
    each = load_all(tmp_path / "each" / f"y{suffix}")
    held = load_all(base)
    switch = ne.ArraySwitch(held, base)
    switch.add("x", adapter)
    switch.use("x")
    with ne.open_merged(base, adapter, num_threads=1) as opened:
        for name, values in wanted.items():
            for other in (each[name], held[name], opened[name]):
                assert np.array_equal(values.view(np.uint8), other.view(np.uint8))
    switch.use(None)
    assert all(np.array_equal(values, held[name]) for name, values in load_all(base).items())


def test_public_checkpoint_lora_and_nola_in_one_rounding(tmp_path, tiny):
    base, nola = tiny
    public = ne.load_adapter(tiny_checkpoint(tmp_path / "in"), drawn_on="cpu")
    ne.export_lora(public, None, tmp_path / "exact")
    lora = write_lora(tmp_path / "lora")
    for name, first in (("mixed", public), ("loras", tmp_path / "exact")):
        adapters = [(first, 0.5), (lora, -1.0), (nola, 2.0)]
        ne.merge_checkpoint(base, adapters, tmp_path / name)
    assert snapshot(tmp_path / "mixed") == snapshot(tmp_path / "loras")
    ne.export_lora([public, lora], base, tmp_path / "joined")
    assert ne.load_adapter(tmp_path / "joined").rank("layers.0.q") == 6


@pytest.mark.parametrize("outtype", ["F32", "Q8_0"])
def test_into_gguf_and_as_gguf_too(tmp_path, outtype):
    base = gguf.write(tmp_path / "base.gguf", gguf.arrays_of("F32"))
    tensors = {}
    for number, (module, (outputs, inputs)) in enumerate(gguf.MODULES.items()):
        tensors |= pair(PREFIX + module, inputs, outputs, seeds=(number, number + 50))
    public = ne.load_adapter(write_folder(tmp_path / "in", tensors), drawn_on="a100")
    lora = ne.export_lora(public, None, tmp_path / "lora")
    for name, adapter in (("direct", public), ("detour", lora)):
        merge_gguf(base, adapter, tmp_path / f"{name}.gguf", outtype=outtype)
        export_gguf_lora(adapter, base, tmp_path / f"{name}-lora.gguf")
    for name in ("{}.gguf", "{}-lora.gguf"):
        direct, detour = (tmp_path / name.format(way) for way in ("direct", "detour"))
        assert direct.read_bytes() == detour.read_bytes()
    assert verify_gguf(tmp_path / "direct.gguf", base, public, outtype=outtype).identical


def test_the_base_says_how_wide_a_vision_transformers_mlp_is(tmp_path):
    write_safetensors(tmp_path / "in.safetensors", vit_tensors())
    narrow, wide = (
        vit_base(tmp_path / f"{hidden}.safetensors", hidden=hidden) for hidden in (40, 48)
    )
    adapter = ne.load_adapter(tmp_path / "in.safetensors")
    with ne.open_merged(narrow, adapter) as merged:
        assert adapter.shape("blocks.1.mlp.fc2") == (12, 40)
        (part,) = adapter.modules["blocks.1.mlp.fc2"].parts
        delta = slow_factor(part.b, "cpu").astype(float) @ slow_factor(part.a, "cpu") / 3
        found = merged["blocks.1.mlp.fc2.weight"] - load_all(narrow)["blocks.1.mlp.fc2.weight"]
        assert np.abs(found - delta).max() < 1e-5 * np.abs(delta).max()
    before = snapshot(tmp_path)
    with pytest.raises(MismatchError, match="is 48 x 12 here") as caught:
        ne.merge_checkpoint(wide, adapter, tmp_path / "out.safetensors")
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before
    fresh = ne.load_adapter(tmp_path / "in.safetensors")
    assert ne.merge_checkpoint(wide, fresh, tmp_path / "out.safetensors").merged == 4


def test_a_head_that_no_merge_can_use_is_named_and_exported(tmp_path):
    write_safetensors(tmp_path / "in.safetensors", vit_tensors())
    base = vit_base(tmp_path / "base.safetensors")
    report = ne.merge_checkpoint(base, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    (note,) = report.notes
    assert note.startswith(f"{tmp_path}/in.safetensors: its trained head is not merged, as ")
    merged = load_all(tmp_path / "out.safetensors")
    assert np.array_equal(merged["head.weight"], load_all(base)["head.weight"])
    ne.export_lora(tmp_path / "in.safetensors", base, tmp_path / "lora")
    head = load_all(tmp_path / "lora" / "head.safetensors")["head.weight"]
    assert np.array_equal(head, load_all(tmp_path / "in.safetensors")["fc_12in_4out"])
