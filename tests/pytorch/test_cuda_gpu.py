"""What only a GPU shows: streams, graphs, compilation, memory, several devices, real models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import nola_edge.torch as nt
from nola_edge.errors import NotFiniteError
from nola_edge.torch.expand_together import expand_group
from tests.pytorch.cuda_devices import needs_gpu
from tests.pytorch.test_cuda import layers, train

pytestmark = [needs_gpu, pytest.mark.filterwarnings("default")]

SOURCE = {"seed": 3, "stream": (1 << 64) - 12345, "shape": (16, 1024)}


def test_every_half_and_bfloat16_is_rounded_as_on_the_cpu():
    """Subnormals and ties among them: hardware rounds here, integers there."""
    for dtype in (torch.float16, torch.bfloat16):
        bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
        weight = bits.view(dtype)
        weight = weight[weight.isfinite()].view(1, -1)
        for scaling in (0.0, 2**-12, 2**-11, 1.0625 * 2**-11, 2**-9, 2**-8):
            right = weight.float()
            expected, got = weight.clone(), weight.cuda()
            outcomes = []
            for target in (expected, got):
                left = torch.ones(1, 1, device=target.device)
                try:
                    nt.merge_low_rank_(target, left, right.to(target.device), scaling)
                    outcomes.append(True)
                except NotFiniteError:
                    outcomes.append(False)
            assert outcomes[0] == outcomes[1]
            assert torch.equal(got.cpu().view(torch.int16), expected.view(torch.int16))


def test_nothing_waits_for_the_device():
    c = torch.randn(128, device="cuda", requires_grad=True)
    grad = torch.randn(16, 1024, device="cuda")
    model = layers().cuda()
    nt.expand_together(model)
    x = torch.randn(4, 24, device="cuda")
    model(x).sum().backward()  # what is loaded once may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        nt.expand(c, **SOURCE).backward(grad)
        model(x).sum().backward()
        with torch.no_grad():
            model(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_work_goes_to_the_current_stream():
    c = torch.randn(512, device="cuda")
    expected = nt.expand(c, **SOURCE)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # memory and kernels of this stream
        nt.expand(c * 2, **SOURCE)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        changed = c * 2
        got = nt.expand(changed, **SOURCE)
        assert not side.query()  # both are still in the queue
    side.synchronize()
    assert torch.equal(got, nt.expand(c * 2, **SOURCE))
    assert not torch.equal(got, expected)


@pytest.mark.parametrize("basis", ["rademacher", "uniform"])
def test_a_large_matrix_has_the_bits_of_the_cpu(basis):
    """So large that a block keeps its tables for several tiles."""
    c = torch.randn(40)
    options = {"seed": 1, "stream": 2, "shape": (4096, 4096), "basis": basis}
    assert torch.equal(nt.expand(c.cuda(), **options).cpu(), nt.expand(c, **options))


def test_the_same_bits_in_every_run():
    grad = torch.randn(4096, 512, device="cuda")
    options = {"seed": 1, "stream": 2, "num_basis": 700}
    first = nt.project(grad, **options)
    for _ in range(20):
        assert torch.equal(nt.project(grad, **options), first)


def test_a_graph_replays_with_new_coefficients():
    model, x = layers().cuda(), torch.randn(4, 24, device="cuda")
    with torch.no_grad():  # else the adapter adds nothing, and alpha has no gradient
        model[0].beta.normal_()
        model[2].beta.normal_()
    model(x).square().mean().backward()  # loads the kernels for single matrices
    nt.expand_together(model)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model(x).square().mean().backward()
    torch.cuda.current_stream().wait_stream(side)
    model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = model(x).square().mean()
        loss.backward()
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1.5)
        graph.replay()
        fresh = copy.deepcopy(model)
        fresh.zero_grad(set_to_none=True)
        eager = fresh(x).square().mean()
        eager.backward()
        # The matrix products may take other algorithms in a graph.
        torch.testing.assert_close(loss, eager, rtol=1e-4, atol=1e-6)
        for one, other in zip(model.parameters(), fresh.parameters(), strict=True):
            if one.requires_grad:
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_training_comes_to_the_same(mode):
    torch._dynamo.reset()
    expected = train(layers(), "cuda")
    model = layers().cuda()
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    for one, other in zip(train(compiled, "cuda"), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_opcheck():
    c = torch.randn(40, device="cuda", requires_grad=True)
    source = (3, -5, "rademacher", (4, 70), (1, 3), (2, 69))
    torch.library.opcheck(torch.ops.nola_edge.expand.default, (c, *source))
    grad = torch.randn(2, 67, device="cuda", requires_grad=True)
    torch.library.opcheck(torch.ops.nola_edge.project.default, (grad, 40, *source))


def test_the_basis_is_never_in_memory():
    c = torch.randn(512, device="cuda", requires_grad=True)
    shape = (16, 65536)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    nt.expand(c, seed=1, stream=2, shape=shape).sum().backward()
    used = torch.cuda.max_memory_allocated() - before
    assert used < 4 * shape[0] * shape[1] * 4  # the basis would be 512 times one of these


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_second_device():
    c = torch.randn(128)
    expected = nt.expand(c, **SOURCE)
    assert torch.cuda.current_device() == 0
    got = nt.expand(c.to("cuda:1"), **SOURCE)
    (grouped,) = expand_group(
        [c.to("cuda:1")], [(3, -12345, "rademacher", (16, 1024), (0, 16), (0, 1024))]
    )
    assert got.device == grouped.device == torch.device("cuda:1")
    assert torch.equal(got.cpu(), expected)
    assert torch.equal(grouped.cpu(), expected)
    assert torch.cuda.current_device() == 0
    assert torch.equal(nt.expand(c.to("cuda:0"), **SOURCE).cpu(), expected)


def test_a_refused_call_leaves_the_device_usable():
    c = torch.randn(8, device="cuda")
    with pytest.raises(ValueError, match="rows: "):
        nt.expand(c, seed=1, stream=2, shape=(4, 8), rows=(0, 9))
    with pytest.raises(ValueError, match="left: is on cpu, the weight on cuda:0"):
        nt.merge_low_rank_(c.view(2, 4), torch.ones(2, 1), torch.ones(1, 4, device="cuda"), 1.0)
    weight = torch.zeros(2, 4, device="cuda")
    with pytest.raises(NotFiniteError, match="the weight was not changed"):
        nt.merge_low_rank_(
            weight, torch.full((2, 1), torch.inf).cuda(), torch.ones(1, 4).cuda(), 1.0
        )
    assert not weight.any()
    torch.cuda.synchronize()
    assert torch.equal(
        nt.expand(c, seed=1, stream=2, shape=(4, 8)).cpu(),
        nt.expand(c.cpu(), seed=1, stream=2, shape=(4, 8)),
    )


def decoder():
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=176, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tuned_model_merges_to_the_bits_of_the_cpu(dtype, tmp_path):
    import peft

    from nola_edge.peft import NolaConfig

    options = {"r": 8, "num_basis_a": 64, "num_basis_b": 48, "target_modules": "all-linear"}
    tuned = peft.get_peft_model(decoder().cuda(), NolaConfig(**options, seed=7))
    nt.expand_together(tuned)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], 1e-2)
    ids = torch.randint(3, 100, (4, 16), device="cuda")
    losses = []
    for _ in range(30):
        loss = tuned(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.1
    tuned.save_pretrained(tmp_path)
    on_cpu, on_gpu = decoder().to(dtype), decoder().to(dtype).cuda()
    assert nt.merge_(on_cpu, tmp_path) == nt.merge_(on_gpu, tmp_path)
    for (name, one), other in zip(on_cpu.named_parameters(), on_gpu.parameters(), strict=True):
        assert torch.equal(one.view(torch.uint8), other.cpu().view(torch.uint8)), name
    if dtype == torch.float32:
        tuned.eval()
        with torch.no_grad():
            separate = tuned(input_ids=ids).logits
            torch.testing.assert_close(separate, on_gpu(input_ids=ids).logits, rtol=1e-3, atol=1e-3)
        merged = tuned.merge_and_unload()
        for one, other in zip(merged.parameters(), on_gpu.parameters(), strict=True):
            assert torch.equal(one, other)


def test_adapters_are_merged_together_on_the_device():
    """Two adapters in one weight: ranks concatenated, each B scaled and rounded beforehand."""
    model = nn.Sequential(nt.NolaLinear(nn.Linear(24, 40), "first", r=4, num_basis_a=9,
                                        num_basis_b=9, seed=1, start="random"))  # fmt: skip
    with torch.no_grad():
        model[0].beta.normal_()
    adapter = nt.to_adapter(model)
    on_cpu = nn.Sequential()
    on_cpu.add_module("first", nn.Linear(24, 40))
    on_gpu = copy.deepcopy(on_cpu).cuda()
    for target in (on_cpu, on_gpu):
        nt.merge_(target, [(adapter, 0.7), (adapter, 0.3)])
    assert torch.equal(on_cpu[0].weight, on_gpu[0].weight.cpu())
