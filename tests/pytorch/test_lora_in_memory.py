"""LoRA and DoRA merged into models in memory: the bits of their files, or nothing is changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import nola_edge as ne
import nola_edge.torch as nt
from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.errors import AdapterError, ArgumentError, MismatchError, NotFiniteError
from nola_edge.merge import windows
from nola_edge.torch.arrays import array_view, tensor_view
from tests.conftest import MODULES, snapshot, write_safetensors
from tests.lora_folders import factors, with_magnitudes, write_lora

F = np.float32
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Layer(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.q = nn.Linear(40, 24, dtype=dtype)
        self.v = nn.Linear(24, 40, dtype=dtype)


class Net(nn.Module):
    """The modules that the adapters of these tests are for, and some others."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Layer(dtype), Layer(dtype)])
        self.norm = nn.BatchNorm1d(6, dtype=dtype)
        self.convolution = nn.Conv2d(2, 3, 2, dtype=dtype)


def saved(net, path):
    """Save a model, counters of batches apart, under its own names; return the path."""
    state = {n: t.detach() for n, t in net.state_dict().items() if t.is_floating_point()}
    write_safetensors(path, {name: array_view(tensor) for name, tensor in state.items()})
    return path


def bits(net):
    state = net.state_dict().items()
    return {n: t.detach().clone().contiguous().reshape(-1).view(torch.uint8) for n, t in state}


def assert_merges_as_files_do(net, adapters, tmp_path):
    with ne.open_merged(saved(net, tmp_path / "base.safetensors"), adapters) as merged:
        expected = {name: tensor_view(values) for name, values in merged.items()}
    changed = nt.merge_(net, adapters)
    assert changed
    for name, values in expected.items():
        assert torch.equal(net.state_dict()[name], values), name


def with_biases(seed=0):
    rng = np.random.default_rng(seed)
    found = factors(seed=seed)
    for module, (out, _) in MODULES.items():
        found[f"{PREFIX}{module}.lora_B.bias"] = rng.standard_normal(out).astype(F)
    return found


def other_names(tensors, old="layers.", new="text.blocks."):
    return {name.replace(PREFIX + old, PREFIX + new): t for name, t in tensors.items()}


@pytest.mark.parametrize(
    "rules",
    [{"text.blocks": "layers", "scale": "norm"}, ["text.blocks=layers", "scale=norm"]],
)
def test_a_model_that_has_other_names(tmp_path, rules):
    """Of modules, of biases that are added to, and of whole tensors."""
    rng = np.random.default_rng(1)
    whole = {f"{PREFIX}scale.weight": rng.standard_normal(6).astype(F)}
    tensors = other_names({**with_biases(), **whole})
    options = {"lora_bias": True, "modules_to_save": ["scale"]}
    adapter = write_lora(tmp_path / "l", tensors, target_modules=["q", "v"], **options)
    net = Net()
    path = saved(net, tmp_path / "base.safetensors")
    with ne.open_merged(path, adapter, rename=rules) as merged:
        expected = {name: tensor_view(values) for name, values in merged.items()}
    assert len(nt.merge_(net, adapter, rename=rules)) == 2 * len(MODULES) + 1
    for name, values in expected.items():
        assert torch.equal(net.state_dict()[name], values), name


@pytest.mark.parametrize(
    ("rules", "error", "match"),
    [
        (None, MismatchError, "3 of 3 modules"),
        ({"text.blocks": "layer"}, MismatchError, "3 of 3 modules"),
        ({"text.blocks": "layers", "k": "q"}, ArgumentError, "'k' does not occur in any module"),
        ({"text.blocks": "layers", "q": "q[0:24]"}, MismatchError, r"leave \[START:STOP\] out"),
        (["text"], ArgumentError, "must be NEW=OLD"),
    ],
)
def test_rules_that_do_not_fit_change_nothing(tmp_path, rules, error, match):
    net, adapter = Net(), write_lora(tmp_path / "l", other_names(factors()))
    before = bits(net)
    with pytest.raises(error, match=match):
        nt.merge_(net, adapter, rename=rules)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bits(net).items())


