"""CUDA kernels seen from torch: the bits of the CPU, on a GPU or emulated (cuda_devices.py)."""

from __future__ import annotations

import copy
import pickle
from threading import Thread

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nola_edge as ne
import nola_edge.torch as nt
from nola_edge.errors import NotFiniteError
from nola_edge.torch.backends import cpu, cuda
from nola_edge.torch.expand_together import expand_group
from tests.pytorch.cuda_devices import Real, build_emulation, emulation, needs_gpu
from tests.pytorch.test_operators import expansions

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="session")
def emulated_module(tmp_path_factory):
    return build_emulation(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=needs_gpu)])
def on(request):
    """What the kernels run on; its `device` is that of the tensors to give them."""
    if request.param == "gpu":
        yield Real()
        return
    with emulation(request.getfixturevalue("emulated_module")) as emulated:
        yield emulated


def arrays(*shapes, entropy, dtype=torch.float32):
    generator = torch.Generator().manual_seed(entropy)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def source_of(arguments):
    return (
        arguments["seed"],
        nt.operators.signed_stream(arguments["stream"]),
        *(arguments[name] for name in ("basis", "shape", "rows", "cols")),
    )


@given(expansions(), st.integers(1, 70), st.integers(0, 2**32), st.sampled_from(DTYPES))
def test_expand_has_the_bits_of_the_core(on, arguments, num_basis, entropy, dtype):
    (coefficients,) = arrays((num_basis,), entropy=entropy, dtype=dtype)
    expected = ne.expand(coefficients.float().numpy(), **arguments)
    got = nt.expand(coefficients.to(on.device), **arguments)
    assert got.dtype == torch.float32
    assert got.device.type == on.device.type
    assert got.cpu().numpy().tobytes() == expected.tobytes()


@given(expansions(), st.integers(1, 70), st.integers(0, 2**32), st.sampled_from(DTYPES))
def test_project_is_the_adjoint_and_always_the_same(on, arguments, num_basis, entropy, dtype):
    size = [stop - start for start, stop in (arguments["rows"], arguments["cols"])]
    (grad,) = arrays(size, entropy=entropy, dtype=dtype)
    expected = ne.project(grad.float().numpy(), num_basis=num_basis, **arguments)
    got = nt.project(grad.to(on.device), num_basis=num_basis, **arguments)
    again = nt.project(grad.to(on.device), num_basis=num_basis, **arguments)
    assert torch.equal(got, again)
    norm = float(grad.double().norm()) / num_basis**0.5
    np.testing.assert_allclose(got.cpu().numpy(), expected, rtol=0, atol=3e-6 * norm + 1e-30)


@settings(max_examples=15)
@given(st.lists(st.tuples(expansions(), st.integers(1, 70)), min_size=1, max_size=8))
def test_a_group_has_the_bits_of_its_members(on, members):
    coefficients = [arrays((k,), entropy=k)[0].to(on.device) for _, k in members]
    sources = [source_of(arguments) for arguments, _ in members]
    single = [nt.expand(c, **a) for c, (a, _) in zip(coefficients, members, strict=True)]
    for got, expected in zip(expand_group(coefficients, sources), single, strict=True):
        assert torch.equal(got, expected)


def sources_of_one_seed(basis):
    shapes = [(16, 300), (500, 4), (0, 8), (7, 7), (33, 64)]
    return [(11, stream, basis, s, (0, s[0]), (0, s[1])) for stream, s in enumerate(shapes)]


