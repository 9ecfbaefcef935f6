"""Switching a torch model between adapters: what loading the merged checkpoint would give."""

from __future__ import annotations

import json
import os

import accelerate
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import nola_edge as ne
import nola_edge.torch as nt
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import ChangedError, MismatchError
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.peft import stored_tensors
from tests.conftest import write_safetensors
from tests.integrations.test_transformers import assert_same, decoder, load, shapes_of
from tests.lora_folders import PREFIX, factors, write_lora
from tests.sweep.tiny_models import make

pytestmark = pytest.mark.filterwarnings("default")  # of transformers' own making


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_state_is_that_of_the_loaded_merge(tmp_path, dtype):
    model = decoder().to(torch.bfloat16)
    base = tmp_path / "base"
    model.save_pretrained(base, max_shard_size="100KB")
    for name, part in (("a", "_proj."), ("b", "q_proj")):
        trained_adapter(shapes_of(model, part), r=4, num_basis=20, seed=ord(name)).save(
            tmp_path / name
        )
        ne.merge_checkpoint(base, tmp_path / name, tmp_path / f"merged-{name}")
    resident = load(base, dtype=dtype)
    pointers = {name: p.data_ptr() for name, p in resident.named_parameters()}
    with nt.AdapterSwitch(resident, base) as switch:
        for name in ("a", "b"):
            switch.add(name, tmp_path / name)
        for name in ("a", "b", None, "b", "a", None):
            switch.use(name)
            source = base if name is None else tmp_path / f"merged-{name}"
            assert_same(resident, load(source, dtype=dtype))
            with switch.running():
                resident(input_ids=torch.tensor([[1, 2, 3]]))
    assert {name: p.data_ptr() for name, p in resident.named_parameters()} == pointers


def test_a_real_encoder_with_another_prefix(encoder, encoder_adapter, tmp_path):
    ne.merge_checkpoint(encoder, encoder_adapter, tmp_path / "merged")
    cls = transformers.AutoModelForSequenceClassification
    torch.manual_seed(0)
    resident = load(encoder, cls=cls)
    torch.manual_seed(0)
    merged = load(tmp_path / "merged", cls=cls)
    torch.manual_seed(0)
    plain = load(encoder, cls=cls)
    with nt.AdapterSwitch(resident, encoder) as switch:
        switch.add("one", encoder_adapter)
        switch.use("one")
        assert_same(resident, merged)
        switch.use(None)
        assert_same(resident, plain)


class Scaled(torch.nn.Module):
    """Holds a scalar, as CLIP does, and a weight that is not contiguous."""

    def __init__(self):
        super().__init__()
        self.q = torch.nn.Linear(24, 40, bias=False)
        self.q.weight = torch.nn.Parameter(torch.ones(24, 40).t())
        self.scale = torch.nn.Parameter(torch.tensor(2.0))


def test_scalars_and_transposed_weights(tmp_path):
    model = Scaled()
    base = tmp_path / "base.safetensors"
    stored = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    write_safetensors(base, stored)
    tensors = {**factors({"q": (40, 24)}), f"{PREFIX}scale": np.array(5, np.float32)}
    write_lora(tmp_path / "adapter", tensors, modules_to_save=["scale"])
    with ne.open_merged(base, tmp_path / "adapter") as merged, nt.AdapterSwitch(model, base) as s:
        s.add("one", tmp_path / "adapter")
        for name, source in (("one", merged), (None, stored), ("one", merged)):
            s.use(name)
            for parameter, values in model.named_parameters():
                assert values.detach().numpy().tobytes() == np.asarray(source[parameter]).tobytes()


