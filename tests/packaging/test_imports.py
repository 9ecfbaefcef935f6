"""What is imported when: a short run is mostly imports, and pays for each that it does not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORTED = """
import sys
import numpy
before = {*sys.modules}
import nola_edge
nola_edge.%s
print(*sys.modules.keys() - before)
"""
#: Beginnings of the names of what reads other methods than NOLA.
OTHER_METHODS = [
    f"nola_edge.adapters.{name}"
    for name in ("expert", "factor_file", "lora", "matrix_parts", "methods", "tinylora", "vera")
] + ["nola_edge.adapters.public_nola"]


def imported_by(call, folder):
    command = [sys.executable, "-c", IMPORTED % call]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return ran.stdout.split()


def those_of(modules, parts):
    return [module for module in modules if module.startswith(tuple(parts))]


@pytest.mark.parametrize("call", ["load_adapter('adapter')", "Adapter.load('adapter')"])
def test_an_adapter_of_nola_is_read_by_what_reads_nola(tiny, tmp_path, call):
    modules = imported_by(call, tmp_path)
    assert "nola_edge.adapters.nola_files" in modules
    assert those_of(modules, OTHER_METHODS) == []
    assert those_of(modules, ["nola_edge.merge", "nola_edge.gguf", "nola_edge.files.atomic"]) == []
    assert {"concurrent.futures", "hashlib", "logging", "shutil"}.isdisjoint(modules)


def test_a_merge_imports_what_merges_nola_into_a_checkpoint(tiny, tmp_path):
    modules = imported_by("merge_checkpoint('base', 'adapter', 'out')", tmp_path)
    assert "nola_edge.merge.write" in modules
    assert those_of(modules, OTHER_METHODS) == []
    elsewhere = ["gguf", "export", "merge.audit", "merge.many", "merge.switch", "merge.verify"]
    assert those_of(modules, [f"nola_edge.{part}" for part in elsewhere]) == []
    # What refuses names that do not match.
    assert those_of(modules, ["nola_edge.adapters.suggested", "nola_edge.adapters.unmatched"]) == []
