"""The CUDA kernels against what bounds them, the torch way, and the figures that were set."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from measure.timing import Figure
from nola_edge.torch import operators
from nola_edge.torch.backends import cuda
from public_way import draw

DEVICE = torch.device("cuda", 0)

#: (out, in) of the linear layers of a block, and the number of blocks.
LLAMA_7B = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)], 32
LLAMA_70B = (
    [(8192, 8192), (1024, 8192), (1024, 8192), (8192, 8192)]
    + [(28672, 8192)] * 2
    + [(8192, 28672)],
    80,
)
RANK = 16
#: Some twenty milliseconds, more than Python takes for the longest of the functions.
BUSY_CYCLES = 40_000_000
NUM_BASIS = 512
LARGE, SMALL = (4096, 4096), (16, 4096)
WEIGHTS = (4096, 4096), (28672, 8192)


def seconds(run: Callable[[], object], rounds: int = 20) -> float:
    """Return the median time of a function on the device, after three calls unmeasured.

    The device is kept busy meanwhile with something else, until everything is in its queue: what is
    measured is its own time, not Python's.
    """
    for _ in range(3):
        run()
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(BUSY_CYCLES)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def host_seconds(run: Callable[[], object], rounds: int = 20) -> float:
    """Return the median time until a function has put everything into the device's queue."""
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def whole(stream: int, shape: tuple[int, int], basis: str = "rademacher") -> operators.Source:
    return 1, stream, basis, shape, (0, shape[0]), (0, shape[1])


def expansions() -> Iterator[Figure]:
    """Yield one large launch of each kind against a rate, and a small one against the torch way."""
    elements = LARGE[0] * LARGE[1] * NUM_BASIS
    c = torch.randn(NUM_BASIS, device=DEVICE)
    out = torch.empty(LARGE, device=DEVICE)
    write = seconds(lambda: out.fill_(1.0))
    torch_way = seconds(
        lambda: torch.einsum("k,krc->rc", c, draw(1, NUM_BASIS, SMALL, DEVICE)), rounds=5
    )
    for basis, rate in (("rademacher", 6e12), ("uniform", 1e12)):
        large, small = whole(7, LARGE, basis), whole(7, SMALL, basis)
        ours = seconds(lambda source=large: cuda.expand(c, *source))
        note = f"{elements / ours / 1e12:.2f} T basis elements/s, "
        note += f"{ours / write:.0f} times the writing of the result"
        name = f"expand {basis}, {described(LARGE)}"
        yield Figure(name, f"{rate:.0e} elements/s", ours, elements / rate, 1, True, note)
        ours = seconds(lambda source=small: cuda.expand(c, *source))
        yield Figure(f"expand {basis}, {described(SMALL)}", "torch way", ours, torch_way, 10, True)


def projections() -> Iterator[Figure]:
    """Yield the same of project."""
    elements = LARGE[0] * LARGE[1] * NUM_BASIS
    grad = torch.randn(LARGE, device=DEVICE)
    part = grad[: SMALL[0]].contiguous()
    read = seconds(grad.sum)
    torch_way = seconds(
        lambda: torch.einsum("rc,krc->k", part, draw(1, NUM_BASIS, SMALL, DEVICE)), rounds=5
    )
    for basis, rate in (("rademacher", 4e12), ("uniform", 1e12)):
        large, small = whole(7, LARGE, basis), whole(7, SMALL, basis)
        ours = seconds(lambda source=large: cuda.project(grad, NUM_BASIS, *source))
        note = f"{elements / ours / 1e12:.2f} T basis elements/s, "
        note += f"{ours / read:.0f} times the reading of the gradient"
        name = f"project {basis}, {described(LARGE)}"
        yield Figure(name, f"{rate:.0e} elements/s", ours, elements / rate, 1, True, note)
        ours = seconds(lambda source=small: cuda.project(part, NUM_BASIS, *source))
        yield Figure(f"project {basis}, {described(SMALL)}", "torch way", ours, torch_way, 10, True)


def described(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}, k = {NUM_BASIS}"


def model_sources(model: tuple[list[tuple[int, int]], int]) -> list[operators.Source]:
    shapes, blocks = model
    factors = [f for out, into in shapes * blocks for f in ((RANK, into), (out, RANK))]
    return [whole(stream, shape) for stream, shape in enumerate(factors)]


