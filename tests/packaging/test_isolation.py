"""What an installed module gives to, and takes from, the process that loads it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig

import pytest

import nola_edge as ne
from nola_edge import _core
from tests.packaging.test_cpp_library import ROOT, configure_and_build, run

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("c++") is None, reason="needs Linux and a compiler"
)


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_a_module_exports_its_entry_alone():
    listed = run("nm", "-D", "--defined-only", _core.__file__).split()
    assert listed[2::3] == ["PyInit__core"]


INTERPOSER = """
#include "nola/basis.h"
#include "nola/expand.h"
#include "nola/merge.h"
#define FOREIGN __attribute__((visibility("default")))
namespace nola {
FOREIGN bool merge(const Weight& weight, const LowRank&, int) {
    *static_cast<float*>(weight.out) = 42;
    return true;
}
FOREIGN void scale(float* values, std::size_t, double) { *values = 42; }
FOREIGN float gain(Basis, std::size_t) { return 42; }
FOREIGN std::uint64_t stream_id(std::string_view, Factor) { return 42; }
FOREIGN void expand(const Matrix&, const float*, float* out, int) { *out = 42; }
}  // namespace nola
"""
WORK = """
import sys
import numpy as np, nola_edge as ne
from nola_edge import ops
w = np.zeros((2, 2), np.float32)
ne.merge_(w, np.ones((2, 1), np.float32), np.ones((1, 2), np.float32))
e = ne.expand([1.0], seed=1, stream=2, shape=(1, 1))
print(w[0, 0], abs(e[0, 0]), ops.gain("rademacher", 1), ops.scaled(w, 2.0)[0, 0])
print(ne.stream_id("m", "A"))
"""


def test_no_other_library_can_put_its_functions_in_place_of_the_cores(tmp_path):
    (tmp_path / "other.cpp").write_text(INTERPOSER)
    other = tmp_path / "other.so"
    include = f"-I{ROOT}/cpp/include"
    run("c++", "-std=c++17", "-shared", "-fPIC", include, "-o", other, tmp_path / "other.cpp")
    said = run("env", f"LD_PRELOAD={other}", sys.executable, "-c", WORK)
    assert said.split() == ["1.0", "1.0", "1.0", "2.0", str(ne.stream_id("m", "A"))]


IN_BUILD = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import _core
tiny = np.array([1e-40], np.float32)
assert (tiny * np.float32(0.5) > 0).all(), "the process flushes subnormal numbers"
for isa in _core.supported_isas():
    _core.force_isa(isa)
    for basis in ("rademacher", "uniform"):
        values = np.linspace(-1, 1, 37, dtype=np.float32)
        matrix = (basis, 7, 3, 37, (4, 300), (0, 4), (0, 300))
        a = _core.expand(matrix, values, 1)
        w = np.full((9, 300), 1e-39, np.float32)
        assert _core.merge(w, w, a[:, :9].T.copy(), a, 1e-38, 1)
        w[0, 0] = np.nan
        assert not _core.merge(w, w, a[:, :9].T.copy(), a, 1e-38, 1)
        w[0, 0] = 0
        p = _core.project(matrix, a, 1)
        print((a.tobytes() + w.tobytes() + p.tobytes()).hex())
"""


@pytest.mark.slow
def test_a_packagers_flags_change_no_bit_and_no_process(tmp_path):
    """Some link code into the module that makes the whole process flush subnormal numbers."""
    pybind11 = pytest.importorskip("pybind11")
    flags = (
        "-Ofast -ffast-math -funsafe-math-optimizations -fassociative-math -freciprocal-math "
        "-fno-signed-zeros -ffinite-math-only"
    )
    configure_and_build(
        ROOT,
        tmp_path,
        "-DNOLA_PYTHON=ON",
        "-DNOLA_CUDA=OFF",
        f"-DCMAKE_PREFIX_PATH={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DCMAKE_CXX_FLAGS={flags}",
        f"-DCMAKE_MODULE_LINKER_FLAGS={flags}",
    )
    built = run(sys.executable, "-c", IN_BUILD, tmp_path / "cpp" / "bindings")
    shutil.copy(_core.__file__, tmp_path)
    assert built == run(sys.executable, "-c", IN_BUILD, tmp_path)


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="needs a Python without the GIL"
)
def test_threads_run_without_the_gil():
    environment = {k: v for k, v in os.environ.items() if k != "PYTHON_GIL"}
    check = "import sys, nola_edge._core; sys.exit(sys._is_gil_enabled())"
    assert subprocess.run([sys.executable, "-c", check], env=environment).returncode == 0
