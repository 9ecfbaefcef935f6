"""NolaLinear, the functional form, and merge_ into models in memory."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nola_edge as ne
import nola_edge.torch as nt
from nola_edge import Adapter, NolaEdgeError
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import MismatchError, NotFiniteError
from nola_edge.files.safetensors import encode_header

OPTIONS = {"r": 4, "num_basis_a": 20, "num_basis_b": 18, "seed": 11, "lora_alpha": 6.0}


class Conv1D(nn.Module):
    """As in GPT-2: the weight is (in, out)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.1)
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


def make_layer(kind="linear", dtype=torch.float32):
    torch.manual_seed(0)
    layer = nn.Linear(12, 30) if kind == "linear" else Conv1D(30, 12)
    return layer.to(dtype)


def adapted(layer, **options):
    wrapped = nt.NolaLinear(layer, "blocks.0.proj", **{**OPTIONS, **options})
    torch.manual_seed(1)
    nn.init.normal_(wrapped.alpha)
    nn.init.normal_(wrapped.beta)
    return wrapped


def reference_factors(wrapped):
    """From the numpy functions, by docs/design.md."""
    alpha, beta = (c.detach().numpy() for c in (wrapped.alpha, wrapped.beta))
    a = ne.expand(alpha, seed=11, stream=ne.stream_id("blocks.0.proj", "A"), shape=(4, 12))
    b = ne.expand(beta, seed=11, stream=ne.stream_id("blocks.0.proj", "B"), shape=(30, 4))
    return a, b


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_forward_is_the_formula(kind):
    base = make_layer(kind)
    wrapped = adapted(base)
    a, b = map(torch.from_numpy, reference_factors(wrapped))
    x = torch.randn(2, 5, 12)
    expected = base(x) + 1.5 * x @ a.T @ b.T
    torch.testing.assert_close(wrapped(x), expected)


def test_fresh_layer_is_the_base_and_trains_only_coefficients():
    base = make_layer()
    wrapped = nt.NolaLinear(base, "x", **OPTIONS)
    x = torch.randn(5, 12)
    assert torch.equal(wrapped(x), F.linear(x, base.weight, base.bias))
    assert {n for n, p in wrapped.named_parameters() if p.requires_grad} == {"alpha", "beta"}
    assert wrapped.alpha[0].item() == pytest.approx(math.sqrt(20 / 36))
    assert wrapped.alpha[1:].count_nonzero() == wrapped.beta.count_nonzero() == 0


def test_functional_form_agrees():
    base = make_layer()
    wrapped = adapted(base)
    x = torch.randn(5, 12)
    got = nt.nola_linear(
        x, base.weight, base.bias, wrapped.alpha, wrapped.beta,
        module="blocks.0.proj", r=4, seed=11, scaling=1.5,
    )  # fmt: skip
    torch.testing.assert_close(got, wrapped(x))


def test_rslora_and_dropout():
    wrapped = adapted(make_layer(), use_rslora=True, dropout=0.5)
    assert wrapped.scaling == 3.0
    x = torch.ones(400, 12)
    torch.manual_seed(0)
    assert wrapped(x).std(0).max() > 0
    wrapped.eval()
    assert wrapped(x).std(0).max() == 0


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merge_has_the_bits_of_numpy_and_unmerge_restores_them(kind, dtype):
    base = make_layer(kind, dtype)
    wrapped = adapted(base)
    before = base.weight.detach().clone()
    a, b = reference_factors(wrapped)
    left, right = (b, a) if kind == "linear" else (a.T.copy(), b.T.copy())
    expected = before.float().numpy().copy()
    ne.merge_(expected, left, right, 1.5)
    wrapped.merge()
    assert torch.equal(base.weight, torch.from_numpy(expected).to(dtype))
    x = torch.randn(3, 12, dtype=dtype)
    assert torch.equal(wrapped(x), base(x))
    wrapped.merge()  # again does nothing
    assert torch.equal(base.weight, torch.from_numpy(expected).to(dtype))
    assert "merged" in repr(wrapped)
    wrapped.unmerge()
    assert torch.equal(base.weight, before)


def test_nan_is_refused_and_the_weight_stays():
    wrapped = adapted(make_layer())
    before = wrapped.base_layer.weight.detach().clone()
    with torch.no_grad():
        wrapped.beta[2] = math.inf
    with pytest.raises(NotFiniteError):
        wrapped.merge()
    assert torch.equal(wrapped.base_layer.weight, before)
    assert not wrapped.merged
    with pytest.raises(NotFiniteError, match=r"blocks\.0\.proj"):
        nt.to_adapter(wrapped)


