"""What transformers merges while it loads of LoRA with whole tensors, biases and DoRA."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import nola_edge as ne
import nola_edge.torch as nt
from nola_edge.errors import MismatchError
from nola_edge.transformers import NolaMergeConfig
from tests.integrations.lora_family import (
    EMBEDDING,
    FAMILIES,
    bert,
    llama,
    logits,
    lora,
    qwen,
    train,
)
from tests.integrations.test_transformers import assert_same, load

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of torch, transformers, PEFT among themselves
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture
def headless(tmp_path):
    """An encoder without a head, and an adapter that brings one."""
    torch.manual_seed(2)
    bert().bert.save_pretrained(tmp_path / "base")
    cls = transformers.BertForSequenceClassification
    model = cls.from_pretrained(tmp_path / "base", num_labels=3)
    wrapped = train(model, FAMILIES[bert]["DoRA"](), tmp_path / "lora")
    return tmp_path / "base", tmp_path / "lora", wrapped


def test_a_head_that_the_base_lacks_is_the_adapters(headless):
    base, adapter, wrapped = headless
    expected = logits(wrapped)
    model = load(base, adapter, transformers.BertForSequenceClassification, num_labels=3).eval()
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-6)
    other = load(base, cls=transformers.BertForSequenceClassification, num_labels=3)
    nt.merge_(other, adapter)
    assert_same(model, other)


def test_a_switch_to_a_head_that_the_base_lacks(headless, tmp_path):
    """It has to be in the base, to be switched back to; the error says how it gets there."""
    base, adapter, wrapped = headless
    expected = logits(wrapped)
    model = load(base, cls=transformers.BertForSequenceClassification, num_labels=3).eval()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    with nt.AdapterSwitch(model, base) as switch:
        switch.add("one", adapter)
        with pytest.raises(MismatchError, match=r"classifier\.\w+: is missing.*save_pretrained"):
            switch.use("one")
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    model.save_pretrained(tmp_path / "with-head")
    with nt.AdapterSwitch(model, tmp_path / "with-head") as switch:
        switch.add("one", adapter)
        switch.use("one")
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-6)
        switch.use(None)
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())


def test_a_switch_between_biases_of_a_base_with_other_names(tmp_path):
    """The first adapter says how the base's tensors are named, the second changes biases alone."""
    torch.manual_seed(2)
    cls = transformers.BertModel
    model = bert().bert
    model.save_pretrained(tmp_path / "base")
    config = {"target_modules": ["query"], "task_type": None}
    for name, options in {"plain": {}, "biases": {"bias": "all"}}.items():
        train_encoder(load(tmp_path / "base", cls=cls), lora(**config, **options), tmp_path / name)
        ne.merge_checkpoint(tmp_path / "base", tmp_path / name, tmp_path / f"merged-{name}")
    resident = load(tmp_path / "base", cls=transformers.BertForSequenceClassification)
    with nt.AdapterSwitch(resident, tmp_path / "base") as switch:
        for name in ("plain", "biases"):
            switch.add(name, tmp_path / name)
            switch.use(name)
            assert_same(resident.bert, load(tmp_path / f"merged-{name}", cls=cls))
        switch.use(None)
        assert_same(resident.bert, model)


def train_encoder(model, config, folder):
    wrapped = peft.get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    wrapped.save_pretrained(folder)


def test_a_head_for_other_labels(headless):
    base, adapter, _ = headless
    cls = transformers.BertForSequenceClassification
    with pytest.raises(MismatchError, match=r"classifier\.\w+: has shape .*num_labels=3"):
        load(base, adapter, cls)
    with pytest.raises(MismatchError, match=r"<BertModel>: .*classifier.* is not in the model"):
        load(base, adapter, transformers.BertModel)


@pytest.fixture
def tied(tmp_path):
    """A base whose output layer is its embedding, saved."""
    torch.manual_seed(3)
    config = llama().config
    config.tie_word_embeddings = True
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "base")
    return model


def test_both_halves_of_a_tied_embedding(tied, tmp_path):
    """As in files: they are tied no more."""
    config = lora(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    wrapped = train(tied, config, tmp_path / "lora")
    expected = logits(wrapped)
    with pytest.raises(MismatchError, match="brings both, so load with tie_word_embeddings=False"):
        load(tmp_path / "base", tmp_path / "lora")
    model = load(tmp_path / "base", tmp_path / "lora", tie_word_embeddings=False)
    torch.testing.assert_close(logits(model.eval()), expected, rtol=1e-5, atol=1e-6)
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "lora", tmp_path / "merged")
    assert_same(model, load(tmp_path / "merged"))


def test_one_half_of_a_tied_embedding(tied, tmp_path):
    config = lora(target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    train(tied, config, tmp_path / "lora")
    for merge in (
        lambda: load(tmp_path / "base", tmp_path / "lora"),
        lambda: nt.merge_(load(tmp_path / "base"), tmp_path / "lora"),
    ):
        with pytest.raises(
            MismatchError, match=r"is the same tensor as .*tie_word_embeddings=False"
        ):
            merge()


METHODS = [(llama, "DoRA, embedding"), (llama, "whole layers"), (qwen, "added biases")]


@pytest.fixture(params=METHODS, ids=lambda case: case[1])
def saved(request, tmp_path):
    make, method = request.param
    torch.manual_seed(4)
    model = make()
    model.save_pretrained(tmp_path / "base")
    train(model, FAMILIES[make][method](), tmp_path / "lora")
    return tmp_path / "base", tmp_path / "lora"


def test_another_dtype_is_that_of_loading_and_merging_then(saved):
    base, adapter = saved
    expected = load(base, dtype=torch.bfloat16)
    nt.merge_(expected, adapter)
    assert_same(load(base, adapter, dtype=torch.bfloat16), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tensors_that_are_given_stay_as_they_are(saved, dtype):
    base, adapter = saved
    given = load_file(base / "model.safetensors")
    before = {name: tensor.clone() for name, tensor in given.items()}
    config = transformers.AutoConfig.from_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_config(config)
    found = type(model).from_pretrained(
        None, config=config, state_dict=given, dtype=dtype,
        quantization_config=NolaMergeConfig(adapter),
    )  # fmt: skip
    assert_same(found, load(base, adapter, dtype=dtype))
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.items())


def test_a_whole_layer_that_would_be_offloaded_to_disk(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path / "base")
    train(model, lora(modules_to_save=["lm_head"], **EMBEDDING), tmp_path / "lora")
    places = {"model": "cpu", "lm_head": "disk"}
    with pytest.raises(MismatchError, match=r"lm_head\.weight: .*write a merged checkpoint first"):
        load(
            tmp_path / "base", tmp_path / "lora", device_map=places,
            offload_folder=tmp_path / "offload",
        )  # fmt: skip


def test_a_vocabulary_that_was_resized(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path / "base")
    model.resize_token_embeddings(70)
    config = lora(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    wrapped = train(model, config, tmp_path / "lora")
    expected = logits(wrapped)
    with pytest.raises(MismatchError, match=r"resize_token_embeddings\(70\)"):
        load(tmp_path / "base", tmp_path / "lora")
    resized = load(tmp_path / "base")
    resized.resize_token_embeddings(70)
    nt.merge_(resized, tmp_path / "lora")
    torch.testing.assert_close(logits(resized.eval()), expected, rtol=1e-5, atol=1e-6)
