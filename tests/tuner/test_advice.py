"""Whoever does what a refusal or a note says gets the model that was trained, by PEFT's word."""

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import nola_edge as ne
from nola_edge.errors import MismatchError
from nola_edge.peft import NolaConfig
from tests.tuner.models import IDS, SMALL, llama

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves


def adapted(model, **options):
    """Adapt a model and return it with every trained number other than it was."""
    options = {"target_modules": ["q_proj"], **SMALL, **options}
    model = get_peft_model(model, NolaConfig(init_weights=False, **options)).eval()
    generator = torch.Generator().manual_seed(7)
    for name, values in model.named_parameters():
        if "modules_to_save" in name:
            values.data += torch.randn(values.shape, generator=generator)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS[:2]).logits


def merged(folder, base, loader=AutoModelForCausalLM, **options):
    ne.merge_checkpoint(folder / base, folder / "adapter", folder / "out")
    return logits(loader.from_pretrained(folder / "out", **options).eval())


def close(got, wanted):
    """Merged and not merged: the same but for rounding; the adapters change logits by far more."""
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)


def refused(folder, message):
    with pytest.raises(MismatchError) as caught:
        ne.merge_checkpoint(folder / "base", folder / "adapter", folder / "out")
    assert message in str(caught.value)
    assert not (folder / "out").exists()


def test_a_tied_output_layer(tmp_path):
    """The tuner's refusal leads to the adapter, and that of the merge to the base it fits."""
    model = llama()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "base")
    targets = ["q_proj", "lm_head"]
    with pytest.raises(ValueError, match="or untie the two first"):
        adapted(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), target_modules=targets)
    model = adapted(untied(tmp_path / "base"), target_modules=targets)
    model.save_pretrained(tmp_path / "adapter")
    refused(tmp_path, "save the base untied (lm_head.weight as a tensor of its own")
    untied(tmp_path / "base").save_pretrained(tmp_path / "untied")
    close(merged(tmp_path, "untied"), logits(model))


def untied(base):
    model = AutoModelForCausalLM.from_pretrained(base, tie_word_embeddings=False)
    model.lm_head.weight.data = model.model.embed_tokens.weight.data.clone()
    return model


def test_a_resized_vocabulary(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    size = llama().config.vocab_size + 4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(size)
    model = adapted(model, modules_to_save=["embed_tokens", "lm_head"])
    model.save_pretrained(tmp_path / "adapter")
    refused(tmp_path, f"model.resize_token_embeddings({size})")
    resized = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    resized.resize_token_embeddings(size)
    resized.save_pretrained(tmp_path / "resized")
    close(merged(tmp_path, "resized"), logits(model))


@pytest.mark.parametrize("labels", [None, 3])
def test_a_head_with_other_labels(tmp_path, labels):
    """On a base without a head, and on one whose head has three rows."""
    loader = AutoModelForSequenceClassification
    llama().save_pretrained(tmp_path / "base")
    if labels is not None:
        loader.from_pretrained(tmp_path / "base", num_labels=labels).save_pretrained(
            tmp_path / "base"
        )
    wanted = {"num_labels": 5, "ignore_mismatched_sizes": labels is not None}
    model = adapted(loader.from_pretrained(tmp_path / "base", **wanted), task_type="SEQ_CLS")
    model.save_pretrained(tmp_path / "adapter")
    base = "base"
    if labels is not None:
        refused(tmp_path, "num_labels=5, ignore_mismatched_sizes=True), then save_pretrained")
        base = "resized"
        loader.from_pretrained(tmp_path / "base", **wanted).save_pretrained(tmp_path / base)
    close(merged(tmp_path, base, loader, num_labels=5), logits(model))
