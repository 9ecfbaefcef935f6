"""What a C program gets: a library that exports nola.h alone, found in every usual way."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

import nola_edge as ne
from tests.c_interface.conftest import ROOT, run
from tests.c_interface.library import INVALID_ARGUMENT, SIGNATURES
from tests.conftest import MODULES, tiny_adapter

HEADER = (ROOT / "cpp" / "include" / "nola.h").read_text()
EXAMPLE = ROOT / "examples" / "c" / "merge_array.c"
C99 = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror")


def declared() -> set[str]:
    """Return the functions of the header."""
    return set(
        re.findall(r"^(?:nola_status|uint32_t|const char\*|void) (nola_\w+)\(", HEADER, re.M)
    )


def test_nothing_else_is_exported(prefix):
    lines = run("nm", "-D", "--defined-only", prefix / "lib" / "libnola.so").splitlines()
    assert {line.split()[-1] for line in lines} == declared() == set(SIGNATURES)


def test_versions(library, prefix):
    assert library.nola_version().decode() == ne.__version__
    assert f'#define NOLA_VERSION "{ne.__version__}"' in HEADER
    numbers = re.findall(r"#define NOLA_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", HEADER)
    assert ".".join(numbers) == ne.__version__
    soname = (prefix / "lib" / "libnola.so").resolve().name
    abi = library.nola_abi_version()
    assert f"#define NOLA_ABI_VERSION {abi}\n" in HEADER
    assert (prefix / "lib" / f"libnola.so.{abi}").resolve().name == soname


def test_a_message_is_of_its_thread(library):
    assert library.nola_force_isa(b"sse") == INVALID_ARGUMENT
    seen = []
    thread = threading.Thread(target=lambda: seen.append(library.nola_last_error()))
    thread.start()
    thread.join()
    assert seen == [b""]
    assert b"sse" in library.nola_last_error()


def flags(prefix: Path, *options: str) -> list[str]:
    environment = os.environ | {"PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}
    return run("pkg-config", *options, "nola", env=environment).split()


def output_of(program: Path, prefix: Path) -> list[str]:
    """Return what the example prints, on the best instruction set and on the portable one."""
    found = []
    for isa in ("", "portable"):
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(prefix / "lib"), "NOLA_EDGE_ISA": isa
        }  # fmt: skip
        found.append(run(program, env=environment))
    return found


@pytest.fixture(scope="session")
def wanted(tmp_path_factory, prefix) -> list[str]:
    """What the C++ example prints."""
    folder = tmp_path_factory.mktemp("cpp")
    run("cmake", "-S", ROOT / "examples" / "cpp", "-B", folder, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", folder)
    return output_of(folder / "merge_array", prefix)


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="needs pkg-config")
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_a_c_program_with_pkg_config(compiler, prefix, tmp_path, wanted):
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    program = tmp_path / "program"
    run(compiler, *C99, EXAMPLE, *flags(prefix, "--cflags", "--libs"), "-o", program)
    assert output_of(program, prefix) == wanted
    libraries = [flag for flag in flags(prefix, "--static", "--libs") if flag != "-lnola"]
    archive = prefix / "lib" / "libnola.a"
    run(compiler, *C99, EXAMPLE, *flags(prefix, "--cflags"), archive, *libraries, "-o", program)
    assert output_of(program, tmp_path) == wanted


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="needs pkg-config")
def test_the_example_with_a_packed_adapter(prefix, tmp_path):
    program, source = tmp_path / "program", EXAMPLE.with_name("merge_packed.c")
    run("gcc", *C99, source, *flags(prefix, "--cflags", "--libs"), "-o", program)
    adapter = tiny_adapter().quantize(4)
    adapter.pack(tmp_path / "a.nola")
    environment = os.environ | {"LD_LIBRARY_PATH": str(prefix / "lib")}
    name, shape = next(iter(MODULES.items()))
    text = run(program, tmp_path / "a.nola", "0", *map(str, shape), env=environment)
    a, b = adapter.factors(name, *shape)
    merged = ne.ops.merged(np.ones(shape, np.float32), b, a, adapter.scaling)
    first, second, last = (f"{value:.9g}" for value in merged.flat[[0, 1, -1]])
    about = f"rank 4, scaling {adapter.scaling:g}, {len(MODULES)} modules"
    assert text.splitlines() == [about, f"{name}: {first} {second} ... {last}"]
    done = subprocess.run([program, "none", "0", "1", "1"], env=environment, capture_output=True)
    assert done.returncode == 1
    assert done.stderr == b"merge_packed: none: cannot be opened: No such file or directory\n"


@pytest.mark.parametrize("target", ["c", "c_static"])
def test_a_c_program_with_cmake(target, prefix, tmp_path, wanted):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(consumer C)\n"
        "find_package(nola_edge REQUIRED)\n"
        f'add_executable(consumer "{EXAMPLE}")\n'
        f"target_link_libraries(consumer PRIVATE nola_edge::{target})\n"
    )
    build = tmp_path / "build"
    run("cmake", "-S", tmp_path, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", build)
    assert output_of(build / "consumer", prefix) == wanted


@pytest.mark.skipif(shutil.which("rustc") is None, reason="needs rustc")
def test_a_rust_program(prefix, tmp_path, wanted):
    program = tmp_path / "program"
    source = ROOT / "examples" / "rust" / "merge_array.rs"
    run("rustc", "-O", source, "-L", prefix / "lib", "-l", "nola", "-o", program)
    assert output_of(program, prefix) == wanted


@pytest.mark.parametrize("language", [("c", "c11"), ("c++", "c++17")])
def test_the_header_alone(language, prefix, tmp_path):
    """It needs nothing before it, and goes into C++ that knows no exceptions."""
    kind, standard = language
    source = tmp_path / "source"
    source.write_text("#include <nola.h>\nint main(void) { return nola_version() == 0; }\n")
    compiler = "gcc" if kind == "c" else "g++"
    options = [] if kind == "c" else ["-fno-exceptions", "-fno-rtti"]
    strict = ["-Wall", "-Wextra", "-pedantic", "-Werror", f"-std={standard}", *options]
    run(compiler, *strict, "-x", kind, source, f"-I{prefix / 'include'}",
        f"-L{prefix / 'lib'}", "-lnola", "-o", tmp_path / "program")  # fmt: skip
