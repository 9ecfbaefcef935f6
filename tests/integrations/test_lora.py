"""LoRA beside NOLA in one merge and one export, and what PEFT does otherwise."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import nola_edge as ne
import nola_edge.torch as nt
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.torch.sharding import Shard
from nola_edge.torch.stored_factors import StoredFactors
from tests.integrations.lora_family import FAMILIES, llama, train
from tests.integrations.test_transformers import load
from tests.lora_folders import write_lora

pytestmark = pytest.mark.filterwarnings("default")  # of transformers' and PEFT's own making


def test_a_bfloat16_embedding_is_rounded_once(tmp_path):
    """PEFT rounds what it adds to an embedding before it adds it; nola-edge does not."""
    torch.manual_seed(1)
    model = llama().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    merged = train(model, FAMILIES[llama]["embedding"](), tmp_path / "lora").merge_and_unload()
    theirs = merged.state_dict()
    ne.merge_checkpoint(tmp_path / "base", tmp_path / "lora", tmp_path / "merged")
    ours = load_file(tmp_path / "merged" / "model.safetensors")
    name = "model.embed_tokens.weight"
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    a, b = (stored[f"base_model.model.model.embed_tokens.lora_embedding_{x}"] for x in "AB")
    base = load_file(tmp_path / "base" / "model.safetensors")[name]
    wanted = base.double() + (b.double() @ a.double()).T * 7 / 4
    one, two = ((m[name].double() - wanted).abs().sum() for m in (ours, theirs))
    assert one < two
    assert (ours[name] == wanted.to(torch.bfloat16)).float().mean() > 0.999


def mixed(tmp_path):
    """Return a base, and a LoRA and a NOLA adapter that meet in one weight."""
    torch.manual_seed(2)
    llama().save_pretrained(tmp_path / "base")
    train(load(tmp_path / "base"), FAMILIES[llama]["embedding"](), tmp_path / "lora")
    shapes = {f"model.layers.{i}.self_attn.q_proj": (64, 64) for i in range(2)}
    trained_adapter(shapes, r=3, num_basis=20, base=tmp_path / "base").save(tmp_path / "nola")
    adapters = [tmp_path / "nola", (tmp_path / "lora", -0.7)]
    ne.merge_checkpoint(tmp_path / "base", adapters, tmp_path / "merged")
    return tmp_path / "base", adapters, load_file(tmp_path / "merged" / "model.safetensors")


def holds(model, tensors):
    state = model.state_dict()
    return all(torch.equal(state[name], values) for name, values in tensors.items())


def test_models_in_memory_get_the_same_bits(tmp_path):
    base, adapters, wanted = mixed(tmp_path)
    model = load(base)
    assert not holds(model, wanted)
    nt.merge_(model, adapters)
    assert holds(model, wanted)
    assert holds(nt.load_merged(transformers.LlamaForCausalLM, base, adapters), wanted)
    resident = load(base)
    with nt.AdapterSwitch(resident, base) as switch:
        switch.add("nola", tmp_path / "nola")
        switch.add("lora", tmp_path / "lora")
        switch.use([("nola", 1), ("lora", -0.7)])
        assert holds(resident, wanted)
        switch.use("lora")
        switch.use(None)
        assert holds(resident, load_file(base / "model.safetensors"))


def test_half_precision_models_in_memory(tmp_path):
    """Here the update is bounded first, from the factors: float16 has little room."""
    base, adapters, _ = mixed(tmp_path)
    model, one = (load(base, dtype=torch.float16) for _ in range(2))
    nt.merge_(model, adapters)
    model.save_pretrained(tmp_path / "half")
    one.save_pretrained(tmp_path / "half-base")
    with ne.open_merged(tmp_path / "half-base", adapters, check_base=False) as wanted:
        found = load_file(tmp_path / "half" / "model.safetensors")
        assert all(np.array_equal(found[name].numpy(), wanted[name]) for name in wanted)


def test_a_process_reads_its_part_of_the_factors(tmp_path):
    """As a model that is split over processes asks for it."""
    adapter = ne.load_adapter(write_lora(tmp_path / "lora"))
    whole = StoredFactors(adapter, "layers.0.q", 40, 24)
    part = whole.on(Shard(rows=(5, 9), cols=(32, 40)))
    device = torch.empty(0)
    assert torch.equal(part.a(device), whole.a(device)[:, 32:40])
    assert torch.equal(part.b(device), whole.b(device)[5:9])
    product = whole.b(device) @ whole.a(device)
    assert float(product.abs().max()) <= whole.largest_product(device, device)


def test_peft_loads_what_is_exported_of_both_methods(tmp_path):
    base, adapters, wanted = mixed(tmp_path)
    ne.export_lora(adapters, base, tmp_path / "both")
    ne.merge_checkpoint(base, tmp_path / "both", tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[name], values) for name, values in wanted.items())
    theirs = peft.PeftModel.from_pretrained(load(base), tmp_path / "both").merge_and_unload()
    for name, values in theirs.state_dict().items():
        torch.testing.assert_close(values, wanted[name], rtol=1e-6, atol=1e-7)
