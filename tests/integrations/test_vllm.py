"""The LoRA that vLLM is given, in PEFT, which reads the same folders: the merge, to rounding."""

from __future__ import annotations

import json

import peft
import pytest
import torch

import nola_edge as ne
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.vllm.cache import LoraCache
from tests.integrations.test_transformers import decoder, load, shapes_of
from tests.vllm import standin

pytestmark = pytest.mark.filterwarnings("default")  # of transformers' own making

TOKENS = torch.arange(1, 41).reshape(2, 20)


@pytest.fixture
def served(tmp_path):
    """A base in several files, an adapter as a folder, quantised, packed, and with rsLoRA."""
    model = decoder()
    model.save_pretrained(tmp_path / "base", max_shard_size="100KB")
    folder = tmp_path / "adapters"
    folder.mkdir()
    shapes = shapes_of(model, "_proj.")
    base = tmp_path / "base"
    plain = trained_adapter(shapes, r=8, num_basis=48, seed=3, base=base)
    plain.save(folder / "plain")
    plain.quantize(4).save(folder / "quantized")
    plain.quantize(8).pack(folder / "packed.nola")
    trained_adapter(shapes, r=8, num_basis=48, seed=5, basis="uniform", use_rslora=True).save(
        folder / "rslora"
    )
    cache = LoraCache(folder, tmp_path / "cache", max_bytes=10_000_000)
    yield tmp_path / "base", folder, cache
    cache.close()


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


@pytest.mark.parametrize("name", ["plain", "quantized", "packed.nola", "rslora"])
def test_peft_gives_the_merged_models_logits(served, tmp_path, name):
    base, adapters, cache = served
    lora = cache.get(name, base)
    config = json.loads((lora / "adapter_config.json").read_text())
    assert not standin.complaints(config)
    known = {field for field in config if field in peft.LoraConfig.__dataclass_fields__}
    assert known == set(config)
    ne.merge_checkpoint(base, adapters / name, tmp_path / "merged")
    expected, unadapted = logits(load(tmp_path / "merged")), logits(load(base))
    found = logits(peft.PeftModel.from_pretrained(load(base), lora))
    change = (expected - unadapted).abs().max()
    assert change > 0.01
    assert (found - expected).abs().max() < 1e-3 * change


def test_what_peft_loads_is_every_factor(served):
    base, _, cache = served
    model = peft.PeftModel.from_pretrained(load(base), cache.get("plain", base))
    loaded = peft.get_peft_model_state_dict(model)
    adapter = ne.Adapter.load(served[1] / "plain")
    assert len(loaded) == 2 * len(adapter.modules)
    for module, (out_features, in_features) in shapes_of(decoder(), "_proj.").items():
        factors = adapter.factors(module, out_features, in_features)
        for letter, factor in zip("AB", factors, strict=True):
            values = loaded[f"base_model.model.{module}.lora_{letter}.weight"]
            assert torch.equal(values, torch.from_numpy(factor))


def test_the_served_dtype_needs_no_second_rounding(served, tmp_path):
    """Files in BF16 hold what torch, and so vLLM, makes of files in F32."""
    from safetensors.torch import load_file

    base, adapters, cache = served
    narrow = LoraCache(adapters, tmp_path / "narrow", max_bytes=10_000_000, dtype="BF16")
    wide = load_file(cache.get("plain", base) / "adapter_model.safetensors")
    half = load_file(narrow.get("plain", base) / "adapter_model.safetensors")
    narrow.close()
    assert wide.keys() == half.keys()
    for name, values in wide.items():
        assert torch.equal(values.to(torch.bfloat16), half[name])
