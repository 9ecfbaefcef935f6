"""Stored tensors that become other parameters while transformers loads: split, joined, turned.

The right values are PEFT's: of the adapter on the model in memory, merged and unloaded.
"""

from __future__ import annotations

import accelerate
import pytest
import torch
import transformers
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    PermuteForRope,
    Split,
    Transpose,
    WeightConverter,
    WeightRenaming,
)

import nola_edge.torch as nt
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import MismatchError
from nola_edge.peft import NolaConfig
from nola_edge.transformers import NolaMergeConfig
from tests.integrations.test_transformers import assert_same, decoder, load, shapes_of

pytestmark = pytest.mark.filterwarnings("default")  # of transformers' and PEFT's own making


def dinov2():
    return transformers.Dinov2Model(transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8,
        use_swiglu_ffn=True,
    ))  # fmt: skip


def nomic_bert():
    return transformers.NomicBertModel(transformers.NomicBertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=32,
    ))  # fmt: skip


def molmo2():
    return transformers.Molmo2TextModel(transformers.Molmo2TextConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=50,
        additional_vocab_size=4, num_hidden_layers=2, intermediate_size=48,
    ))  # fmt: skip


@pytest.fixture
def converted(monkeypatch):
    """The small decoder, in files where each linear layer is stored in a way of its own."""
    mapping = [
        WeightRenaming(r"\.attention\.", ".self_attn."),
        WeightConverter(
            "self_attn.qkv.weight",
            ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
            [Split(dim=0)],
        ),
        WeightConverter(
            ["self_attn.o_left.weight", "self_attn.o_right.weight"],
            "self_attn.o_proj.weight",
            [Concatenate(dim=1)],
        ),
        WeightConverter(
            "mlp.both.weight",
            ["mlp.up_proj.weight", "mlp.gate_proj.weight"],
            [Transpose(0, 1), Chunk(dim=0)],
        ),
        WeightConverter("mlp.down_turned.weight", "mlp.down_proj.weight", [Transpose(0, 1)]),
        WeightConverter("lm_head.turned.weight", "lm_head.weight", [PermuteForRope()]),
    ]
    known = {**conversion_mapping._build_checkpoint_conversion_mapping(), "llama": mapping}
    monkeypatch.setattr(conversion_mapping, "_checkpoint_conversion_mapping_cache", known)

    def make():
        return decoder(vocab_size=96)

    return make


def saved(make, targets, tmp_path, seed=1):
    """Save a base and an adapter for it; return what PEFT merges."""
    torch.manual_seed(seed)
    model = make()
    model.save_pretrained(tmp_path / "base")
    config = NolaConfig(r=4, num_basis_a=12, num_basis_b=12, seed=3, target_modules=targets)
    adapted = get_peft_model(type(model).from_pretrained(tmp_path / "base"), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "nola_" in name:
                parameter.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    return adapted.merge_and_unload()


def stored(tmp_path):
    return load_file(tmp_path / "base" / "model.safetensors")


@pytest.mark.parametrize(
    ("make", "targets"),
    [
        (dinov2, ["gate_proj"]),
        (dinov2, ["up_proj"]),
        (dinov2, ["gate_proj", "up_proj", "down_proj", "q_proj"]),
        (nomic_bert, ["q_proj"]),
        (nomic_bert, ["v_proj"]),
        (nomic_bert, ["q_proj", "k_proj", "v_proj"]),
        (molmo2, ["k_proj", "gate_proj"]),
        (molmo2, ["q_proj", "v_proj", "up_proj"]),
    ],
)
def test_a_tensor_that_becomes_several_layers(make, targets, tmp_path):
    """Each layer gets its own update, whichever of them are adapted."""
    expected = saved(make, targets, tmp_path)
    layers = {name.rpartition(".")[0] for name, _ in expected.named_parameters()}
    assert {name.rpartition(".")[0] for name in stored(tmp_path)} != layers
    assert_same(load(tmp_path / "base", tmp_path / "adapter", type(expected)), expected)


def test_tensors_that_are_given_stay_as_they_are(tmp_path):
    """A part of a tensor, merged into once the model is complete, is not the caller's own."""
    expected = saved(dinov2, ["up_proj"], tmp_path)
    given = stored(tmp_path)
    model = transformers.Dinov2Model.from_pretrained(
        None, config=expected.config, state_dict=given,
        quantization_config=NolaMergeConfig(tmp_path / "adapter"),
    )  # fmt: skip
    assert_same(model, expected)
    assert all(torch.equal(tensor, given[name]) for name, tensor in stored(tmp_path).items())


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]


@pytest.mark.parametrize("targets", [*([name] for name in ALL), ALL, ["lm_head"]], ids=str)
def test_every_conversion(converted, targets, tmp_path):
    """Split, joined, transposed and then split, transposed, permuted, renamed."""
    expected = saved(converted, targets, tmp_path)
    names = stored(tmp_path)
    assert "lm_head.turned.weight" in names
    assert all(f"{part}.weight" not in str(names) and "self_attn" not in str(names) for part in ALL)
    found = load(tmp_path / "base", tmp_path / "adapter")
    assert_same(found, expected)
    found.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == names.keys()
    assert_same(load(tmp_path / "again"), expected)


@pytest.mark.parametrize("targets", [["q_proj"], ["k_proj"], ALL], ids=str)
def test_a_conversion_and_another_dtype(converted, targets, tmp_path):
    saved(converted, targets, tmp_path)
    model = load(tmp_path / "base", dtype=torch.bfloat16)
    nt.merge_(model, tmp_path / "adapter")
    assert_same(load(tmp_path / "base", tmp_path / "adapter", dtype=torch.bfloat16), model)


