"""Merges by PEFT, right and wrong, as ``verify`` judges them."""

from __future__ import annotations

import json
import math

import peft
import pytest
import torch
import transformers

import nola_edge as ne
from nola_edge.cli.verdict import Verdict
from tests.cli.in_process import call
from tests.tuner.models import SMALL, gpt2, llama, trained

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@pytest.fixture(params=[llama, gpt2])
def make(request):
    return request.param


@pytest.fixture
def paths(make, tmp_path):
    """Return a function that writes a base and an adapter of a dtype, and a LoRA of the same."""

    def written(dtype, **options):
        base = make(DTYPES[dtype])
        base.save_pretrained(tmp_path / "base")
        trained(base.float(), **options).save_pretrained(tmp_path / "adapter")
        ne.export_lora(tmp_path / "adapter", tmp_path / "base", tmp_path / "lora")
        return tmp_path / "base", tmp_path / "adapter", tmp_path / "lora"

    return written


def load(base, dtype):
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=DTYPES[dtype])


def merged_by_peft(base, lora, dtype, out, **options):
    peft.PeftModel.from_pretrained(load(base, dtype), lora, **options).merge_and_unload(
    ).save_pretrained(out)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clean_merge_passes_with_one_ulp(paths, dtype, tmp_path):
    base, adapter, lora = paths(dtype)
    merged_by_peft(base, lora, dtype, tmp_path / "out")
    for given in (adapter, lora):
        done = call("verify", tmp_path / "out", base, given, "--tensors-only", "--ulps", 1)
        assert done.returncode == 0, done.stdout
    report = ne.verify_checkpoint(tmp_path / "out", base, adapter, tensors_only=True)
    assert all(d.part == pytest.approx(d.right_part, abs=1e-3) for d in report.differences)


def test_factors_in_bfloat16_round_more_than_once(paths, tmp_path):
    base, adapter, lora = paths("bf16")
    merged_by_peft(base, lora, "bf16", tmp_path / "out", autocast_adapter_dtype=False)
    report = ne.verify_checkpoint(tmp_path / "out", base, adapter, tensors_only=True)
    assert report.differences
    assert Verdict(report).text in (
        "right, but rounded twice", "right, but computed in another precision than fp32",
    )  # fmt: skip


def test_rslora_that_a_program_does_not_know(paths, tmp_path):
    base, adapter, lora = paths("bf16", use_rslora=True)
    # The exported factors have what rsLoRA scales by in their alpha.
    config = json.loads((lora / "adapter_config.json").read_text())
    config["lora_alpha"] /= math.sqrt(SMALL["r"])
    (lora / "adapter_config.json").write_text(json.dumps(config))
    merged_by_peft(base, lora, "bf16", tmp_path / "out")
    report = ne.verify_checkpoint(tmp_path / "out", base, adapter, tensors_only=True)
    assert Verdict(report).text == f"scaled as if rsLoRA were off in all {report.merged} tensors"


def test_a_model_saved_without_its_adapter(paths, tmp_path):
    base, adapter, lora = paths("bf16")
    peft.PeftModel.from_pretrained(load(base, "bf16"), lora).unload().save_pretrained(
        tmp_path / "out"
    )
    report = ne.verify_checkpoint(tmp_path / "out", base, adapter, tensors_only=True)
    assert Verdict(report).text == f"the adapter was dropped from all {report.merged} tensors"


def test_an_adapter_that_is_merged_again(paths, tmp_path):
    base, adapter, lora = paths("bf16")
    merged_by_peft(base, lora, "bf16", tmp_path / "once")
    merged_by_peft(tmp_path / "once", lora, "bf16", tmp_path / "out")
    report = ne.verify_checkpoint(tmp_path / "out", base, adapter, tensors_only=True)
    assert Verdict(report).text == f"merged twice in all {report.merged} tensors"
