"""Factors are the sums that the public code makes, whole and in windows."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.adapters.public_nola.contents import Factor, factors_of
from nola_edge.files.tensors import ArrayTensor
from nola_edge.testing.adapter_factors import FactorContract
from nola_edge.testing.files import AdapterFiles
from tests.adapters.public_nola.checkpoints import (
    CONFIG,
    gpt2_mlp,
    gpt2_tensors,
    pair,
    tiny_checkpoint,
)
from tests.adapters.public_nola.slow_factor import slow_factor
from tests.conftest import write_safetensors


class TestPublicNola(FactorContract):
    """The parts of the contract that load an adapter without being told its device are not run."""

    def files(self, shapes, seed=0):
        tensors = {}
        for number, (module, (outputs, inputs)) in enumerate(shapes.items()):
            seeds = (number, number + 10)
            tensors |= pair(PREFIX + module, inputs, outputs, seeds=seeds)
        return AdapterFiles(CONFIG, tensors)

    def product(self, files, module, shape):
        a, b = (
            slow_factor(
                Factor(
                    name="x",
                    seed=int(files.tensors[f"{PREFIX}{module}.lora_{label}.seed"][0]),
                    shape=files.tensors[f"{PREFIX}{module}.lora_{label}.weight"].shape,
                    bound=1.0,
                    coefficients=files.tensors[f"{PREFIX}{module}.lora_{label}.coefficients"],
                    gain=1 / 6**0.5,
                    weight=ArrayTensor(files.tensors[f"{PREFIX}{module}.lora_{label}.weight"]),
                ),
                "t4",
            )
            for label in "AB"
        )
        return b, a, CONFIG["lora_alpha"] / 2

    @pytest.fixture
    def adapter(self, written):
        return ne.load_adapter(written[1], drawn_on="t4")

    def test_what_it_holds_is_what_it_says(self, written):
        """Here it is what it may hold, as factors are drawn when they are asked for."""
        opened = len(os.listdir("/dev/fd"))
        adapter = ne.load_adapter(written[1], drawn_on="t4")
        coefficients = sum(f.coefficients.nbytes for f in factors_of(adapter.modules))
        factors = sum(4 * f.size for f in factors_of(adapter.modules))
        assert adapter.held_bytes == coefficients + factors
        adapter.factor_a("layers.0.q", 40)
        assert len(os.listdir("/dev/fd")) == opened + adapter.open_files
        del adapter
        assert len(os.listdir("/dev/fd")) == opened


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("drawn_on", ["cpu", "a100", "3x512"])
def test_factors_are_sums_of_the_random_matrices(tmp_path, dtype, drawn_on):
    folder = tiny_checkpoint(tmp_path / "in", dtype, num_basis=6)
    adapter = ne.load_adapter(folder, drawn_on=drawn_on)
    for module, layer in adapter.modules.items():
        (part,) = layer.parts
        outputs, inputs = adapter.shape(module)
        a, b = adapter.factor_a(module, inputs), adapter.factor_b(module, outputs)
        assert np.array_equal(a, slow_factor(part.a, drawn_on))
        assert np.array_equal(b, slow_factor(part.b, drawn_on))


def test_query_and_value_act_on_their_thirds(tmp_path):
    write_safetensors(tmp_path / "in.safetensors", gpt2_tensors())
    adapter = ne.load_adapter(tmp_path / "in.safetensors", drawn_on="cpu", lora_alpha=3)
    module = "transformer.h.1.attn.c_attn"
    query, value = adapter.modules[module].parts
    b = adapter.factor_b(module, 24)
    assert b.shape == (24, 4)
    assert np.array_equal(b[:8, :2], slow_factor(query.b, "cpu"))
    assert np.array_equal(b[16:, 2:], slow_factor(value.b, "cpu"))
    assert not b[8:16].any()
    assert not b[:8, 2:].any()
    assert not b[16:, :2].any()
    assert adapter.scaling_of(module) == 1.5
    assert adapter.fan_in_fan_out


@given(data=st.data())
def test_any_window(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("windows")
    write_safetensors(folder / "in.safetensors", gpt2_tensors() | gpt2_mlp())
    adapter = ne.load_adapter(folder / "in.safetensors", drawn_on="cpu", lora_alpha=1)
    module = data.draw(st.sampled_from(list(adapter.modules)))
    outputs, inputs = adapter.shape(module)
    rank = adapter.rank(module)
    a, b = adapter.factor_a(module, inputs), adapter.factor_b(module, outputs)
    for whole, draw, (height, width) in (
        (a, adapter.factor_a, (rank, inputs)),
        (b, adapter.factor_b, (outputs, rank)),
    ):
        rows, cols = (
            tuple(sorted(data.draw(st.tuples(*[st.integers(0, length)] * 2))))
            for length in (height, width)
        )
        features = inputs if whole is a else outputs
        threads = data.draw(st.sampled_from([None, 1, 3]))
        found = draw(module, features, num_threads=threads, rows=rows, cols=cols)
        assert np.array_equal(found, whole[slice(*rows), slice(*cols)])