def with_whole(**tensors):
    return {**factors(), **{PREFIX + name.replace("__", "."): t for name, t in tensors.items()}}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_added_biases_of_one_adapter_and_of_two(tmp_path, dtype):
    one = write_lora(tmp_path / "one", with_biases(1), lora_bias=True, lora_alpha=5)
    two = write_lora(tmp_path / "two", with_biases(2), lora_bias=True, lora_alpha=3)
    assert_merges_as_files_do(Net(dtype), one, tmp_path)
    assert_merges_as_files_do(Net(dtype), [(one, 0.5), two], tmp_path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_whole_tensors_of_any_shape_and_buffers(tmp_path, dtype):
    rng = np.random.default_rng(1)
    whole = with_whole(
        norm__running_mean=rng.standard_normal(6).astype(F),
        norm__weight=rng.standard_normal(6).astype(F),
        convolution__weight=rng.standard_normal((3, 2, 2, 2)).astype(F),
    )
    adapter = write_lora(tmp_path / "l", whole, modules_to_save=["norm", "convolution"])
    net = Net(dtype)
    places = {name: tensor.data_ptr() for name, tensor in net.state_dict().items()}
    assert_merges_as_files_do(net, adapter, tmp_path)
    assert places == {name: tensor.data_ptr() for name, tensor in net.state_dict().items()}


@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    kind=st.sampled_from(["layer", "transposed", "embedding"]),
    dtype=st.sampled_from(DTYPES),
    strides=st.sampled_from(["rows", "columns", "gaps"]),
    block=st.sampled_from([300, 1 << 22]),
)
@example(shape=(1, 9), kind="embedding", dtype=torch.float32, strides="gaps", block=300)
def test_dora_of_any_shape_and_strides(tmp_path_factory, shape, kind, dtype, strides, block):
    tmp_path = tmp_path_factory.mktemp("any")
    embeddings = ("m",) if kind == "embedding" else ()
    tensors = with_magnitudes(factors({"m": shape}, {"m": 2}, embeddings=embeddings))
    flag = kind == "transposed"
    folder = write_lora(tmp_path / "l", tensors, r=2, use_dora=True, fan_in_fan_out=flag)
    size = shape if kind == "layer" else shape[::-1]
    values = torch.randn(size, generator=torch.Generator().manual_seed(3)).to(dtype)
    net = nn.Module()
    net.m = nn.Module()
    if strides == "columns":
        values = values.T.contiguous().T
    elif strides == "gaps":
        values = torch.cat([values, values], dim=1)[:, : size[1]]
    net.m.weight = nn.Parameter(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "BLOCK_BYTES", block)
        assert_merges_as_files_do(net, folder, tmp_path)


def assert_refused(net, adapters, tmp_path, error, match):
    before, files = bits(net), snapshot(tmp_path)
    with pytest.raises(error, match=match) as caught:
        nt.merge_(net, adapters)
    assert str(caught.value).isprintable()
    after = bits(net)
    assert all(torch.equal(values, after[name]) for name, values in before.items())
    assert snapshot(tmp_path) == files


def unbiased(net):
    net.layers[1].q.bias = None


def of_another_length(net):
    net.layers[1].q.bias = nn.Parameter(torch.zeros(3))


def shared(net):
    net.layers[1].q.bias = net.layers[0].q.bias


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (unbiased, r"<Net>: layers\.1\.q\.bias: is missing, but .* adds to it \(lora_bias\)"),
        (of_another_length, r"layers\.1\.q\.bias: is \[3\]; .* adds \[24\] to it"),
        (shared, r"q\.bias: is the same tensor as layers\.\d\.q\.bias"),
    ],
)
def test_a_bias_that_cannot_be_added_to(tmp_path, change, match):
    adapter = write_lora(tmp_path / "l", with_biases(), lora_bias=True)
    net = Net()
    change(net)
    assert_refused(net, adapter, tmp_path, MismatchError, match)