@pytest.mark.parametrize("basis", ["rademacher", "uniform"])
def test_gradients_of_a_group(on, basis):
    """One launch forward, and one backward for each dtype, with the gradients of single calls."""
    sources = sources_of_one_seed(basis)
    counts = [40, 3, 5, 70, 32]
    coefficients = [arrays((k,), entropy=k)[0].to(on.device).requires_grad_(k != 3) for k in counts]
    weights = [arrays(source[3], entropy=9)[0].to(on.device) for source in sources]

    def loss(matrices):  # the last is not used
        return sum((m * w).sum() for m, w in zip(matrices[:-1], weights[:-1], strict=True))

    asked = [c for c in coefficients if c.requires_grad]
    single = [nt.operators.expand(c, s) for c, s in zip(coefficients, sources, strict=True)]
    expected = torch.autograd.grad(loss(single), asked, allow_unused=True)
    if hasattr(on, "calls"):
        on.calls.clear()
    got = torch.autograd.grad(loss(expand_group(coefficients, sources)), asked, allow_unused=True)
    assert got[-1] is None
    for one, other in zip(got[:-1], expected[:-1], strict=True):
        assert torch.equal(one, other)
    if hasattr(on, "calls"):
        assert on.launches("expand_group", "expand_at") == 1
        assert on.launches("project_group", "project_at") == 1


def test_second_derivatives_of_a_group(on):
    source = (11, 3, "rademacher", (4, 30), (0, 4), (0, 30))
    c = torch.randn(6, device=on.device, requires_grad=True)

    def energy(v):
        return sum(m.square().sum() for m in expand_group([v, v], [source, source]))

    (first,) = torch.autograd.grad(energy(c), c, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), c)
    rows = torch.stack(
        [nt.operators.expand(e, source).flatten() for e in torch.eye(6).to(c.device)]
    )
    torch.testing.assert_close(second, 4 * (rows @ rows.T).sum(1))


@settings(max_examples=20)
@given(
    st.integers(1, 70), st.integers(1, 150), st.integers(0, 20), st.sampled_from(DTYPES),
    st.sampled_from(["plain", "transposed", "columns", "offset"]), st.integers(0, 2**32),
)  # fmt: skip
def test_merge_has_the_bits_of_the_core(on, m, n, rank, dtype, layout, entropy):
    left, right = arrays((m, rank), (rank, n), entropy=entropy)
    room = {"plain": (m, n), "transposed": (n, m), "columns": (m, n + 9), "offset": (m * n + 1,)}
    (memory,) = arrays(room[layout], entropy=entropy + 1, dtype=dtype)

    def weight_in(tensor):
        views = {
            "plain": lambda: tensor,
            "transposed": lambda: tensor.T,
            "columns": lambda: tensor[:, 5 : 5 + n],
            "offset": lambda: tensor[1:].view(m, n),
        }
        return views[layout]()

    expected, got = memory.clone(), memory.to(on.device, copy=True)
    nt.merge_low_rank_(weight_in(expected), left, right, 0.3)
    weight = weight_in(got)
    pair = (left.to(on.device), right.to(on.device))
    if hasattr(on, "calls"):
        nt.merge._merge_on_cuda([(weight, *pair, 0.3)])
    else:
        nt.merge_low_rank_(weight, *pair, 0.3)
    assert torch.equal(got.cpu().view(torch.uint8), expected.view(torch.uint8))


def test_merge_from_a_pristine_copy(on):
    """Swapping adapters: written from a copy of the base that stays as it is, without drift."""
    (base,) = arrays((70, 130), entropy=0, dtype=torch.bfloat16)
    base = base.to(on.device)
    kept, out = base.clone(), torch.empty_like(base)
    flag = torch.zeros((), dtype=torch.int32, device=on.device)
    for entropy in (1, 2, 1):
        pair = arrays((70, 5), (5, 130), entropy=entropy)
        expected = kept.cpu().clone()
        nt.merge_low_rank_(expected, *pair, 2.0)
        cuda.merge_low_rank(base, out, *(factor.to(on.device) for factor in pair), 2.0, flag)
        assert torch.equal(out.cpu(), expected)
        assert torch.equal(base, kept)
    assert not flag


