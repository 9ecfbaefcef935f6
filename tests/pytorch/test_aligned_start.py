"""An aligned start: what A catches of the first gradient, and that nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

import nola_edge.torch as nt
from nola_edge.errors import ArgumentError, NotFiniteError
from nola_edge.torch.aligned_start import aligned_alpha
from nola_edge.torch.factors import Factors, fresh_coefficients
from nola_edge.torch.weight_gradients import mean_gradients
from tests.pytorch.test_linear import make_layer
from tests.tuner.models import IDS, SMALL, gpt2, llama, logits, train

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore::FutureWarning")]
BATCHES = [{"input_ids": ids, "labels": ids} for ids in (IDS, IDS.flip(1), IDS[:1])]


def adapted(model, **options):
    from nola_edge.peft import NolaConfig

    return get_peft_model(model, NolaConfig(**SMALL, target_modules="all-linear", **options))


def layers(model):
    return {
        name: (module, module.out_features, module.in_features)
        for name, module in model.named_modules()
        if hasattr(module, "nola_factors")
    }


def dense_gradients(model):
    """What torch says of the weights themselves, and the mean of it."""
    found = {}
    for name, (layer, *_) in layers(model).items():
        weight = layer.get_base_layer().weight.requires_grad_()
        found[name] = (weight, layer.transposed)
    for batch in BATCHES:
        (model(**batch).loss / len(BATCHES)).backward()
    return {n: w.grad.float().T if turned else w.grad.float() for n, (w, turned) in found.items()}


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_frozen_weights(make, dtype):
    model = adapted(make(dtype)).eval()
    found = mean_gradients(model, list(layers(model).values()), BATCHES)
    wanted = dense_gradients(copy.deepcopy(model))
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for gradient, expected in zip(found, wanted.values(), strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradients_with_checkpointing(use_reentrant):
    plain = adapted(llama()).train()
    wanted = mean_gradients(plain, list(layers(plain).values()), BATCHES)
    model = adapted(llama()).train()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    found = mean_gradients(model, list(layers(model).values()), BATCHES)
    for gradient, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, expected)


def test_an_input_is_not_kept_beside_a_checkpoint():
    """Checkpointing saves a segment's inputs instead of those of the layers within it."""
    layer = nt.NolaLinear(nn.Linear(64, 64), "m", r=4, num_basis_a=8, num_basis_b=8, seed=1)
    seen = []

    def packed(tensor):
        seen.append(tensor.shape)
        return tensor

    def loss(model, batch):
        with torch.autograd.graph.saved_tensors_hooks(packed, lambda tensor: tensor):
            return checkpoint(model, batch, use_reentrant=False).square().sum()

    batch = torch.randn(4, 64, requires_grad=True)
    mean_gradients(layer, [(layer, 64, 64)], [batch], loss=loss)
    assert seen.count((4, 64)) <= 2  # the segment's input, and the output that is squared


