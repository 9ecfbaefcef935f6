"""What the build makes of the processor: by the compiler's word, and refused where bits differ."""

from __future__ import annotations

import platform
import shutil
import subprocess

import pytest

from nola_edge import _core
from tests.packaging.test_cpp_library import ROOT, run

pytestmark = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("c++") is None,
    reason="needs cmake and a compiler",
)


def complaints(*flags: str) -> str:
    """What the compiler says about the core's floating-point environment."""
    done = subprocess.run(
        ["c++", "-std=c++17", "-fsyntax-only", f"-I{ROOT}/cpp/src", *flags, "-x", "c++", "-"],
        input='#include "fp_environment.h"\n',
        capture_output=True,
        text=True,
    )
    return done.stderr if done.returncode else ""


def test_this_processor_is_known():
    assert complaints() == ""


def test_a_processor_that_may_flush_subnormals_unseen_is_refused():
    said = complaints("-U__x86_64__", "-U__aarch64__", "-U__i386__", "-U__arm__")
    assert "fp_environment.h does not know how this processor is told to keep" in said


def test_wider_arithmetic_is_refused_with_the_flags_that_help():
    said = complaints("-U__FLT_EVAL_METHOD__", "-D__FLT_EVAL_METHOD__=2")
    assert "compile with -msse2 -mfpmath=sse (in CXXFLAGS)" in said


def test_kernel_sets_follow_the_compiler_and_not_the_kernel(tmp_path):
    """As a 32-bit system on a 64-bit kernel has it: CMake's processor is not the compiler's."""
    other = "x86_64" if platform.machine() == "aarch64" else "aarch64"
    named = ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={other}"]
    run("cmake", "-S", ROOT, "-B", tmp_path, *named)
    sets = {path.name for path in tmp_path.rglob("nola_kernels_*.dir")}
    assert sets == {f"nola_kernels_{isa}.dir" for isa in _core.compiled_isas()}