@pytest.mark.parametrize("limit", [1, 10**9])
def test_a_whole_model_is_merged_in_batches(on, monkeypatch, limit):
    """Plain and transposed weights, one adapter or two, of several dtypes, as one by one."""
    monkeypatch.setattr(cuda, "FACTOR_BYTES", limit)
    generator = torch.Generator().manual_seed(1)
    expected, updates = [], []
    for i, dtype in enumerate([*DTYPES, *DTYPES]):
        out, into = 20 + 9 * i, 50 - 3 * i
        transposed, adapters = i % 2 == 1, 1 + i // 3
        shape = (into, out) if transposed else (out, into)
        weight = torch.randn(shape, generator=generator).to(dtype)
        terms = [
            (
                nt.Factors(f"layer{i}", 4, into, out, seed),
                torch.randn(33, generator=generator),
                torch.randn(40, generator=generator),
                0.3 + seed,
            )
            for seed in range(adapters)
        ]
        updates.append((weight.to(on.device, copy=True), terms, transposed))
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(nt.operators._KERNELS, "cpu", (cpu.expand, cpu.project))
            nt.merge_factors_(weight, terms, transposed=transposed)
        expected.append(weight)
    if hasattr(on, "calls"):
        on.calls.clear()
        prepared = [(*nt.merge._prepared(w, terms, t), t) for w, terms, t in updates]
        for batch in nt.merge._batches(prepared):
            nt.merge._merge_batch(batch)
        # A launch for each seed, and one for each dtype.
        assert on.launches("merge_group") == (6 if limit == 1 else 3)
        assert on.launches("expand_group") == (9 if limit == 1 else 2)
    else:
        nt.merge.merge_many_(updates)
    for (weight, *_), wanted in zip(updates, expected, strict=True):
        assert torch.equal(weight.cpu().view(torch.uint8), wanted.view(torch.uint8))


def test_what_overflows_is_noticed(on):
    weight = torch.full((3, 4), 60000.0, dtype=torch.float16, device=on.device)
    left = torch.full((3, 1), 10.0, device=on.device)
    right = torch.tensor([[0.0, 1.0, 1000.0, 0.0]], device=on.device)
    with pytest.raises(NotFiniteError, match="merged weight is infinite or NaN"):
        nt.merge._merge_on_cuda([(weight, left, right, 1.0)])


def layers():
    torch.manual_seed(0)
    options = {"r": 4, "num_basis_a": 40, "num_basis_b": 33, "seed": 5, "start": "random"}
    return nn.Sequential(
        nt.NolaLinear(nn.Linear(24, 40), "first", **options),
        nn.Tanh(),
        nt.NolaLinear(nn.Linear(40, 8), "second", **options),
    )


def train(model, device, rate=0.5):
    model = model.to(device)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], rate)
    (x, y) = arrays((16, 24), (16, 8), entropy=3)
    for _ in range(4):
        loss = (model(x.to(device)) - y.to(device)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().cpu() for p in model.parameters() if p.requires_grad]


def test_training_comes_to_what_it_does_on_the_cpu(on):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(nt.operators._KERNELS, "cpu", (cpu.expand, cpu.project))
        expected = train(layers(), "cpu")
    got = train(layers(), on.device)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_expanding_together_changes_nothing_but_the_launches(on):
    expected = train(layers(), on.device)
    model = layers().to(on.device)
    undo = nt.expand_together(model)
    if hasattr(on, "calls"):
        on.calls.clear()
    for one, other in zip(train(model, on.device), expected, strict=True):
        assert torch.equal(one, other)
    if hasattr(on, "calls"):
        assert on.launches("expand_group") == on.launches("project_group") == 4
        assert on.launches("expand_at", "project_at") == 0
    undo()
    model(torch.zeros(1, 24, device=on.device))
    if hasattr(on, "calls"):
        assert on.launches("expand_at") == 4


def test_frozen_factors_follow_their_coefficients(on):
    """Nothing is compared, which would wait for the device, and nothing stale is kept."""
    model, x = layers().to(on.device).requires_grad_(False), torch.ones(1, 24, device=on.device)
    with torch.no_grad():
        model[0].beta.normal_()
        model[2].beta.normal_()
    before = model(x)
    assert torch.equal(model(x), before)
    model[0].alpha.data.mul_(2.0)
    assert not torch.equal(model(x), before)
    if hasattr(on, "calls"):
        assert on.launches("expand_at") == 3 * 4