def grouped() -> Iterator[Figure]:
    """Yield all factors of a whole model, from its coefficients on the device to A and B there."""
    for name, model, k, limit in (
        ("7B", LLAMA_7B, 128, 2e-3),
        ("7B", LLAMA_7B, 512, 8e-3),
        ("70B", LLAMA_70B, 512, 25e-3),
    ):
        sources = model_sources(model)
        coefficients = [torch.randn(k, device=DEVICE) for _ in sources]
        launch = prepared(coefficients, sources)
        ours = seconds(launch)
        elements = k * sum(shape[0] * shape[1] for _, _, _, shape, _, _ in sources)
        note = f"{1e3 * ours:.2f} ms, {len(sources)} matrices, {elements / ours / 1e12:.2f} T/s"
        title = f"expand {name}, all linears, k = {k}"
        yield Figure(title, f"{1e3 * limit:g} ms", ours, limit, 1, False, note)
        run = partial(cuda.expand_group, coefficients, sources)
        grads = run()
        back = partial(cuda.project_group, grads, [k] * len(sources), sources)
        note = f"project {1e3 * seconds(back, rounds=5):.2f} ms, "
        note += f"which Python starts in {1e3 * host_seconds(back, rounds=5):.2f} ms"
        title = f"expand {name}, all linears, k = {k}, Python's part"
        yield Figure(title, f"{1e3 * limit:g} ms", host_seconds(run), limit, 1, False, note)


def prepared(
    coefficients: Sequence[torch.Tensor], sources: Sequence[operators.Source]
) -> Callable[[], None]:
    """Return the launch alone: its table lies on the device."""
    kernels = cuda._kernels()
    outs = [torch.empty(source[3], device=DEVICE) for source in sources]
    table = kernels.plan_expand(
        "rademacher",
        [
            cuda._task(source, len(c), c.data_ptr(), out.data_ptr())
            for source, c, out in zip(sources, coefficients, outs, strict=True)
        ],
    )
    on_device = cuda._on_device(table, DEVICE)

    def launch(_held: object = outs) -> None:
        place = cuda._place(DEVICE)
        kernels.expand_group("rademacher", 1, "float32", table, on_device.data_ptr(), *place)

    return launch


def merges() -> Iterator[Figure]:
    """Yield merges against a copy from device to device of the same bytes."""
    flag = torch.zeros((), dtype=torch.int32, device=DEVICE)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for m, n in WEIGHTS:
            weight = torch.randn(m, n, device=DEVICE).to(dtype)
            out = torch.empty_like(weight)
            b, a = torch.randn(m, RANK, device=DEVICE), torch.randn(RANK, n, device=DEVICE)
            copy = seconds(lambda w=weight, o=out: o.copy_(w))
            ours = seconds(
                lambda w=weight, o=out, b=b, a=a: cuda.merge_low_rank(w, o, b, a, 1e-3, flag)
            )
            moved = 2 * weight.numel() * weight.element_size()
            name = f"merge {str(dtype).removeprefix('torch.')}, {m} x {n}, r = {RANK}"
            note = f"{moved / ours / 1e12:.2f} TB/s; the copy {moved / copy / 1e12:.2f} TB/s"
            yield Figure(name, "copy on the device", ours, copy, 1 / 0.7, False, note)


def hot_swap() -> Iterator[Figure]:
    """Yield the replacement of one adapter by another on a resident 7B-shaped model, exactly.

    Every weight is written anew from a pristine copy on the device: no drift.
    """
    shapes, blocks = LLAMA_7B
    k = 128
    pristine = [
        torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for shape in shapes * blocks
    ]
    resident = [torch.empty_like(weight) for weight in pristine]
    sources = model_sources(LLAMA_7B)
    adapters = [[torch.randn(k, device=DEVICE) for _ in sources] for _ in range(2)]
    flag = torch.zeros((), dtype=torch.int32, device=DEVICE)
    turn = 0

    def swap() -> None:
        nonlocal turn
        turn += 1
        factors = cuda.expand_group(adapters[turn % 2], sources)
        cuda.merge_group(
            [
                (base, out, factors[2 * i + 1], factors[2 * i], 1e-3)
                for i, (base, out) in enumerate(zip(pristine, resident, strict=True))
            ],
            flag,
        )

    def copy() -> None:
        for base, out in zip(pristine, resident, strict=True):
            out.copy_(base)

    ours, theirs = seconds(swap, rounds=7), seconds(copy, rounds=7)
    swap()
    first = [weight.clone() for weight in resident[:8]]
    swap()
    swap()
    exact = all(torch.equal(one, other) for one, other in zip(first, resident, strict=False))
    note = f"{1e3 * ours:.1f} ms for {len(resident)} weights; " + (
        "bits as before" if exact else "BITS DIFFER"
    )
    yield Figure(
        "hot swap, 7B shapes, bfloat16", "copy on the device", ours, theirs, 2, False, note
    )


def figures() -> Iterator[Figure]:
    for part in (expansions, projections, grouped, merges, hot_swap):
        yield from part()
        torch.cuda.empty_cache()
