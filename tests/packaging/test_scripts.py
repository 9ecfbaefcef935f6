"""Scripts that only a GPU or a long evening runs still import what is there."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

from tests.packaging.test_cpp_library import ROOT

FOLDERS = (ROOT / "benchmarks", ROOT / "examples" / "training", ROOT / "scripts")
SCRIPTS = sorted(path for folder in FOLDERS for path in folder.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The top-level modules that a script names, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.torch
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_a_script_imports_is_there(script, monkeypatch):
    pytest.importorskip("peft")
    pytest.importorskip("sacrebleu")
    monkeypatch.setattr(sys, "path", [*map(str, FOLDERS), *sys.path])
    missing = {name for name in imported(script) if importlib.util.find_spec(name) is None}
    assert not missing