def test_a_model_without_adapters_is_refused():
    with pytest.raises(ValueError, match="model: Linear has no layer with a NOLA adapter"):
        nt.expand_together(nn.Linear(2, 3))


def test_an_offer_does_not_outlive_a_failure(on):
    model = layers().to(on.device)
    nt.expand_together(model)
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 23, device=on.device))
    with torch.no_grad():
        model[0].alpha.add_(1.0)
        expected = copy.deepcopy(model[0])(torch.ones(1, 24, device=on.device))
        assert torch.equal(model[0](torch.ones(1, 24, device=on.device)), expected)


def test_a_copy_of_a_model_expands_its_own_factors(on):
    model = layers().to(on.device)
    with torch.no_grad():
        model[0].beta.normal_()
        model[2].beta.normal_()
    nt.expand_together(model)
    copied = copy.deepcopy(model)
    restored = pickle.loads(pickle.dumps(model))
    x = torch.ones(1, 24, device=on.device)
    before = model(x)
    for other in (copied, restored):
        assert torch.equal(other(x), before)
        with torch.no_grad():
            other[0].alpha.mul_(2.0)
        assert not torch.equal(other(x), before)
    assert torch.equal(model(x), before)


def test_an_offer_is_for_one_moment_alone(on):
    """An interrupted forward pass withdraws nothing; other threads and modes want their own."""
    model, x = layers().to(on.device), torch.ones(1, 24, device=on.device)
    with torch.no_grad():
        model[0].beta.normal_()
    undo = nt.expand_together(model)
    together = next(iter(model._forward_pre_hooks.values())).__self__

    def interrupted():
        together.offer(model)  # as if the forward pass had been stopped by Ctrl-C
        return model[0]

    assert interrupted()(x).grad_fn is not None
    with torch.no_grad():
        layer = interrupted()
        with torch.enable_grad():
            assert layer(x).requires_grad
        layer = interrupted()
        expected = copy.deepcopy(layer)
        for one in (layer, expected):
            one.alpha.mul_(3.0)
        assert torch.equal(layer(x), expected(x))
    results = []
    layer = interrupted()
    thread = Thread(target=lambda: results.append(layer(x).grad_fn))
    with torch.no_grad():
        layer = interrupted()
    thread.start()
    thread.join()
    assert results[0] is not None
    undo()


def test_tables_are_made_once_for_addresses_that_recur(on):
    made = []
    tables, sources = cuda._Tables(), sources_of_one_seed("rademacher")

    def get(key, of=sources):
        return tables.get(of, (key,), on.device, lambda: made.append(key) or bytes([key] * 8))

    for key in (1, 2, 1, 2):
        planned, copied = get(key)
        assert planned == bytes([key] * 8)
        assert copied.tolist()[:8] == [key] * 8
    assert made == [1, 2]
    get(1, of=list(sources))  # equal, and yet another list
    assert made == [1, 2, 1]
    for key in range(3, 13):
        get(key)
    get(1)
    assert made[-1] == 1  # long forgotten


def test_groups_of_the_same_sources_and_other_coefficients(on):
    sources = sources_of_one_seed("rademacher")
    for count in (7, 7, 9, 33):
        coefficients = [torch.randn(count, device=on.device) for _ in sources]
        got = expand_group(coefficients, sources)
        for one, c, source in zip(got, coefficients, sources, strict=True):
            assert torch.equal(one, nt.operators.expand(c, source))


