"""Which part of the package may import which: what CONTRIBUTING's table says, and no circles."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import nola_edge

PACKAGE = Path(nola_edge.__file__).parent
#: From below: a part may import those of the lines above it that it names, and the tools.
TOOLS = {"_core", "_cuda", "arguments", "dtypes", "errors", "extras", "ops", "pacing", "processes",
         "threads", "type_names", "workers"}  # fmt: skip
MAY_IMPORT = {
    "files": set(),
    "adapters": {"files"},
    "merge": {"files", "adapters"},
    "gguf": {"files", "adapters", "merge"},
    "export": {"files", "adapters", "merge", "gguf"},
    "torch": {"adapters"},
    "models": {"files", "adapters", "merge", "torch"},
    "transformers": {"adapters", "merge", "torch", "models"},
    "peft": {"files", "adapters", "torch"},
    "vllm": {"files", "adapters", "merge", "export"},
    "demo": {"files", "adapters", "merge", "gguf"},
    "convert": {"files", "adapters", "export"},
    "testing": {"files", "adapters"},
    "cli": {"files", "adapters", "merge", "gguf", "export", "demo", "convert"},
}
#: Names of before the parts had their names, which programs may still import.
ALIASES = {
    ("nola_edge.adapter", "nola_edge.adapters"),
    ("nola_edge.torch", "nola_edge.models"),
    ("nola_edge.torch", "nola_edge.transformers"),
}


def modules():
    """Return module name -> file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def is_module(name):
    return name in MODULES or name in ("nola_edge._core", "nola_edge._cuda")


def imported(module, *, typing):
    """Return what a module imports of the package, inside functions too.

    Parameters
    ----------
    module : str
    typing : bool
        What only type checkers import counts as well.
    """
    tree = ast.parse(MODULES[module].read_text())
    checked = [
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    ]
    names = set()
    for node in ast.walk(tree):
        if node in checked and not typing:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports from '.'; write the whole name"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {
                n if n in MODULES or n.endswith(("_core", "_cuda")) else node.module for n in whole
            }
    return {name for name in names if name.split(".")[0] == "nola_edge"} - {module}


def part(module):
    """Return the part of the package that a module belongs to."""
    return module.split(".")[1] if "." in module else module


def upward(module):
    """Return what a module imports that it may not know."""
    allowed = TOOLS | MAY_IMPORT.get(part(module), set()) | {part(module), "nola_edge"}
    return {
        name
        for name in imported(module, typing=True)
        if part(name) not in allowed
        and not any(module == old and name.startswith(new) for old, new in ALIASES)
    }


def test_nothing_imports_upwards():
    begin = {"nola_edge", "nola_edge.__main__"}  # what users begin with knows everything
    found = {module: upward(module) for module in sorted(MODULES.keys() - begin)}
    assert not {module: names for module, names in found.items() if names}


def test_there_are_no_circles():
    """In what is imported when a program runs, at the top of a module or later."""
    graph = {module: imported(module, typing=False) for module in MODULES}
    graph["nola_edge"] = set()  # it imports nothing before it is asked for something
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_parts_make_no_circles():
    list(TopologicalSorter(MAY_IMPORT).static_order())


def test_every_part_has_its_layer():
    assert {part(m) for m in MODULES} - TOOLS - {"nola_edge", "__main__", "adapter"} == set(
        MAY_IMPORT
    )
