"""How the build decides about CUDA, and the library that C++ programs get."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.packaging.test_cpp_library import ROOT, configure_and_build, run

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")


def configure(build: Path, *options: str, compiler: Path | None = None):
    environment = {**os.environ, **({"CUDACXX": str(compiler)} if compiler else {})}
    return subprocess.run(
        ["cmake", "-S", ROOT, "-B", build, *options],
        capture_output=True,
        text=True,
        env=environment,
    )


@pytest.fixture
def broken(tmp_path) -> Path:
    """A CUDA compiler that cannot compile."""
    path = tmp_path / "nvcc"
    path.write_text("#!/bin/sh\necho 'nvcc: broken' >&2\nexit 1\n")
    path.chmod(0o755)
    return path


def test_without_a_gpu_a_compiler_is_used_only_if_that_is_asked_for(tmp_path, broken):
    absent = f"-DNOLA_GPU_DEVICES={tmp_path / 'nvidiactl'}"
    done = configure(tmp_path / "build", "-DNOLA_CUDA=AUTO", absent, compiler=broken)
    assert done.returncode == 0, done.stderr
    assert "no NVIDIA GPU is seen, building without CUDA kernels; NOLA_CUDA=ON" in done.stdout
    assert configure(tmp_path / "on", "-DNOLA_CUDA=ON", absent, compiler=broken).returncode != 0


def test_a_broken_compiler_is_passed_over_where_cuda_is_optional(tmp_path, broken):
    present = f"-DNOLA_GPU_DEVICES={tmp_path / 'nvidiactl'};{broken}"
    done = configure(tmp_path / "build", "-DNOLA_CUDA=AUTO", present, compiler=broken)
    assert done.returncode == 0, done.stderr
    assert "no working CUDA compiler, building without CUDA kernels" in done.stdout


def test_a_broken_compiler_is_fatal_where_cuda_is_wanted(tmp_path, broken):
    done = configure(tmp_path / "build", "-DNOLA_CUDA=ON", compiler=broken)
    assert done.returncode != 0
    assert "NOLA_CUDA is ON, and no working CUDA compiler was found" in " ".join(
        done.stderr.split()
    )


def test_a_compiler_is_not_looked_for_where_cuda_is_not_wanted(tmp_path, broken):
    for options in ([], ["-DNOLA_CUDA=OFF"]):
        done = configure(tmp_path / "build", *options, compiler=broken)
        assert done.returncode == 0, done.stderr
        assert "CUDA" not in done.stdout


def test_another_value_is_refused(tmp_path):
    done = configure(tmp_path / "build", "-DNOLA_CUDA=PERHAPS")
    assert done.returncode != 0
    assert "NOLA_CUDA is PERHAPS; use AUTO, ON or OFF" in done.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("value", ["banana", "9.0", "60", "90;all-major"])
def test_an_architecture_that_is_none_is_refused(tmp_path, value):
    done = configure(tmp_path / "build", "-DNOLA_CUDA=ON", f"-DNOLA_CUDA_ARCHITECTURES={value}")
    assert done.returncode != 0
    assert f"NOLA_CUDA_ARCHITECTURES: {value.split(';')[-1]} is not an architecture" in done.stderr


PROGRAM = ROOT / "examples" / "cpp" / "expand_cuda.cpp"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_a_program_that_uses_the_cuda_library(tmp_path):
    """It links; without a GPU the launch says so."""
    built, prefix = tmp_path / "library", tmp_path / "prefix"
    options = ["-DNOLA_CUDA=ON", "-DNOLA_CUDA_ARCHITECTURES=90-real", "-DNOLA_PROGRAM=OFF"]
    configure_and_build(ROOT, built, *options)
    run("cmake", "--install", built, "--prefix", prefix)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(consumer CXX)\n"
        f'find_package(nola_edge REQUIRED)\nadd_executable(consumer "{PROGRAM}")\n'
        "target_link_libraries(consumer PRIVATE nola_edge::nola_cuda)\n"
    )
    configure_and_build(tmp_path, tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    done = subprocess.run([tmp_path / "build" / "consumer"], capture_output=True, text=True)
    if done.returncode == 0:
        assert len(done.stdout.split()) == 3
    else:
        assert "CUDA" in done.stderr