def test_a_model_that_is_not_the_base(tmp_path):
    model = decoder()
    model.save_pretrained(tmp_path / "base")
    adapter = trained_adapter(shapes_of(model, "q_proj"), r=4, num_basis=20)
    nt.merge_(model, adapter)
    with nt.AdapterSwitch(model, tmp_path / "base") as switch:
        switch.add("one", adapter)
        with pytest.raises(MismatchError, match="in memory differs from the base"):
            switch.use("one")
    other = decoder(hidden_size=32, num_attention_heads=2)
    with nt.AdapterSwitch(other, tmp_path / "base") as switch:
        switch.add("one", adapter)
        with pytest.raises(MismatchError, match=r"is \[32, 32\], the base has \[64, 64\]"):
            switch.use("one")


def test_a_tied_weight_is_refused(tmp_path):
    model = decoder(tie_word_embeddings=True)
    decoder().save_pretrained(tmp_path / "base")
    with nt.AdapterSwitch(model, tmp_path / "base") as switch:
        switch.add("one", trained_adapter({"lm_head": (100, 64)}, r=2, num_basis=4))
        with pytest.raises(MismatchError, match="shares its tensor"):
            switch.use("one")


def test_files_that_call_layers_otherwise(tmp_path):
    """As those of ViT do; the model keeps its weights, and there is a way that works."""
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained(tmp_path / "base")
    names = load_file(tmp_path / "base" / "model.safetensors")
    (name,) = [name for name in names if name.endswith("query.weight")]
    with nt.AdapterSwitch(model, tmp_path / "base") as switch:
        switch.add("one", trained_adapter({name.removesuffix(".weight"): (32, 32)}, r=2))
        assert_refused(switch, "one", MismatchError, "which a switch cannot follow; load the model")


def of_another_naming(kind, folder):
    """Return a model whose files name layers otherwise, and shapes of some in memory."""
    made = make(kind)
    made.save_pretrained(folder / "base")
    model = type(made).from_pretrained(folder / "base")
    shapes = {
        name: tuple(layer.weight.shape)
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    return model, shapes


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kind", ["vit", "qwen2_5_vl"])
def test_adapters_that_call_layers_as_the_model_does(kind, recorded, tmp_path):
    """By rules for those that do not record what files call their modules, as a LoRA of PEFT."""
    model, shapes = of_another_naming(kind, tmp_path)
    base, rules = tmp_path / "base", stored_tensors(model)
    assert set(rules) - {name.removesuffix(".weight") for name in stored_in(base)}
    folder, options = tmp_path / "adapter", {} if recorded else {"rename": rules}
    trained_adapter(shapes, r=3, num_basis=8, seed=5).save(folder)
    if recorded:
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "tensors": rules}))
    used = {} if recorded else {"rename": {n: rules[n] for n in rules if n in shapes}}
    ne.merge_checkpoint(base, folder, tmp_path / "merged", **used)
    merged = type(model).from_pretrained(tmp_path / "merged")
    before = bits(model)
    with nt.AdapterSwitch(model, base, **options) as switch:
        switch.add("one", folder)
        for _ in range(2):
            switch.use("one")
            assert_same(model, merged)
            assert not all(torch.equal(bits(model)[name], before[name]) for name in before)
            switch.use(None)
            assert all(torch.equal(bits(model)[name], before[name]) for name in before)


def test_layers_that_files_join_are_still_refused(tmp_path):
    model, shapes = of_another_naming("nomic_bert", tmp_path)
    rules = stored_tensors(model)
    joined = {name: shape for name, shape in shapes.items() if "[" in rules.get(name, "")}
    assert joined
    with nt.AdapterSwitch(model, tmp_path / "base", rename=rules) as switch:
        switch.add("one", trained_adapter(joined, r=3, num_basis=8))
        assert_refused(switch, "one", MismatchError, "which a switch cannot follow; load the model")


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.v = (torch.nn.Linear(16, 16, bias=False) for _ in range(2))


class Outer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()