@pytest.mark.parametrize("options", [{"coefficient_bits": 4}, {"start": "unit-frozen"}])
def test_coefficients_that_are_made_anew_stay_with_their_layers(on, options):
    def one():
        torch.manual_seed(0)
        counts = {"num_basis_a": 9, "num_basis_b": 9}
        layer = nt.NolaLinear(nn.Linear(24, 8), "first", r=4, seed=5, **counts, **options)
        return nn.Sequential(layer)

    expected, model = train(one(), on.device), one().to(on.device)
    nt.expand_together(model)
    for got, wanted in zip(train(model, on.device), expected, strict=True):
        assert torch.equal(got, wanted)


def test_expanding_together_under_checkpointing(on):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    expected = train(layers(), on.device)
    model = Checkpointed(layers()).to(on.device)
    nt.expand_together(model)
    for one, other in zip(train(model, on.device), expected, strict=True):
        assert torch.equal(one, other)


def test_expanding_a_tuner_together(on):
    import peft

    from nola_edge.peft import NolaConfig

    def outputs(together):
        torch.manual_seed(0)
        inner = nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 8)).to(on.device)
        options = {"num_basis_a": 40, "num_basis_b": 33, "init_weights": False}
        model = peft.get_peft_model(
            inner, NolaConfig(r=4, seed=5, target_modules=["0", "2"], **options)
        )
        if together:
            nt.expand_together(model)
        return train(model, on.device, rate=1e-4)

    for one, other in zip(outputs(True), outputs(False), strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)


def test_what_does_not_fit_is_refused(on):
    c = torch.randn(5, device=on.device)
    arguments = {"seed": 1, "stream": 2, "shape": (4, 6)}
    with pytest.raises(ValueError, match="coefficients: must have 1 dimension"):
        nt.expand(c.view(1, 5), **arguments)
    with pytest.raises(TypeError, match="coefficients: must be floating point"):
        nt.expand(c.int(), **arguments)
    with pytest.raises(ValueError, match="num_basis: 0 is not in"):
        nt.expand(c[:0], **arguments)
    with pytest.raises(ValueError, match="cols: "):
        nt.expand(c, **arguments, cols=(2, 9))
    with pytest.raises(ValueError, match="basis: 'normal' is not known"):
        nt.expand(c, **arguments, basis="normal")
    with pytest.raises(ValueError, match=r"grad: has shape \(3, 6\)"):
        nt.project(torch.zeros(3, 6, device=on.device), num_basis=4, **arguments)
    weight = torch.zeros(4, 6, device=on.device)
    with pytest.raises(TypeError, match="weight: must be float32, float16 or bfloat16"):
        nt.merge_low_rank_(weight.double(), weight[:, :2], weight[:2], 1.0)
    with pytest.raises(TypeError, match="left: must be float32"):
        nt.merge_low_rank_(weight, weight[:, :2].half(), weight[:2], 1.0)
    with pytest.raises(ValueError, match="which do not make"):
        nt.merge_low_rank_(weight, weight[:, :2], weight[:3], 1.0)
    with pytest.raises(ValueError, match="right: is on meta, the weight on"):
        nt.merge_low_rank_(weight, weight[:, :2], weight[:2].to("meta"), 1.0)
    assert not weight.any()


def test_emulated_errors_name_the_device(emulated_module):
    with emulation(emulated_module) as on:
        on.number = 1
        with pytest.raises(RuntimeError, match=r"capability 5\.2; this build has kernels for 75"):
            nt.expand(torch.randn(5), seed=1, stream=2, shape=(4, 6))
        on.number = 2
        with pytest.raises(RuntimeError, match="cudaSetDevice: cudaErrorInvalidDevice"):
            nt.expand(torch.randn(5), seed=1, stream=2, shape=(4, 6))
        on.number = 0
        nt.expand(torch.randn(5), seed=1, stream=2, shape=(4, 6))


def test_emulated_table_of_another_operation_is_refused(emulated_module):
    table = emulated_module.plan_merge("float32", [])
    emulated_module.expand_group("rademacher", 1, "float32", table, 0, 0, 0)  # nothing to do
    with pytest.raises(ValueError, match="table: was not made for this operation"):
        emulated_module.expand_group("rademacher", 1, "float32", b"123", 0, 0, 0)