def test_the_largest_energy():
    factors, num_basis = Factors("m", 4, 32, 48, 3), 24
    gradient = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    alpha, gain = aligned_alpha(factors, gradient, num_basis)
    units = torch.eye(num_basis)
    caught = torch.stack([(gradient @ factors.a(unit).T).flatten() for unit in units]).double()
    energies = torch.linalg.eigvalsh(caught @ caught.T)
    start = fresh_coefficients(num_basis, 0, 32)[0]
    norm = float(start.norm())
    best = float(energies[-1]) * norm**2
    first = float((gradient @ factors.a(start).T).square().sum())
    assert float(alpha.norm()) == pytest.approx(norm, rel=1e-5)
    assert float((gradient @ factors.a(alpha).T).square().sum()) == pytest.approx(best, rel=1e-3)
    assert gain == pytest.approx(best / first, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_the_size_of_a_gradient_does_not_matter(scale):
    factors = Factors("m", 4, 32, 48, 3)
    gradient = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    _, gain = aligned_alpha(factors, gradient, 24)
    scaled, same_gain = aligned_alpha(factors, gradient * scale, 24)
    assert scaled.isfinite().all()
    assert same_gain == pytest.approx(gain, rel=1e-3)


@pytest.mark.parametrize("num_basis", [1, 2])
def test_few_coefficients(num_basis):
    gradient = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    _, gain = aligned_alpha(Factors("m", 4, 32, 48, 3), gradient, num_basis)
    assert gain >= 1 - 1e-6


def test_a_gradient_of_zeros_leaves_the_start():
    alpha, gain = aligned_alpha(Factors("m", 4, 32, 48, 3), torch.zeros(48, 32), 24)
    assert gain == 1
    assert torch.equal(alpha, fresh_coefficients(24, 0, 32)[0])


def test_the_model_stays_as_it_is():
    model = adapted(llama())
    model.train()
    for values in model.parameters():
        if values.requires_grad:
            values.grad = torch.ones_like(values)
    before, state = logits(copy.deepcopy(model)), torch.get_rng_state()
    gains = nt.align_start(model, BATCHES, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(copy.deepcopy(model)), before)
    assert model.training
    assert all((v.grad == 1).all() for v in model.parameters() if v.requires_grad)
    assert len(gains) == 14
    assert min(gains.values()) > 1.5
    assert model.peft_config["default"].start == "aligned"


def test_a_small_budget_gives_the_same_start():
    one, other = adapted(llama()), adapted(llama())
    nt.align_start(one, BATCHES, progress=False)
    nt.align_start(other, BATCHES, max_bytes=5000, progress=False)
    for name, values in one.state_dict().items():
        assert torch.equal(values, other.state_dict()[name]), name


def test_dropout_is_the_same_each_time():
    pairs = []
    for seed in (1, 2):
        model = adapted(llama(), nola_dropout=0.3).train()
        torch.manual_seed(seed)
        nt.align_start(model, BATCHES, progress=False)
        pairs.append({n: v.clone() for n, v in model.state_dict().items() if "alpha" in n})
    assert all(torch.equal(values, pairs[1][name]) for name, values in pairs[0].items())


def test_only_so_many_batches():
    def endless():
        while True:
            yield BATCHES[0]

    nt.align_start(adapted(llama()), endless(), num_batches=2, progress=False)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_loop_of_ones_own(kind):
    layer = nt.NolaLinear(make_layer(kind), "m", r=4, num_basis_a=20, num_basis_b=18, seed=11)
    batches = [torch.randn(5, 12, generator=torch.Generator().manual_seed(1))]
    gains = nt.align_start(
        layer, batches, loss=lambda model, x: model(x).square().sum(), progress=False
    )
    assert gains.keys() == {"m"}
    assert gains["m"] > 1.5
    assert layer.start == "aligned"


def test_an_input_that_is_given_by_name():
    layer = nt.NolaLinear(nn.Linear(12, 30), "m", r=4, num_basis_a=20, num_basis_b=18, seed=11)
    batch = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    weight = [(layer, 30, 12)]
    (named,) = mean_gradients(layer, weight, [batch], loss=lambda m, x: m(x=x).square().sum())
    (placed,) = mean_gradients(layer, weight, [batch], loss=lambda m, x: m(x).square().sum())
    assert torch.equal(named, placed)
    assert named.abs().max() > 0


def test_what_cannot_be_aligned():
    model = adapted(llama())
    state = {name: values.clone() for name, values in model.state_dict().items()}
    with pytest.raises(ArgumentError, match="batches: are none; give at least one"):
        nt.align_start(model, [], progress=False)
    with pytest.raises(ArgumentError, match="model: has no active NOLA adapter"):
        nt.align_start(llama(), BATCHES, progress=False)
    with pytest.raises(ArgumentError, match="give batches labels, or pass `loss`"):
        nt.align_start(model, [{"input_ids": IDS}], progress=False)
    assert all(torch.equal(values, state[name]) for name, values in model.state_dict().items())
    assert model.peft_config["default"].start == "unit"


def test_a_gradient_that_is_not_finite():
    model = adapted(llama())

    def loss(model, batch):
        return model(**batch).loss * float("inf")

    state = {name: values.clone() for name, values in model.state_dict().items()}
    with pytest.raises(NotFiniteError, match="has a gradient that is not finite"):
        nt.align_start(model, BATCHES, loss=loss, progress=False)
    assert all(torch.equal(values, state[name]) for name, values in model.state_dict().items())


def test_a_trained_adapter_is_refused():
    model = adapted(llama())
    train(model, steps=1)
    with pytest.raises(ArgumentError, match="has been trained, and another start would undo that"):
        nt.align_start(model, BATCHES, progress=False)