def test_forward_never_materialises_a_basis(monkeypatch):
    """Every tensor that forward and backward make is far smaller than k x r x in or out x in."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    layer = nt.NolaLinear(nn.Linear(256, 256), "x", r=4, num_basis_a=300, num_basis_b=300, seed=0)
    x = torch.randn(2, 256, requires_grad=True)
    with Watch():
        layer(x).sum().backward()
    sizes = [s for s in sizes if s != 256 * 256]  # views of the base's own weight
    assert max(sizes) <= 4 * 256


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_training_is_what_is_saved(bits, tmp_path):
    wrapped = adapted(make_layer(), coefficient_bits=bits)
    nt.to_adapter(wrapped).save(tmp_path / "a")
    loaded = Adapter.load(tmp_path / "a")
    a, b = loaded.factors("blocks.0.proj", 30, 12)
    x = torch.randn(3, 12)
    expected = wrapped.base_layer(x) + 1.5 * x @ torch.from_numpy(a).T @ torch.from_numpy(b).T
    torch.testing.assert_close(wrapped(x), expected)


def test_copies_and_state_dicts():
    wrapped = adapted(make_layer())
    x = torch.randn(3, 12)
    expected = wrapped(x)
    assert torch.equal(copy.deepcopy(wrapped)(x), expected)
    fresh = nt.NolaLinear(make_layer(), "blocks.0.proj", **OPTIONS)
    fresh.load_state_dict(wrapped.state_dict())
    assert torch.equal(fresh(x), expected)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"r": 0}, NolaEdgeError, "r"),
        ({"num_basis_a": 0}, NolaEdgeError, "num_basis_a"),
        ({"seed": -1}, NolaEdgeError, "seed"),
        ({"basis": "gauss"}, NolaEdgeError, "basis"),
        ({"coefficient_bits": 5}, NolaEdgeError, "coefficient_bits"),
        ({"start": "zero"}, ValueError, "start"),
        ({"dropout": 1.5}, ValueError, "dropout"),
    ],
)
def test_impossible_arguments(change, error, says):
    with pytest.raises(error, match=says):
        nt.NolaLinear(make_layer(), "x", **{**OPTIONS, **change})


def test_other_layers_are_refused():
    with pytest.raises(TypeError, match="Embedding"):
        nt.NolaLinear(nn.Embedding(3, 4), "x", **OPTIONS)


class Net(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(5)
        self.model = nn.ModuleDict({"q": nn.Linear(16, 16), "v": nn.Linear(16, 8)}).to(dtype)


def net_adapter(seed=1, names=("q", "v")):
    shapes = {"q": (16, 16), "v": (8, 16)}
    adapter = Adapter.create(
        {n: shapes[n] for n in names}, r=3, num_basis_a=10, num_basis_b=9, seed=seed, lora_alpha=3
    )
    rng = np.random.default_rng(seed)
    return adapter.replace(
        {
            n: (rng.standard_normal(10).astype("f4"), rng.standard_normal(9).astype("f4"))
            for n in names
        }
    )


def write_net(path, net):
    tensors = {n: p.detach() for n, p in net.named_parameters()}
    dtype = {torch.float32: "F32", torch.bfloat16: "BF16"}[net.model["q"].weight.dtype]
    entries = [(n, dtype, tuple(t.shape), t.nbytes) for n, t in tensors.items()]
    data = b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors.values())
    path.write_bytes(encode_header(entries, {"format": "pt"}) + data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2])
def test_merge_into_a_model_has_the_bits_of_merged_files(dtype, count, tmp_path):
    """Names differ by a prefix; several adapters are rounded once."""
    net = Net(dtype)
    write_net(tmp_path / "base.safetensors", net)
    adapters = [(net_adapter(seed), 0.5 + seed) for seed in range(count)]
    ne.merge_checkpoint(tmp_path / "base.safetensors", adapters, tmp_path / "out.safetensors")
    changed = nt.merge_(net, adapters)
    assert changed == ["model.q.weight", "model.v.weight"]
    write_net(tmp_path / "again.safetensors", net)
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "out.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    "bad",
    [
        lambda net: net.model.pop("v"),
        lambda net: net.model["v"].double(),
        lambda net: setattr(net.model["v"], "weight", nn.Parameter(torch.zeros(4))),
    ],
)
def test_a_model_that_does_not_fit_is_left_alone(bad):
    net = Net()
    bad(net)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(NolaEdgeError):
        nt.merge_(net, net_adapter())
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())


def test_views_and_other_strides_are_merged_in_place():
    storage = torch.randn(16, 20)
    weight = storage[:, 2:18]
    expected = weight.clone()
    b, a = torch.randn(16, 3), torch.randn(3, 16)
    nt.merge_low_rank_(expected, b, a, 0.5)
    outside = storage[:, :2].clone()
    nt.merge_low_rank_(weight, b, a, 0.5)
    assert torch.equal(weight, expected)
    assert torch.equal(storage[:, :2], outside)


@pytest.mark.parametrize("bits", [None, 8])
def test_compiled_layer_has_no_graph_break(bits):
    torch._dynamo.reset()
    wrapped = adapted(make_layer(), coefficient_bits=bits)
    x = torch.randn(3, 12)
    expected = wrapped(x)
    compiled = torch.compile(wrapped, fullgraph=True, backend="aot_eager")
    got = compiled(x)
    torch.testing.assert_close(got, expected)
    got.square().sum().backward()
    grads = wrapped.alpha.grad.clone(), wrapped.beta.grad.clone()
    wrapped.zero_grad()
    wrapped(x).square().sum().backward()
    torch.testing.assert_close(grads, (wrapped.alpha.grad, wrapped.beta.grad))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected)


def frozen_layer():
    torch.manual_seed(0)
    layer = nt.NolaLinear(nn.Linear(8, 6), "m", r=2, num_basis_a=5, num_basis_b=4, seed=3)
    nn.init.normal_(layer.beta)
    return layer.requires_grad_(False)


def test_cached_factors_serve_later_training():
    """What inference mode made may not spoil a backward pass through the frozen layer."""
    layer, x = frozen_layer(), torch.randn(3, 8)
    with torch.inference_mode():
        expected = layer(x).clone()
    x.requires_grad_()
    out = layer(x)
    assert torch.equal(out, expected)
    out.sum().backward()
    assert x.grad.abs().sum() > 0


def test_transforms_leave_the_cache_alone():
    layer, x = frozen_layer(), torch.randn(3, 8)
    expected = layer(x)
    batch = {"alpha": torch.randn(2, 5), "beta": torch.randn(2, 4)}

    def call(coefficients):
        return torch.func.functional_call(layer, coefficients, (x,))

    mapped = torch.func.vmap(call)(batch)
    for i in range(2):
        one = call({name: values[i] for name, values in batch.items()})
        torch.testing.assert_close(mapped[i], one)
    assert torch.equal(layer(x), expected)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(x).shape == (3, 6)
    assert torch.equal(layer(x), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own
def test_a_tangent_passes_a_frozen_layer():
    layer, x, direction = frozen_layer(), torch.randn(3, 8), torch.randn(3, 8)
    _, tangent = torch.func.jvp(layer, (x,), (direction,))
    expected = layer(direction) - layer(torch.zeros(3, 8))
    torch.testing.assert_close(tangent, expected)


def test_functional_form_of_transposed_storage_and_dropout():
    layer, x = frozen_layer(), torch.randn(3, 8)
    base = layer.base_layer
    options = {"module": "m", "r": 2, "seed": 3, "scaling": 1.0}
    arguments = (base.bias, layer.alpha, layer.beta)
    straight = nt.nola_linear(x, base.weight, *arguments, **options)
    torch.testing.assert_close(straight, layer(x))
    stored = base.weight.T.contiguous()
    transposed = nt.nola_linear(x, stored, *arguments, fan_in_fan_out=True, **options)
    torch.testing.assert_close(transposed, straight)
    dropped = nt.nola_linear(x, base.weight, *arguments, dropout=1.0, **options)
    torch.testing.assert_close(dropped, base(x))


def test_a_shared_weight_is_not_merged_into(tmp_path):
    """An adapter of the output layer would change the embedding that shares its tensor."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"head": nn.Linear(8, 6, bias=False), "embed": nn.Embedding(6, 8)})
    model["embed"].weight = model["head"].weight
    adapter = Adapter.create({"head": (6, 8)}, r=2, num_basis_a=3, num_basis_b=3, seed=1,
                             lora_alpha=2.0)  # fmt: skip
    before = model["head"].weight.detach().clone()
    with pytest.raises(MismatchError, match=r"same tensor as embed\.weight"):
        nt.merge_(model, adapter)
    assert torch.equal(model["head"].weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns_of_one_tensor_are_merged_into(dtype):
    """Views of a fused buffer lie among each other, and no element is another's."""
    torch.manual_seed(0)
    sizes = dict.fromkeys(("q", "k", "v"), (6, 8))
    apart = nn.ModuleDict({name: nn.Linear(8, 6, bias=False, dtype=dtype) for name in sizes})
    fused = torch.cat([apart[name].weight.detach() for name in sizes], dim=1)
    model = nn.ModuleDict({name: nn.Linear(8, 6, bias=False, dtype=dtype) for name in sizes})
    for name, view in zip(sizes, fused.chunk(3, dim=1), strict=True):
        model[name].weight = nn.Parameter(view)
        assert model[name].weight.data_ptr() == view.data_ptr()
    adapter = trained_adapter(sizes, r=2, num_basis=3)
    nt.merge_(model, adapter)
    nt.merge_(apart, adapter)
    assert torch.equal(fused, torch.cat([apart[name].weight for name in sizes], dim=1))
    model["k"].weight = nn.Parameter(fused[:, 7:15])  # a column of q's
    with pytest.raises(MismatchError, match=r"same tensor as (k|q)\.weight"):
        nt.merge_(model, adapter)


def test_weights_whose_memory_was_given_back_are_not_merged_into():
    """Sharded training frees weights between their uses; the tensors stay."""
    model = nn.ModuleDict({name: nn.Linear(8, 6, bias=False) for name in ("q", "k")})
    for layer in model.values():
        layer.weight.untyped_storage().resize_(0)
    adapter = trained_adapter(dict.fromkeys(model, (6, 8)), r=2, num_basis=3)
    with pytest.raises(MismatchError, match="same tensor as"):
        nt.merge_(model, adapter)
