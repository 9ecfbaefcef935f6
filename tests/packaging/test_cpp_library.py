"""The C++ library from outside: its symbols, find_package and add_subdirectory."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from nola_edge import _core

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "cpp" / "merge_array.cpp"

pytestmark = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("nm") is None, reason="needs cmake and nm"
)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def configure_and_build(source: Path, build: Path, *options: str) -> None:
    run("cmake", "-S", source, "-B", build, *options)
    run("cmake", "--build", build, "-j", str(os.cpu_count()))


def symbols(path: Path) -> list[tuple[str, str]]:
    """(type letter, name) of every symbol that `nm` lists."""
    lines = [line.split(maxsplit=2) for line in run("nm", "-C", path).splitlines()]
    return [(line[-2], line[-1]) if len(line) == 3 else (line[0], line[1]) for line in lines]


def test_kernel_objects_share_nothing(library_build):
    """An inline function compiled with AVX-512 flags must never be linked into portable code.

    No weak (W, V) or unique (u) symbol, and nothing defined outside the set's own namespace.
    """
    objects = sorted(library_build.rglob("kernels/*.o"))
    assert len(objects) >= 1
    for path in objects:
        isa = path.name.split(".")[0]
        listed = symbols(path)
        assert any(f"{isa}::kKernels" in name for _, name in listed), "dispatch would not find it"
        for kind, name in listed:
            assert kind not in "WVu", f"{path.name}: {kind} {name}"
            if kind in "TDRB":
                assert name.startswith(f"nola::kernels::{isa}::"), f"{path.name}: {name}"


def test_symbol_check_can_fail(tmp_path):
    """The same check on an object that has a weak symbol."""
    source = tmp_path / "weak.cpp"
    source.write_text("inline int f(int x) { return x + 1; }\nint (*g)(int) = f;\n")
    run("c++", "-c", source, "-o", tmp_path / "weak.o")
    assert any(kind in "WVu" for kind, _ in symbols(tmp_path / "weak.o"))


@pytest.mark.parametrize("way", ["find_package", "add_subdirectory"])
def test_a_program_that_uses_the_library(library_build, tmp_path, way):
    lines = ["cmake_minimum_required(VERSION 3.22)", "project(consumer CXX)"]
    options = []
    if way == "find_package":
        prefix = tmp_path / "prefix"
        run("cmake", "--install", library_build, "--prefix", prefix)
        lines.append("find_package(nola_edge REQUIRED)")
        options.append(f"-DCMAKE_PREFIX_PATH={prefix}")
    else:
        lines.append(f'add_subdirectory("{ROOT}" nola_edge)')
    lines += [
        f'add_executable(consumer "{EXAMPLE}")',
        "target_link_libraries(consumer PRIVATE nola_edge::nola_edge)",
    ]
    (tmp_path / "CMakeLists.txt").write_text("\n".join(lines) + "\n")
    configure_and_build(tmp_path, tmp_path / "build", *options)
    consumer = tmp_path / "build" / "consumer"
    isa, weights = run(consumer).split(":", 1)
    portable, same_weights = run("env", "NOLA_EDGE_ISA=portable", consumer).split(":", 1)
    assert portable == "portable"
    assert isa == _core.active_isa()
    assert weights == same_weights
