"""The demonstration's model is the same one in numpy, in transformers and PEFT, and as GGUF."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nola_edge.demo.decoder import Cache, Decoder
from nola_edge.demo.examples import right_slots
from nola_edge.demo.kept import keep
from nola_edge.demo.scoring import Shipped, facts_of
from nola_edge.files.atomic import AtomicOutput
from nola_edge.files.safetensors import SafetensorsFile
from nola_edge.gguf import merge_gguf

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = np.array([[5, 17, 3, 88, 17, 41, 2], [9, 1, 22, 8, 70, 4, 33]])
PROMPTS = [[5, 17, 3], [9, 1, 22, 8, 70], [4]]
COUNT = 12


@pytest.fixture(scope="module")
def models():
    transformers.set_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=90, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
        num_attention_heads=4, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tensors = {name: p.detach().numpy() for name, p in model.named_parameters()}
    return model, Decoder(tensors, config.to_dict())


def generated(model, prompts, count=COUNT, stop=None):
    """Return the likeliest tokens after each prompt, as transformers has them."""
    found = []
    for prompt in prompts:
        with torch.no_grad():
            out = model.generate(
                torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=stop
            )
        row = out[0, len(prompt) :].tolist()
        found.append(row[: [*row, stop].index(stop)])
    return found


def test_logits(models):
    model, decoder = models
    with torch.no_grad():
        expected = model(torch.tensor(TOKENS)).logits.numpy()
    np.testing.assert_allclose(decoder.forward(TOKENS), expected, rtol=2e-4, atol=2e-4)


def test_a_cache_changes_nothing(models):
    _, decoder = models
    cache = Cache([0, 0], 7)
    pieces = (TOKENS[:, :3], TOKENS[:, 3:4], TOKENS[:, 4:])
    parts = [decoder.forward(piece, cache) for piece in pieces]
    whole = decoder.forward(TOKENS)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-4, atol=1e-4)


def test_padding_changes_nothing(models):
    _, decoder = models
    padded = np.concatenate([np.zeros((2, 4), int), TOKENS], axis=1)
    logits = decoder.forward(padded, Cache([4, 4], 11))[:, 4:]
    np.testing.assert_allclose(logits, decoder.forward(TOKENS), rtol=1e-4, atol=1e-4)


def test_generation_in_a_batch(models):
    model, decoder = models
    expected = generated(model, PROMPTS)
    assert decoder.generate(PROMPTS, stop=-1, limit=COUNT) == expected
    stop = expected[0][4]
    shorter = [row[: [*row, stop].index(stop)] for row in expected]
    assert decoder.generate(PROMPTS, stop=stop, limit=COUNT) == shorter


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "kept"
    with AtomicOutput(folder, directory=True) as output:
        keep(output)
    return folder


def merged_decoder(task):
    """Return the decoder that the demonstration lets answer."""
    from nola_edge.merge.open import open_merged

    shipped = Shipped()
    with open_merged(shipped.base, shipped.adapter(task)) as tensors:
        return shipped.decoder(dict(tensors))


@pytest.fixture(scope="module", params=["say", "read"])
def answers(request):
    """A task, some of its prompts, and the tokens of the answers to them."""
    shipped = Shipped()
    prompts = shipped.prompts[request.param][:6]
    stop = shipped.config["eos_token_id"]
    return request.param, prompts, merged_decoder(request.param).generate(prompts, stop)


def test_the_tokenizer_is_the_one_of_the_shipped_prompts(kept):
    shipped = Shipped()
    tokenizer = transformers.AutoTokenizer.from_pretrained(kept / "base")
    assert len(tokenizer) == shipped.config["vocab_size"]
    assert tokenizer.eos_token_id == shipped.config["eos_token_id"]
    assert tokenizer.pad_token_id == shipped.config["pad_token_id"] != tokenizer.eos_token_id
    for prompts in shipped.prompts.values():
        for prompt in prompts:
            text = shipped.text(prompt)
            assert tokenizer(text)["input_ids"] == prompt
            assert tokenizer.decode(prompt) == text


def test_peft_gives_the_same_answers(kept, answers):
    peft = pytest.importorskip("peft")
    import nola_edge.peft  # noqa: F401  (teaches PEFT what NOLA is)

    task, prompts, expected = answers
    base = transformers.AutoModelForCausalLM.from_pretrained(kept / "base")
    assert base.dtype == torch.bfloat16
    model = peft.PeftModel.from_pretrained(base, kept / task).merge_and_unload()
    assert generated(model.float().eval(), prompts, 64, base.config.eos_token_id) == expected


def test_peft_is_right_without_merging(kept, answers):
    """Rounding of merged weights may decide between two phrases, but not about facts."""
    peft = pytest.importorskip("peft")
    import nola_edge.peft  # noqa: F401  (teaches PEFT what NOLA is)

    task, prompts, _ = answers
    shipped = Shipped()
    base = transformers.AutoModelForCausalLM.from_pretrained(kept / "base", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, kept / task).eval()
    said = generated(model, prompts, 64, base.config.eos_token_id)
    for prompt, answer in zip(prompts, said, strict=True):
        facts = facts_of(task, shipped.text(prompt).removesuffix("\n"))
        right, slots = right_slots(task, facts, shipped.text(answer))
        assert right == slots


def test_gguf_is_the_same_model(kept):
    pytest.importorskip("gguf")
    base = transformers.AutoModelForCausalLM.from_pretrained(kept / "base", dtype=torch.float32)
    other = transformers.AutoModelForCausalLM.from_pretrained(
        kept, gguf_file="base.gguf", dtype=torch.float32
    )
    expected, found = base.state_dict(), other.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert other.config.tie_word_embeddings
    assert other.config.rope_parameters["rope_theta"] == base.config.rope_parameters["rope_theta"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(kept, gguf_file="base.gguf")
    shipped = Shipped()
    for prompt in shipped.prompts["read"]:
        assert tokenizer(shipped.text(prompt))["input_ids"] == prompt


@pytest.mark.parametrize("outtype", [None, "Q8_0"])
def test_merged_gguf_gives_the_same_answers(kept, answers, outtype, tmp_path):
    pytest.importorskip("gguf")
    task, prompts, expected = answers
    merge_gguf(kept / "base.gguf", kept / task, tmp_path / "merged.gguf", outtype=outtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="merged.gguf", dtype=torch.float32
    )
    stop = Shipped().config["eos_token_id"]
    assert generated(model.eval(), prompts, 64, stop) == expected


def test_the_base_is_in_bfloat16():
    shipped = Shipped()
    with SafetensorsFile.open(shipped.weights) as file:
        assert {info.dtype for info in file.tensors.values()} == {"BF16"}
