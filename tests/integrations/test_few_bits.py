"""torch, PEFT and transformers get the values that the format's text gives for few bits."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

import nola_edge as ne
import nola_edge.peft
import nola_edge.torch as nt
from nola_edge.demo.synthetic import trained_adapter
from tests.few_bits import FORMS, save_both
from tests.integrations.test_transformers import decoder, load, shapes_of

pytestmark = pytest.mark.filterwarnings("default")  # of transformers' own making
TOKENS = torch.arange(1, 31).reshape(2, 15)


def weights(model):
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def at_load(base, adapter):
    return weights(load(base, adapter))


def in_memory(base, adapter):
    model = load(base)
    nt.merge_(model, adapter)
    return weights(model)


def switched(base, adapter):
    model = load(base)
    with nt.AdapterSwitch(model, base) as switch:
        switch.add("one", adapter)
        switch.use("one")
    return weights(model)


def by_peft(base, adapter):
    return weights(PeftModel.from_pretrained(load(base), adapter).merge_and_unload())


def unmerged(base, adapter):
    return said(PeftModel.from_pretrained(load(base), adapter))


def by_transformers(base, adapter):
    model = load(base)
    model.load_adapter(str(adapter))
    return said(model)


def saved_again(base, adapter):
    """As a run that resumes saves it: nothing is rounded twice."""
    model = PeftModel.from_pretrained(load(base), adapter, is_trainable=True)
    model.save_pretrained(adapter.parent / "again")
    modules = ne.load_adapter(adapter.parent / "again").modules
    return {name: (c.alpha.tobytes(), c.beta.tobytes()) for name, c in modules.items()}


def said(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits.numpy().tobytes()


READERS = [
    at_load, in_memory, switched, by_peft, unmerged, by_transformers, saved_again,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_reader_gets_the_same_values(form, tmp_path):
    model = decoder()
    model.save_pretrained(tmp_path / "base")
    adapter = trained_adapter(shapes_of(model, "_proj."), r=4, num_basis=60, seed=3)
    few, floats = save_both(adapter, tmp_path, form, 3)
    for read in READERS:
        assert read(tmp_path / "base", few) == read(tmp_path / "base", floats), read
