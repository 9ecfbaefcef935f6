"""torch's CUDA generator, against published outputs and a thread-by-thread simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nola_edge.adapters.public_nola.cuda_generator import CudaGenerator, drawn_at_once
from nola_edge.adapters.public_nola.devices import GPUS, DrawnOn
from nola_edge.adapters.public_nola.philox import philox_words
from nola_edge.dtypes import numpy_dtype
from tests.reference.philox import philox4x32_10

F = np.float32
#: torch.manual_seed(0), then torch.rand(10, device="cuda") twice, as printed in many places.
FIRST = [0.3990, 0.5167, 0.0249, 0.9401, 0.9459, 0.7967, 0.4150, 0.8203, 0.2290, 0.9096]
SECOND = [0.9722, 0.7910, 0.4690, 0.3300, 0.3345, 0.3783, 0.7640, 0.6405, 0.1103, 0.3594]
#: The corners of torch.rand(10000, 10000, device="cuda:0") after torch.manual_seed(0).
CORNERS = [
    [0.3990, 0.5167, 0.0249, 0.9971, 0.8137, 0.0429],
    [0.1117, 0.5124, 0.6413, 0.2033, 0.4244, 0.7405],
    [0.7685, 0.7422, 0.4577, 0.5380, 0.1010, 0.4636],
    [0.5471, 0.9743, 0.9763, 0.6386, 0.4802, 0.0591],
    [0.4013, 0.6963, 0.8307, 0.6674, 0.3551, 0.0153],
    [0.2846, 0.1924, 0.9891, 0.1611, 0.7280, 0.1510],
]
PRINTED = 5.1e-5  # four decimals


def drawn(generator, size, bound=1.0, dtype="F32"):
    return np.concatenate(list(generator.uniform(size, bound, dtype)))


def unit(values):
    """Undo the mapping from (0, 1] to (-1, 1]."""
    return (values.astype(float) + 1) / 2


@pytest.mark.parametrize("gpu", ["t4", "a100"])
def test_published_first_and_second_draw(gpu):
    generator = DrawnOn.parse(gpu).generator(0)
    for wanted in (FIRST, SECOND):
        assert np.abs(unit(drawn(generator, 10)) - wanted).max() < PRINTED


def test_a_published_large_draw_fits_a_t4_and_nothing_else():
    ends = [0, 1, 2, 9997, 9998, 9999]
    elements = np.array([10000 * row + col for row in ends for col in ends])
    wanted = np.ravel(CORNERS)
    fitting = [
        blocks
        for blocks in range(1, 2501)
        if np.abs(unit(CudaGenerator(0, blocks).at(elements, 10**8, 1.0)) - wanted).max() < PRINTED
    ]
    assert fitting == [160]
    assert GPUS["t4"] == (40, 1024)
    assert "t4" in str(DrawnOn("cuda", 160))


@given(st.tuples(*[st.integers(0, 2**32 - 1)] * 4), st.integers(0, 2**64 - 1))
def test_philox_is_the_reference(counter, key):
    wanted = philox4x32_10(counter, (key & 0xFFFFFFFF, key >> 32))
    assert philox_words(counter, key)[:, 0].tolist() == [int(w) for w in wanted]


def simulated(seed, sizes, blocks, bound):
    """Run every thread of the kernel, as torch's source describes it, one after the other."""
    offset = 0
    for size in sizes:
        grid = min((size + 255) // 256, blocks)
        stride = 256 * grid
        out = np.full(size, np.nan, F)
        turns = (size - 1) // (4 * stride) + 1
        for thread in range(stride):
            for turn in range(turns):
                counter = (offset // 4 + turn, 0, thread, 0)
                words = philox4x32_10(counter, (seed & 0xFFFFFFFF, seed >> 32))
                for word, x in enumerate(words):
                    element = turn * 4 * stride + thread + stride * word
                    if element < size:
                        u = F(F(int(x)) * F(2.0**-32) + F(2.0**-33))
                        high = F(bound)
                        exact = float(u) * float(high + high) - float(high)
                        out[element] = -high if F(exact) == high else F(exact)
        offset += 4 * turns
        yield out


@pytest.mark.parametrize("sizes", [(1, 255), (256, 257), (1024, 511), (2048, 2049, 3)])
@pytest.mark.parametrize(("blocks", "bound"), [(1, 1.0), (2, 0.0123)])
def test_the_layout_thread_by_thread(sizes, blocks, bound):
    generator = CudaGenerator(9_999_999_999, blocks)
    elements = np.arange(sizes[-1])
    for number, wanted in enumerate(simulated(9_999_999_999, sizes, blocks, bound)):
        if number == len(sizes) - 1:
            assert np.array_equal(generator.at(elements, sizes[-1], bound), wanted)
        assert np.array_equal(drawn(generator, wanted.size, bound), wanted)


@given(
    size=st.integers(1, 400_000),
    skipped=st.integers(1, 400_000),
    blocks=st.sampled_from([3, 40, 160, 864]),
    data=st.data(),
)
def test_single_elements_and_skips(size, skipped, blocks, data):
    chosen = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    one, other = CudaGenerator(7, blocks), CudaGenerator(7, blocks)
    one.skip(skipped)
    drawn(other, skipped)
    single = one.at(np.array(chosen), size, 1.0)
    assert np.array_equal(drawn(one, size)[chosen], single)
    assert np.array_equal(drawn(other, size)[chosen], single)


@pytest.mark.parametrize(("dtype", "share"), [("BF16", 2.0**-10), ("F16", 2.0**-13)])
def test_16_bits_and_their_upper_bound(dtype, share):
    size = 2_000_000
    exact = drawn(CudaGenerator(1, 864), size)
    now = drawn(CudaGenerator(1, 864), size, dtype=dtype)
    older = drawn(CudaGenerator(1, 864, older=True), size, dtype=dtype)
    assert np.array_equal(older, exact.astype(numpy_dtype(dtype)).astype(F))
    turned = older == 1
    assert abs(turned.mean() / share - 1) < 0.2
    assert (now[turned] == -1).all()
    assert np.array_equal(now[~turned], older[~turned])


def test_small_draws_do_not_depend_on_the_gpu_and_larger_ones_do():
    small, large = 40_960, 40_961
    values = {
        (gpu, size): drawn(DrawnOn.parse(gpu).generator(5), size)
        for gpu in ("t4", "l4")
        for size in (small, large)
    }
    assert np.array_equal(values["t4", small], values["l4", small])
    assert not np.array_equal(values["t4", large], values["l4", large])


def test_what_torch_draws_in_parts():
    assert drawn_at_once(2**29 - 1, 4)
    assert not drawn_at_once(2**29 + 1, 4)
    assert all(count * (threads // 256) <= 2048 for count, threads in GPUS.values())
