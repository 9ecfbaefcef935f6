"""The machine code of the CUDA kernels, for every architecture in the installed module.

Needs cuobjdump and nvdisasm, from the CUDA toolkit or from PyPI
(``pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm``), and no GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from nola_edge import build_info

RADEMACHER, UNIFORM = "BasisE0", "BasisE1"  # as enumerators are mangled
HOT = ("expand_kernel", "project_kernel", "merge_kernel")


@pytest.fixture(scope="session")
def module() -> Path:
    spec = find_spec("nola_edge._cuda")
    if spec is None:
        pytest.skip("this installation was built without CUDA (no GPU, no nvcc, or NOLA_CUDA=OFF)")
    return Path(spec.origin)


@pytest.fixture(scope="session")
def tools() -> dict[str, str]:
    """An environment whose PATH has the disassemblers."""
    nvidia = find_spec("nvidia")
    folders = [Path(p) for p in nvidia.submodule_search_locations] if nvidia else []
    packaged = [str(bin) for folder in folders for bin in folder.glob("*/bin")]
    path = os.pathsep.join([os.environ.get("PATH", ""), *packaged, "/usr/local/cuda/bin"])
    for tool in ("cuobjdump", "nvdisasm"):
        if shutil.which(tool, path=path) is None:
            pytest.skip(f"needs {tool}: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return {**os.environ, "PATH": path}


def dump(tools: dict[str, str], *arguments: object) -> str:
    # Not found by subprocess itself, which looks along this process's PATH.
    program = shutil.which("cuobjdump", path=tools["PATH"])
    command = [program, *map(str, arguments)]
    return subprocess.run(command, env=tools, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="session")
def code(module, tools) -> dict[tuple[str, str], list[tuple[int, str]]]:
    """(architecture, function) -> instructions as (address, text), without predicates."""
    functions: dict[tuple[str, str], list[tuple[int, str]]] = {}
    architecture = ""
    body: list[tuple[int, str]] = []
    for line in dump(tools, "-sass", module).splitlines():
        if found := re.search(r"arch = (sm_\d+)", line):
            architecture = found[1]
        elif found := re.search(r"Function : (\S+)", line):
            body = functions.setdefault((architecture, found[1]), [])
        elif found := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?(.*?);", line):
            body.append((int(found[1], 16), found[2]))
    return functions


def opcodes(body) -> Counter[str]:
    return Counter(text.split()[0].split(".")[0] for _, text in body)


def kernels(code, *parts):
    found = [(key, body) for key, body in code.items() if all(part in key[1] for part in parts)]
    assert found, parts
    return found


def test_there_is_code_for_every_architecture(code):
    numbers = build_info()["cuda_architectures"]
    for name in (*HOT, "finish_kernel"):
        built = {architecture for (architecture, function) in code if name in function}
        assert built == {f"sm_{number}" for number in numbers}


def test_nothing_is_spilled_and_nothing_lies_in_local_memory(module, tools, code):
    resources = re.findall(r"REG:\d+ STACK:(\d+) .*?LOCAL:(\d+)", dump(tools, "-res-usage", module))
    assert len(resources) >= len(kernels(code, "_kernel"))
    assert set(resources) == {("0", "0")}
    for (architecture, function), body in kernels(code, "_kernel"):
        assert not {"LDL", "STL"} & set(opcodes(body)), (architecture, function)


def test_only_named_multiply_adds_are_fused(code):
    """Rademacher sums have none; the uniform basis and merge have those of the specification."""
    fused = ("FFMA", "FFMA2", "DFMA")
    for name in ("expand_kernel", "project_kernel"):
        for key, body in kernels(code, name, RADEMACHER):
            assert not [op for op in fused if opcodes(body)[op]], key
        for key, body in kernels(code, name, UNIFORM):
            assert opcodes(body)["FFMA"] + opcodes(body)["FFMA2"] > 0, key
    for key, body in kernels(code, "finish_kernel"):
        assert not [op for op in fused if opcodes(body)[op]], key
    for key, body in kernels(code, "merge_kernel"):
        assert opcodes(body)["FFMA"] + opcodes(body)["FFMA2"] >= 64, key


def test_a_merge_moves_four_elements_at_a_time(code):
    """Of the eight fours that a thread has; the compiler is inclined to take them apart."""
    for key, body in kernels(code, "merge_kernel"):
        width = ".128" if "merge_kernelIf" in key[1] else ".64"
        for opcode in ("LDG", "STG"):
            wide = [text for _, text in body if text.startswith(opcode) and width in text]
            assert len(wide) >= 8, (key, opcode, len(wide))


def test_the_rademacher_loop_is_as_short_as_it_should_be(code):
    """Of four words and eight groups: 128 basis elements, at 1.3 to 1.65 instructions each."""
    for key, body in kernels(code, "expand_kernel", RADEMACHER):
        addresses = [address for address, _ in body]
        lengths = []
        for i, (address, text) in enumerate(body):
            jump = re.match(r"BRA.*\b0x([0-9a-f]+)", text)
            if jump and int(jump[1], 16) < address:
                loop = body[addresses.index(int(jump[1], 16)) : i + 1]
                if opcodes(loop)["LDS"] >= 32 and opcodes(loop)["FADD"] >= 32:
                    lengths.append(len(loop))
        assert lengths, key
        assert min(lengths) <= 1.65 * 128, (key, min(lengths))
