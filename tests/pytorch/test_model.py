"""merge_ into whole models: every weight, or none of them changes."""

from __future__ import annotations

import math
from pathlib import Path

import accelerate
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.parameter import is_lazy

import nola_edge as ne
import nola_edge.torch as nt
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import MismatchError, NotFiniteError
from nola_edge.merge.plan import load_adapters
from nola_edge.models.merge import _is_surely_finite, _largest_update
from nola_edge.models.plan import plan_merges

NAMES = ("first", "second", "third")


class Net(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        for name in NAMES:
            setattr(self, name, nn.Linear(16, 16, bias=False, dtype=dtype))

    def forward(self, x):
        for name in NAMES:
            x = getattr(self, name)(x)
        return x


def adapter(scale=1.0):
    made = trained_adapter(dict.fromkeys(NAMES, (16, 16)), r=3, num_basis=20, seed=3)
    return made.replace({n: (c.alpha * scale, c.beta * scale) for n, c in made.modules.items()})


def bits(net):
    held = {n: p for n, p in net.named_parameters() if not (p.is_meta or is_lazy(p))}
    copies = {n: p.detach().clone(memory_format=torch.contiguous_format) for n, p in held.items()}
    return {name: copy.view(torch.uint8) for name, copy in copies.items()}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(values, other[name]) for name, values in one.items())


def assert_refused(net, error, match, made=None):
    before = bits(net)
    with pytest.raises(error, match=match) as caught:
        nt.merge_(net, made or adapter())
    assert "\n" not in str(caught.value)
    assert_same_bits(bits(net), before)


def test_a_weight_without_values():
    """The last of them: those before it would have been merged."""
    net = Net()
    net.third.to("meta")
    assert_refused(net, MismatchError, r"<Net>: third\.weight: is on the meta device")
    net.third = nn.LazyLinear(16)
    assert_refused(net, MismatchError, r"third\.weight: is yet to be made")


@pytest.mark.parametrize("offload", [accelerate.cpu_offload, accelerate.disk_offload])
def test_a_model_that_accelerate_offloads(offload, tmp_path):
    net, x = Net(), torch.ones(1, 16)
    expected = net(x)
    places = {"offload_dir": tmp_path} if offload is accelerate.disk_offload else {}
    offload(net, execution_device="cpu", **places)
    assert_refused(net, MismatchError, "load the model without offloading")
    assert torch.equal(net(x), expected)


def test_a_weight_that_is_no_plain_tensor():
    class Quantised(torch.Tensor):
        pass

    net = Net()
    weight = torch.Tensor._make_subclass(Quantised, torch.ones(16, 16))
    net.third.weight = nn.Parameter(weight, requires_grad=False)
    assert_refused(net, MismatchError, r"third\.weight: is a Quantised, not a plain tensor")


@pytest.mark.parametrize(
    "share",
    [
        lambda weight: weight,
        lambda weight: nn.Parameter(weight.data),
        lambda weight: nn.Parameter(weight.data.T),
        lambda weight: nn.Parameter(weight.data[8:]),
    ],
    ids=["itself", "its data", "its data transposed", "a part of it"],
)
def test_a_weight_that_is_another_modules_too(share):
    net = Net()
    net.head = nn.Linear(16, 16, bias=False)
    net.head.weight = share(net.second.weight)
    assert_refused(net, MismatchError, r"second\.weight: is the same tensor as head\.weight")


def test_neighbours_in_one_storage_are_not_the_same():
    net, apart = Net(), Net()
    storage = torch.empty(3, 16, 16)
    for part, name in zip(storage, NAMES, strict=True):
        linear = getattr(net, name)
        linear.weight = nn.Parameter(part.copy_(linear.weight.detach()))
    nt.merge_(net, adapter())
    nt.merge_(apart, adapter())
    assert_same_bits(bits(net), bits(apart))


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_base_that_is_not_finite(value):
    net = Net(torch.float16)
    with torch.no_grad():
        net.third.weight[15, 15] = float(value)
    assert_refused(net, NotFiniteError, r"<Net>: third\.weight: ")


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_base_that_is_not_finite_is_not_looked_for(value, dtype):
    """That would read every weight of every model twice; the error says what has happened."""
    net = Net(dtype)
    with torch.no_grad():
        net.third.weight[15, 15] = float(value)
    with pytest.raises(NotFiniteError, match=r"<Net>: .*some are merged now .* load it again"):
        nt.merge_(net, adapter())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_result_that_is_too_large_for_its_dtype(dtype):
    """Base and update are finite, and so is every merged weight before the last."""
    net, largest = Net(dtype), torch.finfo(dtype).max
    update = torch.zeros(16, 16)
    nt.merge_factors_(update, terms_of(net, adapter())["third.weight"])
    with torch.no_grad():
        net.third.weight.fill_(largest)
    made = adapter(math.sqrt(largest / 8 / float(update.abs().max())))
    assert_refused(net, NotFiniteError, r"<Net>: third\.weight: ", made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_coefficients_that_are_too_large(dtype):
    assert_refused(Net(dtype), NotFiniteError, "infinite or NaN", adapter(1e25))


def terms_of(net, made):
    planned = plan_merges(dict(net.named_parameters()), load_adapters(made), Path("net"))
    return {name: merge.addends for name, merge in planned.merges.items()}


def test_what_is_finite_by_a_narrow_margin_is_merged():
    """Where the bound leaves it open, the merge itself tells."""
    net, made = Net(torch.float16), adapter()
    with torch.no_grad():
        net.second.weight.fill_(65000.0)
    expected = Net(torch.float16)
    expected.load_state_dict(net.state_dict())
    made = [(made, 1000 / _largest_update(terms_of(net, made)["second.weight"]))]
    terms = terms_of(expected, made)
    assert not _is_surely_finite(net.second.weight.data, terms["second.weight"])
    for name in terms:
        nt.merge_factors_(expected.get_parameter(name).data, terms[name])
    assert nt.merge_(net, made) == list(terms)
    assert_same_bits(bits(net), bits(expected))


@given(
    st.sampled_from(["rademacher", "uniform"]),
    st.integers(1, 9),
    st.integers(1, 40),
    st.floats(-1e3, 1e3, width=32),
    st.integers(0, 2**32),
)
def test_no_update_exceeds_the_bound(basis, r, count, value, seed):
    made = ne.Adapter.create(
        {"first": (16, 16)}, r=r, num_basis_a=count, num_basis_b=count, seed=seed, basis=basis,
        lora_alpha=2.0,
    )  # fmt: skip
    signs = torch.randint(0, 2, (2, count), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    alpha, beta = (signs * value).float().numpy()
    made = made.replace({"first": (alpha, beta)})
    weight = torch.zeros(16, 16)
    plan = plan_merges({"first.weight": weight}, [(made, 1.0)], Path("net"))
    terms = plan.merges["first.weight"].addends
    nt.merge_factors_(weight, terms)
    assert weight.abs().max() <= _largest_update(terms)
