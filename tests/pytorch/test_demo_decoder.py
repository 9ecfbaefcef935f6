"""The numpy decoder of the demonstration computes what transformers computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nola_edge.demo.decoder import Decoder

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")


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


def test_logits(models):
    model, decoder = models
    tokens = [5, 17, 3, 88, 17, 41, 2]
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(decoder.forward(tokens), expected, rtol=2e-4, atol=2e-4)


def test_a_cache_changes_nothing(models):
    _, decoder = models
    tokens = [5, 17, 3, 88, 17, 41, 2]
    cache = []
    parts = [decoder.forward(tokens[:3], cache), decoder.forward(tokens[3:4], cache)]
    parts.append(decoder.forward(tokens[4:], cache))
    np.testing.assert_allclose(np.concatenate(parts), decoder.forward(tokens), rtol=1e-4, atol=1e-4)


def test_generation(models):
    model, decoder = models
    prompt = [5, 17, 3]
    with torch.no_grad():
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None
        )[0, 3:].tolist()
    assert decoder.generate(prompt, stop=-1, limit=12) == expected
    assert (
        decoder.generate(prompt, stop=expected[4], limit=12)
        == expected[: expected.index(expected[4])]
    )
