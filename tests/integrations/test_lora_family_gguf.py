"""LoRA, DoRA and VeRA trained by PEFT, merged into GGUF files: the tensors of the merged model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

import nola_edge.torch as nt
from nola_edge.files.gguf import GgufFile
from nola_edge.gguf.quantization import numbers_of
from tests.cli.in_process import call, refused
from tests.conftest import snapshot
from tests.integrations.gguf_models import gguf_tensors, write_gguf
from tests.integrations.lora_family import FAMILIES, gpt2, llama, logits, train

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of torch, transformers, PEFT among themselves
    pytest.mark.usefixtures("one_thread"),
]
KINDS = {llama: "llama", gpt2: "gpt2"}
CASES = [(make, method) for make in KINDS for method in FAMILIES[make] if method != "whole layers"]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].__name__}, {case[1]}")
def trained(request, tmp_path_factory):
    """A model with adapters merged, its kind, and the folder of base and adapter."""
    make, method = request.param
    folder = tmp_path_factory.mktemp("gguf")
    torch.manual_seed(1)
    model = make().eval()
    for dtype in ("F32", "Q8_0"):
        write_gguf(folder / f"{dtype}.gguf", gguf_tensors(model, KINDS[make]), KINDS[make],
                   model.config, dtype)  # fmt: skip
    model.save_pretrained(folder / "base")
    unmerged = logits(train(model, FAMILIES[make][method](), folder / "adapter"))
    merged = nt.load_merged(type(model), folder / "base", folder / "adapter").eval()
    return merged, KINDS[make], folder, unmerged


def merged_file(folder, dtype, tmp_path):
    base, merged = folder / f"{dtype}.gguf", tmp_path / f"{dtype}.gguf"
    done = call("merge", base, folder / "adapter", "-o", merged)
    assert done.returncode == 0, done
    assert call("verify", merged, base, folder / "adapter").returncode == 0
    return merged


def test_what_has_no_place_in_gguf(tmp_path):
    model = llama().eval()
    base, adapter = tmp_path / "base.gguf", tmp_path / "adapter"
    write_gguf(base, gguf_tensors(model, "llama"), "llama", model.config)
    train(model, FAMILIES[llama]["whole layers"](), adapter)
    before = snapshot(tmp_path)
    line = refused("merge", base, adapter, "-o", tmp_path / "out.gguf")
    assert "cannot go into GGUF; merge into the Hugging Face checkpoint" in line
    assert snapshot(tmp_path) == before


def tensors_of(path):
    found = {}
    with GgufFile.open(path) as file:
        for name, info in file.tensors.items():
            data = np.empty(info.nbytes, np.uint8)
            file.read_into(data.data, info.start)
            found[name] = data, info
    return found


def test_float32_has_the_bits_of_the_merged_model(trained, tmp_path):
    model, kind, folder, unmerged = trained
    merged = merged_file(folder, "F32", tmp_path)
    found = tensors_of(merged)
    for name, values in gguf_tensors(model, kind).items():
        assert found[name][0].tobytes() == values.tobytes(), name
    read = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=merged.name, config=model.config, dtype=torch.float32
    )
    torch.testing.assert_close(logits(read.eval()), unmerged, rtol=1e-5, atol=1e-6)


def test_q8_0_is_the_merged_model_but_for_its_steps(trained, tmp_path):
    model, kind, folder, _ = trained
    found = tensors_of(merged_file(folder, "Q8_0", tmp_path))
    plain = gguf_tensors(model, kind)
    assert any(info.dtype == "Q8_0" for _, info in found.values())
    for name, (data, info) in found.items():
        if info.dtype == "Q8_0":
            values = numbers_of("Q8_0").decode(data.reshape(len(plain[name]), -1))
            # Half a step of the base's, and half a step of the result's.
            steps = np.abs(plain[name]).max() / 127
            assert np.abs(values - plain[name]).max() <= 1.2 * steps, name
