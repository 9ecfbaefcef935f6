"""Adapters with an aligned start: in a Trainer, on quantised bases, in files."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model

import nola_edge as ne
from nola_edge.peft import AlignStart, NolaConfig, align_start
from tests.tuner.models import IDS, SMALL, llama, logits, quantised, same_tensors, train

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
DATA = [{"input_ids": row, "labels": row} for row in torch.cat([IDS, IDS.flip(1), IDS % 7])]


class Seen(transformers.DataCollatorWithPadding):
    """Collates, and remembers what."""

    def __init__(self):
        self.rows = []

    def __call__(self, rows):
        self.rows += [int(row["input_ids"][0]) for row in rows]
        return transformers.default_data_collator(rows)


def run(folder, *callbacks, steps=4, resume=None):
    model = get_peft_model(llama(), NolaConfig(**SMALL, target_modules="all-linear"))
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=2, seed=3,
        learning_rate=2e-2, report_to=[], save_steps=2, disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    seen = Seen()
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=DATA, data_collator=seen, callbacks=[*callbacks]
    )
    trainer.train(resume_from_checkpoint=resume)
    return model, seen.rows


def test_a_trainer_aligns_first_and_trains_in_the_same_order(tmp_path):
    _, plain = run(tmp_path / "plain")
    model, rows = run(tmp_path / "aligned", AlignStart(num_batches=2))
    assert rows == plain[:4] + plain
    assert model.peft_config["default"].start == "aligned"


def test_a_run_that_resumes_keeps_its_start(tmp_path):
    wanted, _ = run(tmp_path, AlignStart(num_batches=2))
    resumed, _ = run(tmp_path, AlignStart(num_batches=2), resume=str(tmp_path / "checkpoint-2"))
    assert torch.equal(logits(resumed), logits(wanted))


def test_the_start_is_recorded_and_read_by_all(tmp_path):
    base = llama(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, NolaConfig(**SMALL, target_modules="all-linear"))
    align_start(model, [{"input_ids": IDS, "labels": IDS}], progress=False)
    train(model)
    model.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["start"] == "aligned"
    again = PeftModel.from_pretrained(llama(torch.bfloat16), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    same_tensors(again.merge_and_unload(), tmp_path / "merged")


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base(bits):
    model = quantised(bits)
    model = get_peft_model(model, NolaConfig(**SMALL, target_modules=["lin"]))
    batches = [torch.randn(5, 64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    gains = align_start(model, batches, loss=lambda m, x: m(x).square().sum(), progress=False)
    assert gains["lin"] > 1.5


def test_only_active_adapters_are_aligned():
    model = get_peft_model(llama(), NolaConfig(**SMALL, target_modules="all-linear"))
    model.add_adapter("b", NolaConfig(**{**SMALL, "seed": 4}, target_modules="all-linear"))
    name = "base_model.model.model.layers.0.mlp.up_proj.nola_alpha."
    before = model.get_parameter(name + "default").detach().clone()
    model.set_adapter("b")
    align_start(model, [{"input_ids": IDS, "labels": IDS}], progress=False)
    assert torch.equal(model.get_parameter(name + "default"), before)
    assert model.get_parameter(name + "b")[1:].abs().max() > 0
    assert model.peft_config["default"].start == "unit"