@pytest.mark.parametrize("order", [["whole", "inner"], ["inner", "whole"]])
def test_adapters_of_two_classes_follow_one_another(tmp_path, order):
    """Each names the layers as the class did that it was trained on; a stranger changes nothing."""
    model = Outer()
    layers = {"inner.q": model.inner.q, "inner.v": model.inner.v}
    write_safetensors(
        tmp_path / "base.safetensors",
        {f"F.attn_{n[-1]}.weight": m.weight.detach().numpy() for n, m in layers.items()},
    )
    for name, module in (("whole", "inner.q"), ("inner", "v"), ("stranger", "other.v")):
        write_lora(
            tmp_path / name, factors({module: (16, 16)}, seed=len(name)), target_modules=["q", "v"],
            tensors={module: f"F.attn_{module[-1]}.weight"},
        )  # fmt: skip
    before = bits(model)
    with nt.AdapterSwitch(model, tmp_path / "base.safetensors") as switch:
        for name in ("whole", "inner", "stranger"):
            switch.add(name, tmp_path / name)
        switch.use("whole")
        held = bits(model)
        assert_refused(switch, "stranger", MismatchError, "has no parameter here")
        assert all(torch.equal(values, held[name]) for name, values in bits(model).items())
        for name in order:
            switch.use(name)
            changed = {n for n, values in bits(model).items() if not torch.equal(values, before[n])}
            assert changed == {"inner.q.weight" if name == "whole" else "inner.v.weight"}
        switch.use(None)
        assert all(torch.equal(values, before[name]) for name, values in bits(model).items())


def stored_in(base):
    with Checkpoint.open(base) as checkpoint:
        return list(checkpoint.tensors)


@pytest.fixture
def resident(tmp_path):
    """A model that is its base, and a switch that knows two adapters."""
    model = decoder()
    model.save_pretrained(tmp_path / "base")
    with nt.AdapterSwitch(model, tmp_path / "base") as switch:
        for name, part in (("all", "_proj."), ("queries", "q_proj")):
            switch.add(name, trained_adapter(shapes_of(model, part), r=4, num_basis=20, seed=7))
        yield switch


def bits(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if not p.is_meta}


def assert_refused(switch, selection, error, match):
    before = bits(switch.model)
    with pytest.raises(error, match=match):
        switch.use(selection)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bits(switch.model).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_base_that_was_overwritten_between_two_uses(resident, tmp_path, dtype):
    """Whether the file is read straight into the weights, or through another dtype."""
    resident.model.to(dtype)
    resident.use("all")
    path = tmp_path / "base" / "model.safetensors"
    held = bytearray(path.read_bytes())
    held[len(held) // 2 :] = bytes(len(held) - len(held) // 2)
    path.write_bytes(held)
    os.utime(path, ns=(0, 1))
    for selection in ("queries", None, "all"):
        assert_refused(resident, selection, ChangedError, "changed while it was read")
    assert resident.active == "all"


def test_weights_that_were_offloaded_since(resident, tmp_path):
    """What is written to the meta device is gone without a word."""
    resident.use("all")
    accelerate.disk_offload(resident.model, tmp_path / "disk", execution_device="cpu")
    assert_refused(resident, "queries", MismatchError, "is on the meta device")
    assert_refused(resident, None, MismatchError, "load the model without offloading")
    assert resident.active == "all"


def test_a_weight_that_is_a_part_of_another_tensor(resident):
    attention = resident.model.model.layers[0].self_attn
    fused = torch.cat([attention.q_proj.weight.detach(), attention.k_proj.weight.detach()])
    attention.fused = torch.nn.Parameter(fused)
    attention.q_proj.weight = torch.nn.Parameter(fused[:64])
    assert_refused(resident, "queries", MismatchError, r"shares its tensor with .*\.fused")


def test_a_weight_that_was_tied_since(resident):
    resident.use("queries")
    first, second = (layer.self_attn.q_proj for layer in resident.model.model.layers)
    first.weight = second.weight
    assert_refused(resident, None, MismatchError, "shares its tensor")