class Mixed(transformers.LlamaForCausalLM):
    """A model that keeps some of its parameters in a dtype of their own."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            projection = layer.self_attn.o_proj
            projection.weight = torch.nn.Parameter(projection.weight.float())


def test_parameters_of_another_dtype_than_the_models(tmp_path):
    """They are not rounded to the model's dtype on the way."""
    decoder().save_pretrained(tmp_path / "base")
    made = trained_adapter(shapes_of(decoder(), "o_proj", "q_proj"), r=4, num_basis=20, seed=3)
    expected = load(tmp_path / "base", cls=Mixed, dtype=torch.bfloat16)
    assert expected.model.layers[0].self_attn.o_proj.weight.dtype == torch.float32
    nt.merge_(expected, made)
    assert_same(load(tmp_path / "base", made, Mixed, dtype=torch.bfloat16), expected)


def test_parameters_that_are_kept_in_float32(tmp_path):
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        tie_word_embeddings=False,
    ))  # fmt: skip
    model.save_pretrained(tmp_path / "base")
    made = trained_adapter(shapes_of(model, "wo.weight", "wi.weight"), r=4, num_basis=20, seed=3)
    options = {"cls": type(model), "dtype": torch.float16}
    expected = load(tmp_path / "base", **options)
    assert {p.dtype for p in expected.parameters()} == {torch.float16, torch.float32}
    nt.merge_(expected, made)
    assert_same(load(tmp_path / "base", made, **options), expected)


def test_experts_that_become_one_parameter(tmp_path):
    """An expert of the files is no layer of the model any more; its neighbours are."""
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=2,
    ))  # fmt: skip
    model.save_pretrained(tmp_path / "base")
    expert = "model.layers.1.block_sparse_moe.experts.1.w1"
    shape = tuple(stored(tmp_path)[f"{expert}.weight"].shape)
    attention = shapes_of(model, "q_proj", "o_proj")
    made = trained_adapter({**attention, expert: shape}, r=4, num_basis=20, seed=3)
    with pytest.raises(MismatchError, match=r"experts\.1\.w1.* no weight here"):
        load(tmp_path / "base", made)
    made = trained_adapter(attention, r=4, num_basis=20, seed=3)
    nt.merge_(model, made)
    assert_same(load(tmp_path / "base", made), model)


def test_a_tensor_of_another_shape_than_the_models(tmp_path):
    """Whatever transformers would do with it, nothing is merged into a part of it."""
    decoder().save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors[name] = tensors[name][:32].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    made = trained_adapter(shapes_of(decoder(), "q_proj"), r=4, num_basis=20, seed=3)
    config = NolaMergeConfig(made, check_base=False)
    for options in ({}, {"ignore_mismatched_sizes": True}, {"dtype": torch.bfloat16}):
        with pytest.raises(MismatchError, match=rf"{name}: is \[32, 64\] in the checkpoint"):
            load(tmp_path / "base", config, **options)


def test_parts_of_another_shape(tmp_path):
    """Only one of which is adapted, and not the one that gives them their name."""
    saved(dinov2, ["up_proj"], tmp_path)
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    for name in [n for n in tensors if "weights_in.weight" in n]:
        tensors[name] = tensors[name][:-4].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    config = NolaMergeConfig(tmp_path / "adapter", check_base=False)
    arguments = (tmp_path / "base", config, transformers.Dinov2Model)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(*arguments)
    with pytest.raises(MismatchError, match=r"up_proj\.weight: is .* in the checkpoint"):
        load(*arguments, ignore_mismatched_sizes=True)


def test_a_part_that_the_checkpoint_lacks(tmp_path):
    """A weight that transformers made up is not taken for one that was loaded."""
    saved(dinov2, ["up_proj"], tmp_path)
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    save_file({n: t for n, t in tensors.items() if "layer.1.mlp.weights_in" not in n}, path,
              metadata={"format": "pt"})  # fmt: skip
    config = NolaMergeConfig(tmp_path / "adapter", check_base=False)
    with pytest.raises(MismatchError, match=r"layer\.1\..*the checkpoint has no weight for it"):
        load(tmp_path / "base", config, transformers.Dinov2Model)


def test_a_tensor_that_comes_twice(tmp_path):
    """Once by its own name, merged, and then as a part of another, which replaces it."""
    saved(dinov2, ["up_proj"], tmp_path)
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    for name in [n for n in tensors if n.endswith("weights_in.weight")]:
        half = tensors[name].chunk(2)[1].clone()
        tensors[name.replace("weights_in", "up_proj")] = half
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(MismatchError, match="was loaded twice"):
        load(tmp_path / "base", tmp_path / "adapter", transformers.Dinov2Model)


def test_a_part_that_is_offloaded_before_it_is_merged(tmp_path, monkeypatch):
    saved(dinov2, ["up_proj"], tmp_path)
    monkeypatch.setattr(
        transformers.modeling_utils,
        "accelerate_dispatch",
        lambda model, *_: accelerate.cpu_offload(model, execution_device="cpu"),
    )
    places = {"device_map": {"encoder": "cpu", "embeddings": "cpu:0", "layernorm": "cpu"}}
    with pytest.raises(MismatchError, match="load the model without offloading"):
        load(tmp_path / "base", tmp_path / "adapter", transformers.Dinov2Model, **places)


def test_a_tied_weight_is_refused_with_a_way_out(tmp_path):
    """What the message says works."""
    decoder(tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    made = trained_adapter({"lm_head": (100, 64)}, r=2, num_basis=4)
    with pytest.raises(MismatchError, match=r"save the base with tie_word_embeddings=False"):
        load(tmp_path / "base", made)
    untied = load(tmp_path / "base")
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
    untied.save_pretrained(tmp_path / "untied")
    assert load(tmp_path / "untied", made).lm_head.weight is not None