def test_a_bias_that_becomes_infinite(tmp_path):
    tensors = with_biases()
    tensors[PREFIX + "layers.1.q.lora_B.bias"][3] = 3e38
    adapter = write_lora(tmp_path / "l", tensors, lora_bias=True, lora_alpha=40)
    assert_refused(Net(), adapter, tmp_path, NotFiniteError, r"<Net>: layers\.1\.q\.bias: ")


@pytest.mark.parametrize(
    ("name", "values", "error", "match"),
    [
        ("score.weight", np.ones((2, 3), F), MismatchError,
         r"<Net>: score\.weight: is not in the model, but .* for a head"),
        ("norm.weight", np.ones(7, F), MismatchError, r"has shape \[7\], the base's tensor \[6\]"),
        ("norm.weight", np.full(6, 1e30, F), MismatchError, "not finite in the base's dtype F16"),
        ("norm.num_batches_tracked", np.ones((), F), MismatchError, "not a tensor in float32"),
        ("layers.0.q.weight", np.ones((24, 40), F), AdapterError, "already changed by an adapter"),
    ],
)  # fmt: skip
def test_a_whole_tensor_that_has_no_place(tmp_path, name, values, error, match):
    module = name.rpartition(".")[0]
    adapter = write_lora(tmp_path / "l", with_whole(**{name: values}), modules_to_save=[module])
    assert_refused(Net(torch.float16), adapter, tmp_path, error, match)


def test_a_whole_tensor_that_is_anothers_too(tmp_path):
    adapter = write_lora(
        tmp_path / "l", with_whole(norm__bias=np.ones(6, F)), modules_to_save=["norm"]
    )
    net = Net()
    net.norm.weight = net.norm.bias
    assert_refused(net, adapter, tmp_path, MismatchError, r"norm\.bias: is the same tensor as")


def test_trained_biases_that_were_lost(tmp_path):
    adapter = write_lora(tmp_path / "lost", bias="lora_only")
    message = "bias: announces trained biases, but the adapter has none"
    assert_refused(Net(), adapter, tmp_path, AdapterError, message)


def test_what_one_adapter_replaces_another_does_not_change(tmp_path):
    whole = {**factors(), PREFIX + "layers.0.q.base_layer.bias": np.ones(24, F)}
    adapters = [
        write_lora(tmp_path / "whole", whole, bias="lora_only"),
        write_lora(tmp_path / "added", with_biases(), lora_bias=True),
    ]
    for pair in (adapters, adapters[::-1]):
        assert_refused(
            Net(), pair, tmp_path, AdapterError, r"as a whole|whole tensor is already changed"
        )


@pytest.fixture
def dora(tmp_path):
    return write_lora(tmp_path / "dora", with_magnitudes(factors()), use_dora=True)


def test_dora_is_alone_in_its_weight(dora, tmp_path):
    other = write_lora(tmp_path / "other", factors(seed=4))
    for adapters in ([dora, other], [other, dora], [(dora, 0.5)]):
        assert_refused(Net(), adapters, tmp_path, ArgumentError, "DoRA .* merge it by itself")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dora_of_an_output_that_is_zero(dora, tmp_path, dtype):
    """Its norm is no number to divide by; the last weight of them, and all stay as they were."""
    tensors = with_magnitudes(factors())
    tensors[PREFIX + "layers.1.q.lora_B.weight"][5] = 0
    adapter = write_lora(tmp_path / "l", tensors, use_dora=True)
    net = Net(dtype)
    with torch.no_grad():
        net.layers[1].q.weight[5] = 0
    assert_refused(net, adapter, tmp_path, NotFiniteError, r"<Net>: layers\.1\.q\.weight: ")


def test_a_model_in_float64_is_told_how_to_become_float32(tmp_path):
    adapter = write_lora(tmp_path / "l")
    message = r"is torch\.float64 .*; convert the model first: model\.to\(torch\.float32\)"
    assert_refused(Net().double(), adapter, tmp_path, MismatchError, message)
