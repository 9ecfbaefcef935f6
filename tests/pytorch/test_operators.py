"""The torch operators: the core's bits, right gradients, and everything torch can do to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
import nola_edge.torch as nt
from nola_edge.torch import operators
from nola_edge.torch.merge import merge_low_rank_

BASES = ["rademacher", "uniform"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
HIGH_STREAM = (1 << 64) - 12345  # negative as an int64


@st.composite
def expansions(draw):
    rows, cols = draw(st.integers(0, 20)), draw(st.integers(0, 90))
    window = []
    for size in (rows, cols):
        start = draw(st.integers(0, size))
        window.append((start, draw(st.integers(start, size))))
    return {
        "seed": draw(st.integers(0, 2**63 - 1)),
        "stream": draw(st.integers(0, 2**64 - 1)),
        "shape": (rows, cols),
        "basis": draw(st.sampled_from(BASES)),
        "rows": window[0],
        "cols": window[1],
    }


@given(expansions(), st.integers(1, 70), st.integers(0, 2**32), st.sampled_from(DTYPES[:3]))
def test_expand_has_the_bits_of_the_core(arguments, num_basis, entropy, dtype):
    generator = torch.Generator().manual_seed(entropy)
    coefficients = torch.randn(num_basis, generator=generator).to(dtype)
    expected = ne.expand(coefficients.float().numpy(), **arguments)
    got = nt.expand(coefficients, **arguments)
    assert got.dtype == torch.float32
    assert got.numpy().tobytes() == expected.tobytes()
    source = (arguments["seed"], operators.signed_stream(arguments["stream"]), arguments["basis"])
    source += (arguments["shape"], arguments["rows"], arguments["cols"])
    assert torch.equal(torch.ops.nola_edge.expand(coefficients, *source), got)


@given(expansions(), st.integers(1, 70), st.integers(0, 2**32), st.sampled_from(DTYPES[:3]))
def test_project_has_the_bits_of_the_core(arguments, num_basis, entropy, dtype):
    generator = torch.Generator().manual_seed(entropy)
    size = [stop - start for start, stop in (arguments["rows"], arguments["cols"])]
    grad = torch.randn(size, generator=generator).to(dtype)
    expected = ne.project(grad.float().numpy(), num_basis=num_basis, **arguments)
    got = nt.project(grad, num_basis=num_basis, **arguments)
    assert got.dtype == torch.float32
    assert got.numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("basis", BASES)
def test_gradients_of_any_order(basis):
    """Finite differences need double, and the operators compute in float: linear, so exact enough.

    The two are each other's adjoint: <expand(c), G> = <c, project(G)>, and a quadratic form's
    second derivative is the Gram matrix of the basis.
    """
    options = {"seed": 7, "stream": HIGH_STREAM, "shape": (5, 33), "basis": basis}
    c = torch.randn(9, requires_grad=True)
    grad = torch.randn(5, 33)
    matrix = nt.expand(c, **options)
    (first,) = torch.autograd.grad((matrix * grad).sum(), c)
    torch.testing.assert_close(first, nt.project(grad, num_basis=9, **options))

    def energy(v):
        return 0.5 * nt.expand(v, **options).square().sum()

    hessian = torch.autograd.functional.hessian(energy, c.detach())
    rows = torch.stack([nt.expand(e, **options).flatten() for e in torch.eye(9)])
    torch.testing.assert_close(hessian, rows @ rows.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_has_the_dtype_of_the_coefficients(dtype):
    c = torch.randn(6).to(dtype).requires_grad_()
    nt.expand(c, seed=1, stream=2, shape=(3, 8)).sum().backward()
    assert c.grad.dtype == dtype


def samples():
    source = (3, -5, "rademacher", (4, 70), (1, 3), (2, 69))
    for grad in (False, True):
        yield "expand", (torch.randn(40, requires_grad=grad), *source)
        yield "project", (torch.randn(2, 67, requires_grad=grad), 40, *source)
    yield "expand", (torch.randn(5, dtype=torch.bfloat16), 0, 0, "uniform", (2, 3), (0, 2), (0, 3))
    yield "expand", (torch.randn(2, 10)[0, ::2], 0, 0, "uniform", (2, 3), (0, 2), (0, 3))


@pytest.mark.parametrize(("name", "arguments"), list(samples()))
def test_opcheck(name, arguments):
    operator = getattr(torch.ops.nola_edge, name).default
    torch.library.opcheck(operator, arguments)


@pytest.mark.filterwarnings("default")  # of inductor's own making
def test_compile_without_graph_breaks():
    torch._dynamo.reset()

    def loss(c, x):
        a = nt.expand(c, seed=3, stream=HIGH_STREAM, shape=(4, 16))
        return (x @ a.T).square().sum()

    c, x = torch.randn(8, requires_grad=True), torch.randn(5, 16)
    eager = loss(c, x)
    (expected,) = torch.autograd.grad(eager, c)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(c, x)
    (got,) = torch.autograd.grad(compiled, c)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(got, expected)


def test_vmap():
    batch = torch.randn(3, 8)
    options = {"seed": 1, "stream": 2, "shape": (4, 16)}
    one_by_one = torch.stack([nt.expand(c, **options) for c in batch])
    assert torch.equal(torch.func.vmap(lambda c: nt.expand(c, **options))(batch), one_by_one)
    grads = torch.randn(4, 3, 16)
    projected = torch.func.vmap(lambda g: nt.project(g, num_basis=8, **options), in_dims=1)(grads)
    assert torch.equal(projected[2], nt.project(grads[:, 2], num_basis=8, **options))
    assert torch.func.vmap(lambda c: nt.expand(c, **options))(batch[:0]).shape == (0, 4, 16)


OPTIONS = {"seed": 1, "stream": 2, "shape": (4, 16)}


def loss_of(c):
    """Not linear, so that its gradient depends on the coefficients."""
    return nt.expand(c, **OPTIONS).square().sum()


def eager_gradient(c):
    c = c.detach().requires_grad_()
    return torch.autograd.grad(loss_of(c), c)[0]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own
def test_gradients_of_functorch():
    batch = torch.randn(3, 8)
    expected = torch.stack([eager_gradient(c) for c in batch])
    torch.testing.assert_close(torch.func.grad(loss_of)(batch[0]), expected[0])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss_of))(batch), expected)
    # d2/dc2 of |E c|^2 is 2 E^T E, by reverse over reverse and forward over reverse.
    identity = torch.eye(8)
    basis = torch.stack([nt.expand(e, **OPTIONS).reshape(-1) for e in identity])
    hessian = 2 * basis @ basis.T
    reverse = torch.func.jacrev(torch.func.jacrev(loss_of))(batch[0])
    torch.testing.assert_close(reverse, hessian, rtol=1e-4, atol=1e-4)
    forward = torch.func.hessian(loss_of)(batch[0])
    torch.testing.assert_close(forward, hessian, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own
def test_forward_mode_derivatives():
    c, tangent = torch.randn(8), torch.randn(8)
    expected = nt.expand(tangent, **OPTIONS)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(c, tangent)
        value = torch.autograd.forward_ad.unpack_dual(nt.expand(dual, **OPTIONS))
    assert torch.equal(value.tangent, expected)
    grad = torch.randn(4, 16)

    def project(g):
        return nt.project(g, num_basis=8, **OPTIONS)

    _, pushed = torch.func.jvp(project, (grad,), (grad,))
    torch.testing.assert_close(pushed, project(grad))


def test_a_default_device_is_not_the_kernels():
    c, grad = torch.randn(8), torch.randn(4, 16)
    expected = nt.expand(c, **OPTIONS), nt.project(grad, num_basis=8, **OPTIONS)
    with torch.device("meta"):
        assert torch.equal(nt.expand(c, **OPTIONS), expected[0])
        assert torch.equal(nt.project(grad, num_basis=8, **OPTIONS), expected[1])


def test_autocast_and_deterministic_mode_change_nothing():
    c = torch.randn(8)
    options = {"seed": 1, "stream": 2, "shape": (4, 16)}
    expected = nt.expand(c, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nt.expand(c, **options), expected)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(nt.expand(c, **options), expected)
    finally:
        torch.use_deterministic_algorithms(False)


def test_no_global_generator_is_touched():
    torch.manual_seed(0)
    np.random.seed(0)
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].tobytes()
    c = torch.ones(8, requires_grad=True)
    nt.expand(c, seed=1, stream=2, shape=(4, 16)).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tobytes() == legacy


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_torch_threads_govern_and_change_no_bit(threads):
    c, grad = torch.randn(64), torch.randn(16, 700)
    options = {"seed": 1, "stream": 2, "shape": (16, 700)}
    before = torch.get_num_threads()
    expected = nt.expand(c, **options), nt.project(grad, num_basis=64, **options)
    torch.set_num_threads(threads)
    try:
        assert torch.equal(nt.expand(c, **options), expected[0])
        assert torch.equal(nt.project(grad, num_basis=64, **options), expected[1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 2**63}, ValueError, "seed"),
        ({"basis": "gaussian"}, ValueError, "basis"),
        ({"rows": (0, 5)}, ValueError, "rows"),
        ({"rows": (0, 1, 2)}, TypeError, "rows"),
        ({"rows": (-1, 1)}, ValueError, "rows"),
        ({"shape": (2, 3, 4)}, TypeError, "shape"),
        ({"stream": 2**64}, ValueError, "stream"),
        ({"stream": -1}, ValueError, "stream"),
        ({"cols": (3, 2)}, ValueError, "cols"),
        ({"coefficients": torch.zeros(0)}, ValueError, "num_basis|coefficients"),
        ({"coefficients": torch.zeros(2, 2)}, ValueError, "coefficients"),
        ({"coefficients": torch.zeros(2, dtype=torch.int32)}, TypeError, "coefficients"),
    ],
)
def test_bad_arguments_name_themselves(change, error, says):
    arguments = {"coefficients": torch.zeros(4), "seed": 1, "stream": 2, "shape": (4, 16)}
    arguments.update(change)
    with pytest.raises(error, match=f"^({says}): [^\n]*$"):
        nt.expand(arguments.pop("coefficients"), **arguments)


def unaligned(tensor):
    """The same tensor at an odd address."""
    raw = bytearray(1) + bytearray(tensor.view(torch.uint8).numpy().tobytes())
    copy = torch.frombuffer(raw, dtype=tensor.dtype, offset=1).reshape(tensor.shape)
    assert copy.data_ptr() % tensor.element_size()
    return copy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_not_aligned_gives_the_same_bits(dtype):
    options = {"seed": 1, "stream": 2}
    values = torch.randn(9).to(dtype)
    expected = nt.expand(values, shape=(4, 16), **options)
    assert torch.equal(nt.expand(unaligned(values), shape=(4, 16), **options), expected)
    grad = expected.to(dtype)
    projected = nt.project(grad, num_basis=5, **options)
    assert torch.equal(nt.project(unaligned(grad), num_basis=5, **options), projected)
    b, a = torch.randn(4, 3), torch.randn(3, 16)
    weight, odd = grad.clone(), unaligned(grad)
    merge_low_rank_(weight, b, a, 0.7)
    merge_low_rank_(odd, unaligned(b), unaligned(a), 0.7)
    assert torch.equal(odd, weight)


def test_a_gradient_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="grad"):
        nt.project(torch.zeros(3, 4), seed=1, stream=2, num_basis=4, shape=(4, 4))


def test_other_devices_go_through_the_host():
    """No such device here: the functions are called as the dispatcher would, and are registered."""
    from nola_edge.torch.backends import through_host

    source = (3, 5, "rademacher", (4, 16), (1, 4), (0, 16))
    c, grad = torch.randn(9), torch.randn(3, 16)
    assert torch.equal(through_host.expand(c, *source), torch.ops.nola_edge.expand(c, *source))
    assert torch.equal(
        through_host.project(grad, 9, *source), torch.ops.nola_edge.project(grad, 9, *source)
    )
    for device in ("CUDA", "MPS", "XPU"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key("nola_edge::expand", device)
        assert torch._C._dispatch_has_kernel_for_dispatch_key("nola_edge::project", device)


def test_meta_tensors_have_shapes_alone():
    c = torch.zeros(4, device="meta")
    assert nt.expand(c, seed=1, stream=2, shape=(4, 16)).shape == (4, 16)
