"""The scaling of an exported LoRA is its alpha divided by its rank, to whoever reads it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.export.alpha import alpha_of
from nola_edge.export.lora_fields import fields_of_modules
from tests.conftest import tiny_adapter

RANKS = st.one_of(st.integers(1, 64), st.integers(1, 65536))
ALPHAS = st.one_of(st.integers(1, 1024).map(float), st.floats(1e-30, 1e30))


def usual(alpha):
    return alpha.is_integer() and alpha <= 1024


def quotients_nearby(scaling, r, dtype):
    """What every alpha within a few steps gives."""
    low = high = dtype(scaling * r)
    alphas = [low]
    for _ in range(4):
        low, high = np.nextafter(low, dtype(-np.inf)), np.nextafter(high, dtype(np.inf))
        alphas += [low, high]
    return [alpha / dtype(r) for alpha in alphas]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@example(r=26, alpha=177.0, weight=-0.7)  # further from zero
@given(r=RANKS, alpha=ALPHAS, weight=st.sampled_from([1.0, -0.7]))
def test_no_alpha_is_nearer(dtype, r, alpha, weight):
    scaling = alpha / np.sqrt(r) * weight
    found = dtype(alpha_of(scaling, r, dtype)) / dtype(r)
    wanted = dtype(scaling)
    assert abs(found - wanted) == min(abs(q - wanted) for q in quotients_nearby(scaling, r, dtype))
    assert abs(found - wanted) <= np.spacing(abs(wanted))
    if dtype is np.float64:
        assert np.float32(found) == np.float32(scaling)


@given(r=RANKS, alpha=ALPHAS)
def test_an_alpha_that_was_divided_is_found_again(r, alpha):
    """To the scaling's last bit, and an integer as it was."""
    found = alpha_of(alpha / r, r)
    assert found / r == alpha / r
    assert found == alpha or not usual(alpha)


@pytest.mark.parametrize("r", [1, 4, 6, 8, 16])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_an_exported_lora_needs_no_other_rule(tiny, tmp_path, use_rslora, r):
    """Some programs do not read ``use_rslora``."""
    adapter = tiny_adapter(use_rslora=use_rslora, r=r)
    ne.export_lora(adapter, tiny[0], tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["use_rslora"] is False
    assert np.float32(config["lora_alpha"] / config["r"]) == np.float32(adapter.scaling)
    if not use_rslora or r in (1, 4, 16):
        assert config["lora_alpha"] / config["r"] == adapter.scaling
        assert isinstance(config["lora_alpha"], int)


@given(r=RANKS, alpha=st.decimals("0.01", "1000", places=2))
def test_an_alpha_that_was_typed_is_found_as_it_was(r, alpha):
    assert alpha_of(float(alpha) / r, r) == float(alpha)


@pytest.mark.parametrize("parts", [1, 2, 3])
@given(rank=st.integers(1, 64), alpha=ALPHAS.filter(lambda alpha: alpha < 3e29))
def test_a_layer_of_several_parts_has_their_scaling(parts, rank, alpha):
    """As query and value of the public GPT-2 code become one layer."""
    scaling = alpha / rank
    fields = fields_of_modules({"c_attn": (rank * parts, scaling)})
    found = fields["lora_alpha"] / fields["r"]
    assert abs(found - scaling) == min(
        abs(q - scaling) for q in quotients_nearby(scaling, rank * parts, np.float64)
    )
    assert fields["lora_alpha"] == alpha * parts or not usual(alpha)
