"""The tuner warns of a learning rate that hardly moves coefficients, once."""

from __future__ import annotations

import gc
import warnings

import accelerate
import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn

from nola_edge.peft import NolaConfig
from tests.tuner.models import IDS, SMALL, llama

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def adapted():
    return get_peft_model(llama(), NolaConfig(**SMALL, target_modules="all-linear"))


def trained_numbers(model):
    return [values for values in model.parameters() if values.requires_grad]


def steps(model, optimizer, scheduler=None, count=3):
    """Train, and return what was said about the rate."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(count):
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            optimizer.zero_grad()
    return [str(w.message) for w in caught if "learning rate" in str(w.message)]


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.NAdam])
def test_the_default_of_training_arguments(make):
    model = adapted()
    (message,) = steps(model, make(trained_numbers(model), 5e-5))
    assert message.startswith(f"{make.__name__}'s learning rate of 5e-05 hardly moves")
    advised = 4e-3 / model.peft_config["default"].scaling
    assert f"`TrainingArguments(learning_rate={advised:.0e})`" in message
    assert steps(model, make(trained_numbers(model), 5e-5)) == []


def test_each_model_gets_a_word():
    for _ in range(2):
        model = adapted()
        assert len(steps(model, torch.optim.AdamW(trained_numbers(model), 5e-5))) == 1
        del model
        gc.collect()


def test_rates_that_train_and_optimisers_with_other_rates():
    for make, rate in ((torch.optim.AdamW, 1e-3), (torch.optim.SGD, 5e-5)):
        model = adapted()
        assert steps(model, make(trained_numbers(model), rate)) == []


def test_a_rate_that_is_low_while_it_warms_up():
    model = adapted()
    optimizer = torch.optim.AdamW(trained_numbers(model), 1e-2)
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, 1000, 2000)
    assert steps(model, optimizer, scheduler) == []
    model = adapted()
    optimizer = torch.optim.AdamW(trained_numbers(model), 1e-2)
    optimizer.param_groups[0]["lr"] = 1e-6  # warm-up by hand
    assert steps(model, optimizer) == []


class AdamOfItsOwnRate(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self):
        pass


def test_an_optimiser_without_a_rate():
    model = adapted()
    assert steps(model, AdamOfItsOwnRate(trained_numbers(model))) == []


@pytest.mark.filterwarnings("ignore")
def test_adafactor_finds_its_own_rate():
    model = adapted()
    assert steps(model, transformers.Adafactor(trained_numbers(model))) == []


class AdamOfAnOddRate(AdamOfItsOwnRate):
    def __init__(self, parameters):
        super().__init__(parameters)
        self.param_groups[0]["lr"] = "as the wind blows"


def test_an_optimiser_with_a_rate_that_is_no_number_goes_on():
    model = adapted()
    assert steps(model, AdamOfAnOddRate(trained_numbers(model))) == []


@pytest.mark.parametrize("others", [[], [1e-2]])
def test_the_rate_of_a_group(others):
    model, other = adapted(), nn.Linear(2, 2)
    groups = [{"params": trained_numbers(model), "lr": 1e-5}]
    groups += [{"params": other.parameters(), "lr": rate} for rate in others]
    (message,) = steps(model, torch.optim.AdamW(groups))
    assert "learning rate of 1e-05" in message


def test_two_models_with_an_optimiser_each():
    quick, slow = adapted(), adapted()
    optimizers = [
        torch.optim.AdamW(trained_numbers(model), rate)
        for model, rate in ((quick, 5e-3), (slow, 5e-5))
    ]
    assert steps(quick, optimizers[0]) == []
    (message,) = steps(slow, optimizers[1])
    assert "learning rate of 5e-05" in message


def test_another_models_optimiser_first():
    model, other = adapted(), nn.Linear(2, 2)
    unrelated = torch.optim.AdamW(other.parameters(), 1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other(torch.ones(2)).sum().backward()
        unrelated.step()
    optimizer = torch.optim.AdamW(trained_numbers(model), torch.tensor(5e-5), capturable=False)
    assert len(steps(model, optimizer)) == 1


def test_through_accelerate_and_fused():
    model = adapted()
    optimizer = torch.optim.AdamW(trained_numbers(model), 5e-5, fused=True)
    model, optimizer = accelerate.Accelerator(cpu=True).prepare(model, optimizer)
    assert len(steps(model, optimizer)) == 1


def test_trainer_with_its_own_rate(tmp_path):
    model = adapted()
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=2, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in IDS]
    with pytest.warns(UserWarning, match="learning rate of 5e-05"):
        transformers.Trainer(model=model, args=arguments, train_dataset=data).train()


def test_an_optimiser_of_8_bits():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = adapted()
    assert len(steps(model, bitsandbytes.optim.AdamW8bit(trained_numbers(model), 5e-5))) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_step_trains_as_before():
    model = adapted()
    values = trained_numbers(model)
    before = [v.detach().clone() for v in values]
    optimizer = torch.optim.AdamW(values, 5e-5)
    model(input_ids=IDS, labels=IDS).loss.backward()
    torch.compile(optimizer.step, backend="eager")()
    assert any(not torch.equal(v, old) for v, old in zip(values, before, strict=True))
