"""A real language model, SmolLM2-135M-Instruct: trained with PEFT, then merged by every way.

Every result is judged by the logits of the unmerged PEFT model. What is tolerated is a share of
what the adapter changes: 0 is the adapter itself, and 1 as far off as not having merged.
"""

from __future__ import annotations

import threading

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model

import nola_edge as ne
from nola_edge.export.gguf_lora import export_gguf_lora
from nola_edge.gguf import merge_gguf
from nola_edge.gguf.verify import verify_gguf
from nola_edge.peft import NolaConfig, align_start
from nola_edge.torch import AdapterSwitch
from tests.integrations.test_transformers import assert_same, load

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("default")]
PROMPT = "The capital of France is"
TEXT = f"{PROMPT} a question that nobody here answers."


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)


@pytest.fixture(scope="module")
def base(smollm2, tmp_path_factory):
    """The model as a folder in float32; what transformers has read as GGUF it does not save."""
    folder = tmp_path_factory.mktemp("real") / "base"
    read = read_gguf(smollm2)
    del read.config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(base, tokenizer, one_thread):
    """The model after five steps from an aligned start, its losses, and the adapter's folder."""
    config = NolaConfig(
        r=8, num_basis_a=32, num_basis_b=32, lora_alpha=16, target_modules="all-linear", seed=3
    )
    model = get_peft_model(load(base), config)
    batch = dict(tokenizer(TEXT, return_tensors="pt"))
    batch["labels"] = batch["input_ids"]
    gains = align_start(model, [batch], progress=False)
    assert min(gains.values()) > 1
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 5e-3)
    losses = []
    for _ in range(5):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.save_pretrained(base.parent / "adapter")
    return model.eval(), losses, base.parent / "adapter"


@pytest.fixture(scope="module")
def logits(trained, tokenizer):
    """Logits without the adapter, and with it, unmerged."""
    model, _, _ = trained
    with model.disable_adapter():
        before = logits_of(model, tokenizer)
    return before, logits_of(model, tokenizer)


def read_gguf(file):
    return transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)


@torch.no_grad()
def logits_of(model, tokenizer):
    return model(**tokenizer(TEXT, return_tensors="pt")).logits[0].float()


def share_lost(found, logits):
    """Return how far off logits are, as a share of what the adapter changes."""
    before, wanted = logits
    return float((found - wanted).norm() / (wanted - before).norm())


def test_five_steps_learn(trained):
    model, losses, adapter = trained
    assert losses[-1] < 0.8 * losses[0]
    assert model.peft_config["default"].start == "aligned"
    assert ne.Adapter.load(adapter).num_coefficients == 64 * 210


@pytest.mark.parametrize(
    ("dtype", "tolerated"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)], ids=str
)
def test_a_merged_folder(dtype, tolerated, base, trained, logits, tokenizer, tmp_path):
    _, _, adapter = trained
    if dtype != torch.float32:
        load(base, dtype=dtype).save_pretrained(tmp_path / "base")
        base = tmp_path / "base"
    ne.merge_checkpoint(base, adapter, tmp_path / "merged", check_base=dtype == torch.float32)
    merged = load(tmp_path / "merged")
    assert merged.dtype == dtype
    assert share_lost(logits_of(merged, tokenizer), logits) < tolerated
    assert_same(PeftModel.from_pretrained(load(base), adapter).merge_and_unload(), merged)


def test_merged_at_load(base, trained, logits, tokenizer):
    _, _, adapter = trained
    assert share_lost(logits_of(load(base, adapter), tokenizer), logits) < 1e-4


class Waiting(transformers.generation.streamers.BaseStreamer):
    """Tells when a generation has begun, and lets another thread try to disturb it."""

    def __init__(self):
        self.begun = threading.Event()

    def put(self, _):
        self.begun.set()

    def end(self):
        pass


def test_switched_while_it_generates(base, trained, tokenizer):
    """A text that has begun is finished with the adapter that it began with."""
    model, _, adapter = trained
    resident = load(base)
    prompt = tokenizer(PROMPT, return_tensors="pt")

    def said(by, **options):
        return by.generate(**prompt, max_new_tokens=8, do_sample=False, **options)[0].tolist()

    with model.disable_adapter():
        plain = said(model)
    adapted = said(model)
    assert adapted != plain
    with AdapterSwitch(resident, base) as switch:
        switch.add("trained", adapter)
        switch.use("trained")
        waiting = Waiting()
        other = threading.Thread(target=lambda: waiting.begun.wait() and switch.use(None))
        other.start()
        with switch.running():
            assert said(resident, streamer=waiting) == adapted
        other.join()
        assert said(resident) == plain


def lost_in_llama_cpp(logits, file, *loras):
    """Return the share lost in the likeliest tokens after the text.

    An eighth is the base's own: for a file in four bits llama.cpp rounds activations to eight.
    """
    xllamacpp = pytest.importorskip("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.warmup = str(file), 64, False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    infos = [xllamacpp.CommonAdapterLoraInfo() for _ in loras]
    for info, lora in zip(infos, loras, strict=True):
        info.path, info.scale = str(lora), 1.0
    parameters.lora_adapters = infos
    asked = {"prompt": TEXT, "temperature": 0, "max_tokens": 1, "logprobs": 200}
    answer = xllamacpp.Server(parameters).handle_completions(asked)
    likely = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    tokens = [entry["id"] for entry in likely]
    found = torch.tensor([entry["logprob"] for entry in likely])
    return share_lost(found, [values[-1].log_softmax(-1)[tokens] for values in logits])


# Steps of four bits are coarser than a change that five steps have made: little of it stays.
@pytest.mark.parametrize(("outtype", "tolerated"), [(None, 1), ("Q8_0", 0.25), ("F16", 0.2)])
def test_a_merged_gguf_file(outtype, tolerated, smollm2, trained, logits, tmp_path):
    _, _, adapter = trained
    merged = tmp_path / "merged.gguf"
    assert merge_gguf(smollm2, adapter, merged, outtype=outtype).merged == 7 * 30
    assert verify_gguf(merged, smollm2, adapter).identical
    assert lost_in_llama_cpp(logits, merged) < tolerated


def test_a_lora_beside_the_gguf_file(smollm2, trained, logits, tmp_path):
    _, _, adapter = trained
    export_gguf_lora(adapter, smollm2, tmp_path / "lora.gguf")
    assert lost_in_llama_cpp(logits, smollm2, tmp_path / "lora.gguf") < 0.25
