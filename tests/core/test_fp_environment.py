"""What the caller did to the floating-point environment changes no bit, and is there afterwards."""

import ctypes
import platform
import subprocess
import threading

import ml_dtypes
import numpy as np
import pytest

import nola_edge as ne
from nola_edge import Adapter
from nola_edge.adapters.quantize import dequantize, quantize
from tests.conftest import tiny_adapter
from tests.reference import basis as reference
from tests.reference import merge as reference_merge

FLUSH, ROUND_UP = 0x8040, 0x4000
NORMAL = 0x1F80
#: Lies above its nearest fp32 number, so that rounding up would show.
SCALING = 0.7


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """The x86 control register of this thread, to get and to set."""
    if platform.machine() != "x86_64":
        pytest.skip("sets the x86 control register")
    folder = tmp_path_factory.mktemp("mxcsr")
    (folder / "mxcsr.c").write_text(
        "#include <xmmintrin.h>\n"
        "unsigned get(void) { return _mm_getcsr(); }\n"
        "void set(unsigned v) { _mm_setcsr(v); }\n"
    )
    library = folder / "mxcsr.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, folder / "mxcsr.c"], check=True)
    return ctypes.CDLL(library)


@pytest.fixture(params=[FLUSH, ROUND_UP], ids=["flush to zero", "round up"])
def under(request, control):
    """Run a function on a thread whose environment the caller has changed."""

    def run(work):
        results = []

        def in_thread():
            control.set(NORMAL | request.param)
            try:
                results.append(work())
            finally:
                after = control.get()
                control.set(NORMAL)
            results.append(after & 0xFFC0)

        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        assert results[1] == (NORMAL | request.param) & 0xFFC0
        return results[0]

    return run


@pytest.mark.parametrize("kind", ["rademacher", "uniform"])
def test_expand(isa, kind, under):
    coefficients = np.float32([1.1e-44, 3e-45, 1e-40, 1e-44])
    options = {"seed": 9, "stream": 4, "shape": (40, 64), "basis": kind}
    expected = reference.expand(coefficients, **options)
    assert (np.abs(expected[expected != 0]) < 1e-38).any()
    got = under(
        lambda: [
            ne.expand(coefficients, num_threads=count, **options).tobytes() for count in (1, 2, 7)
        ]
    )
    assert got == [expected.tobytes()] * 3


@pytest.mark.parametrize("kind", ["rademacher", "uniform"])
def test_project(isa, kind, under):
    grad = (np.random.default_rng(0).standard_normal((40, 64)) * 1e-39).astype(np.float32)
    options = {"seed": 9, "stream": 4, "num_basis": 40, "basis": kind}
    expected = ne.project(grad, **options)
    assert (expected != 0).all()
    got = under(lambda: [ne.project(grad, num_threads=n, **options).tobytes() for n in (1, 2, 7)])
    assert got == [expected.tobytes()] * 3


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_merge(isa, dtype, under):
    rng = np.random.default_rng(1)
    tiny = 1e-6 if dtype is np.float16 else 1e-39
    weight = (rng.standard_normal((30, 50)) * tiny).astype(dtype)
    b = rng.standard_normal((30, 4)).astype(np.float32)
    a = (rng.standard_normal((4, 50)) * tiny).astype(np.float32)
    expected = reference_merge.merge(weight, b, a, SCALING)

    def work():
        found = []
        for count in (1, 2, 7):
            merged = weight.copy()
            ne.merge_(merged, b, a, SCALING, num_threads=count)
            found.append(merged.tobytes())
        return found

    assert under(work) == [expected.tobytes()] * 3


def test_several_adapters(tiny, under):
    """Their scalings are multiplied in beforehand, in the core."""
    base, adapter = tiny
    terms = [(adapter, 1e-38), (tiny_adapter(seed=5), SCALING)]

    def work():
        with ne.open_merged(base, terms, num_threads=2) as tensors:
            return {name: tensors[name].tobytes() for name in tensors}

    assert under(work) == work()


def test_quantised_coefficients(tmp_path, under):
    values = np.float32([1e-35, -3e-35, 2e-36])
    quantized = quantize(values, 8)
    expected = dequantize(quantized, 3, 8)
    assert (expected != 0).all()
    assert under(lambda: dequantize(quantized, 3, 8).tobytes()) == expected.tobytes()
    subnormal = quantize(np.float32([1e-40, -3e-39]), 8)
    assert subnormal.scale == 0
    assert (dequantize(subnormal, 2, 8) == 0).all()
    tiny_adapter().quantize(4).save(tmp_path / "a")

    def work():
        modules = Adapter.load(tmp_path / "a").modules
        return {name: (c.alpha.tobytes(), c.beta.tobytes()) for name, c in modules.items()}

    assert under(work) == work()


def test_merging_into_quantised_rows(under, tmp_path):
    pytest.importorskip("gguf")
    from nola_edge.gguf import merge_gguf
    from tests.gguf.test_merge import adapter_of, arrays_of, write

    arrays = {
        name: values * np.float32(1e-38) if name.endswith("weight") else values
        for name, values in arrays_of("F32").items()
    }
    base = write(tmp_path / "base.gguf", arrays)
    adapter = adapter_of()
    adapter = adapter.replace(
        {m: (c.alpha * np.float32(1e-20), c.beta * np.float32(1e-18))
         for m, c in adapter.modules.items()}
    )  # fmt: skip

    def merged(kind, name):
        merge_gguf(base, adapter, tmp_path / name, outtype=kind, num_threads=1)
        return (tmp_path / name).read_bytes()

    for kind in ("F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        assert under(lambda kind=kind: merged(kind, f"{kind}-under")) == merged(kind, kind)


def test_converting_the_public_codes_checkpoints(under, tmp_path):
    from nola_edge.convert import convert_checkpoint
    from tests.adapters.public_nola.checkpoints import peft_tensors, write_folder

    tensors = {
        name: values * np.float32(1e-38) if values.dtype == np.float32 else values
        for name, values in peft_tensors().items()
    }
    source = write_folder(tmp_path / "source", tensors)

    def converted(name):
        convert_checkpoint(source, tmp_path / name, drawn_on="cpu", num_threads=1)
        return (tmp_path / name / "adapter_model.safetensors").read_bytes()

    assert under(lambda: converted("under")) == converted("normal")
