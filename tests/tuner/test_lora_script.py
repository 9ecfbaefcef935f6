"""An ordinary LoRA script trains with the class changed, and with nothing else changed.

The settings are those of PEFT's documentation: the learning rate, the weight decay and the Trainer
of its quicktour, the rank and alpha of its README, dropout 0.05 on all linear layers.
"""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, transformers, PEFT among themselves

SCRIPT = """
from peft import get_peft_model
from peft import LoraConfig
from transformers import Trainer, TrainingArguments

config = LoraConfig(
    r=16,
    lora_alpha=32,
    lora_dropout=0.05,
    target_modules="all-linear",
    bias="none",
    init_lora_weights=True,
    task_type="CAUSAL_LM",
)
model = get_peft_model(model, config)
arguments = TrainingArguments(
    output_dir=folder,
    learning_rate=1e-3,
    per_device_train_batch_size=4,
    max_steps=60,
    weight_decay=0.01,
    seed=seed,
    use_cpu=True,
    report_to=[],
    save_strategy="no",
    disable_tqdm=True,
    dataloader_pin_memory=False,
)
Trainer(model=model, args=arguments, train_dataset=data).train()
model.save_pretrained(folder)
"""
CHANGED = SCRIPT.replace("from peft import LoraConfig", "from nola_edge.peft import NolaConfig")
CHANGED = CHANGED.replace("LoraConfig(", "NolaConfig(")

FOODS = ("French", "Indian", "Italian", "Chinese")
AREAS = ("the city centre", "the riverside", "the old town")
PRICES = ("cheap", "fair", "high")
KNOWN = "{food} food at {price} prices in {area}."
LEARNT = "In {area}: {price} prices, {food} food."


def tokens(pattern):
    """Return sentences of a pattern, letter by letter, padded to one length."""
    facts = itertools.product(FOODS, AREAS, PRICES)
    said = [pattern.format(food=f, area=a, price=p).ljust(48) for f, a, p in facts]
    return torch.tensor([[ord(letter) % 64 for letter in sentence] for sentence in said])


@functools.cache
def pretrained():
    """Return the weights of a small model that knows sentences of one pattern."""
    transformers.set_seed(0)
    model = small()
    ids = tokens(KNOWN)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(40):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def small():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip


def fall(script, folder, seed):
    """Return by how much a script lowers the loss of the other pattern, in nats."""
    model = small()
    model.load_state_dict(pretrained())
    ids = tokens(LEARNT)
    data = [{"input_ids": row, "labels": row} for row in ids]

    def loss(model):
        with torch.no_grad():
            return float(model.eval()(input_ids=ids, labels=ids).loss)

    before = loss(model)
    transformers.set_seed(seed)
    names = {"model": model, "data": data, "folder": str(folder), "seed": seed}
    exec(script, names)
    return before - loss(names["model"])


@pytest.mark.parametrize("seed", range(2))
def test_it_learns_at_least_half_of_what_lora_learns(tmp_path, seed):
    lora = fall(SCRIPT, tmp_path / "lora", seed)
    nola = fall(CHANGED, tmp_path / "nola", seed)
    assert lora > 2
    assert nola > lora / 2  # 0.66 of it
