"""Where the tests of the CUDA side run: on a GPU, or with its kernels emulated on the host.

The emulation is the compiled module ``_cuda`` itself with other launches: they run the kernels'
bodies thread by thread on the memory of CPU tensors (cpp/tests/cuda). So planning, bindings and
``nola_edge.torch.backends.cuda`` are tested without a GPU, and the same tests run on one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from nola_edge.torch import operators
from nola_edge.torch.backends import cuda

REPOSITORY = Path(__file__).parents[2]

needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and cuda.is_built()),
    reason="needs a GPU and a build with CUDA",
)


def build_emulation(folder: Path):
    """Compile the emulated module and import it; skip where that is not possible."""
    if shutil.which("cmake") is None or find_spec("pybind11") is None:
        pytest.skip("needs: pip install cmake pybind11")
    import pybind11

    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "NOLA_PYTHON": "ON",
        "NOLA_CUDA": "OFF",
        "NOLA_CUDA_EMULATED": "ON",
        "NOLA_OPENMP": "OFF",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    for command in (
        ["cmake", "-S", REPOSITORY, "-B", folder, *(f"-D{k}={v}" for k, v in options.items())],
        ["cmake", "--build", folder, "--target", "_cuda_emulated", "--parallel", "2"],
    ):
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (path,) = (folder / "cpp" / "bindings").glob("_cuda*")
    # Not by the name of the real one, which may have been imported already.
    spec = importlib.util.spec_from_file_location("emulated._cuda", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Emulated:
    """CPU tensors, served by the emulated kernels; `calls` are the module's functions called."""

    device = torch.device("cpu")
    number = 0

    def __init__(self, module):
        self.module = module
        self.calls: list[str] = []

    def __getattr__(self, name):
        self.calls.append(name)
        return getattr(self.module, name)

    def launches(self, *names):
        return sum(call in names for call in self.calls)


@contextlib.contextmanager
def emulation(module):
    """Have ``nola_edge.torch`` take CPU tensors for CUDA ones."""
    emulated = Emulated(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "_kernels", lambda: emulated)
        patch.setattr(cuda, "_place", lambda device: (emulated.number, 0))
        patch.setattr(cuda, "_TABLES", cuda._Tables())
        patch.setattr(cuda, "_on_device", lambda table, device: _copied(table))
        patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setitem(operators._KERNELS, "cpu", (cuda.expand, cuda.project))
        patch.setitem(operators._GROUP_KERNELS, "cpu", (cuda.expand_group, cuda.project_group))
        yield emulated


def _copied(table: bytes) -> torch.Tensor:
    # Aligned as device memory is, which the bytes of an object need not be.
    aligned = torch.empty((len(table) + 7) // 8, dtype=torch.int64).view(torch.uint8)
    aligned[: len(table)] = torch.frombuffer(bytearray(table), dtype=torch.uint8)
    return aligned


class Real:
    """A GPU."""

    device = torch.device("cuda", 0)
