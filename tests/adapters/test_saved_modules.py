"""What ``modules_to_save`` announces is in the adapter, or the adapter is refused."""

import json

import numpy as np
import pytest

from nola_edge import Adapter
from nola_edge.adapters.load import load_adapter
from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.errors import AdapterError
from tests.conftest import load_all, snapshot, tiny_adapter, write_safetensors
from tests.lora_folders import factors, write_lora


def announcing(folder, names, tensors=()):
    """Write an adapter that announces modules, and holds tensors of some."""
    tiny_adapter().save(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": names}))
    held = load_all(folder / "adapter_model.safetensors")
    held |= {f"base_model.model.{name}.weight": np.ones((2, 40), np.float32) for name in tensors}
    write_safetensors(folder / "adapter_model.safetensors", held)
    return folder


def announcing_lora(folder, names, tensors=()):
    """Write the same as a LoRA."""
    held = {f"{PREFIX}{name}.weight": np.ones((2, 40), np.float32) for name in tensors}
    return write_lora(folder, factors() | held, modules_to_save=names)


@pytest.mark.parametrize("write", [announcing, announcing_lora])
@pytest.mark.parametrize(
    ("announced", "held", "missing"),
    [
        (["score"], [], "score"),
        (["score", "classifier"], [], "score"),
        (["score", "embed_tokens"], ["score"], "embed_tokens"),
        (["score", "classifier", "lm_head"], ["classifier"], "lm_head"),
        (["core"], [], "core"),
    ],
)
def test_one_that_is_missing_is_named(tmp_path, write, announced, held, missing):
    folder = write(tmp_path / "a", announced, held)
    before = snapshot(tmp_path)
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder)
    assert str(caught.value).startswith(
        f"{folder}/adapter_config.json: modules_to_save: announces '{missing}', but the adapter "
        "holds no tensor of it"
    )
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("write", [announcing, announcing_lora])
@pytest.mark.parametrize(
    ("announced", "held"),
    [
        (["classifier", "score"], ["score"]),
        (["classifier", "score"], ["classifier.out_proj"]),
        (["lm_head"], ["model.lm_head"]),
        (["norm"], ["model.norm", "layers.0.input_layernorm"]),  # PEFT asks for the end alone
        ([], []),
    ],
)
def test_a_classifier_has_one_of_two_names(tmp_path, write, announced, held):
    adapter = load_adapter(write(tmp_path / "a", announced, held))
    assert len(adapter.whole_tensors) == len(held)


def test_a_packed_adapter_has_its_saved_modules(tmp_path):
    adapter = Adapter.load(announcing(tmp_path / "a", ["classifier", "score"], ["score"]))
    adapter.pack(tmp_path / "a.nola")
    assert list(Adapter.load(tmp_path / "a.nola").whole_tensors) == list(adapter.whole_tensors)
