"""Methods that other packages bring: found by entry points, in processes where they are installed.

Each test installs a real distribution into a folder, which the process finds as any other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX, WEIGHTS_NAME
from nola_edge.errors import AdapterError
from tests.conftest import load_all, snapshot, write_safetensors
from tests.lora_folders import write_lora
from tests.plugin.installed import install, install_rank_one

F = np.float32
COLUMN, ROW = np.arange(24, dtype=F), np.linspace(-1, 1, 40, dtype=F)


def rank_one_folder(folder, method="RANK_ONE"):
    """Write an adapter for one of the modules of `tiny`."""
    folder.mkdir()
    stem = PREFIX + "layers.0.q"
    write_safetensors(folder / WEIGHTS_NAME, {stem + ".column": COLUMN, stem + ".row": ROW})
    (folder / CONFIG_NAME).write_text(json.dumps({"peft_type": method, "strength": 0.5}))
    return folder


def run(*arguments, site):
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def refusal(site, folder):
    """Return the line with which the command line refuses, having written nothing."""
    before = snapshot(folder.parent)
    done = run("-m", "nola_edge", "inspect", folder, site=site)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.strip().isprintable()
    assert f"{folder / CONFIG_NAME}: peft_type: is " in done.stderr
    assert snapshot(folder.parent) == before
    return done.stderr


def test_the_command_line_merges_what_a_package_reads(tiny, tmp_path):
    site = install_rank_one(tmp_path / "site")
    folder = rank_one_folder(tmp_path / "a")
    nola_edge = ("-m", "nola_edge")
    done = run(*nola_edge, "merge", tiny[0], folder, "-o", tmp_path / "out", site=site)
    assert done.returncode == 0, done.stderr
    done = run(*nola_edge, "verify", tmp_path / "out", tiny[0], folder, site=site)
    assert done.stdout.startswith("identical: 8 tensors (1 merged)")
    before, after = load_all(tiny[0]), load_all(tmp_path / "out")
    name = "layers.0.q.weight"
    wanted = before[name].astype(F) + F(0.5) * np.outer(COLUMN, ROW)
    np.testing.assert_allclose(after[name].astype(F), wanted, rtol=2**-8)
    assert all(after[n].tobytes() == before[n].tobytes() for n in before if n != name)


def test_without_the_package_the_method_is_refused(tmp_path):
    line = refusal(tmp_path, rank_one_folder(tmp_path / "a"))
    assert (
        "is 'RANK_ONE', but only adapters of NOLA, LORA, TINYLORA and VERA are merged here" in line
    )


def test_other_methods_are_listed_with_those_of_packages(tmp_path):
    site = install_rank_one(tmp_path / "site")
    line = refusal(site, rank_one_folder(tmp_path / "a", "LOHA"))
    assert (
        "is 'LOHA', but only adapters of NOLA, LORA, TINYLORA, VERA and RANK_ONE are merged here"
        in line
    )


BROKEN = {
    "cannot be imported": ("import missing_library\n", "ModuleNotFoundError: No module named"),
    "is no Python": ("def read(folder, config:\n", "broken:read failed: SyntaxError"),
    "has no such function": ("", "broken:read failed: AttributeError"),
    "fails at import": ("open('/nowhere')\n", "broken:read failed: FileNotFoundError"),
    "fails": ("def read(folder, config):\n    return config['x\\n']\n", "failed: KeyError"),
    "wants something else": ("def read(folder):\n    pass\n", "broken:read failed: TypeError"),
    "returns nothing": ("def read(*_):\n    pass\n", "returned NoneType, not a LowRankAdapter"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_package_is_named_in_one_line(tmp_path, case, monkeypatch):
    source, message = BROKEN[case]
    site = install(tmp_path / "site", "broken-methods", "TOY", "broken:read", source)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    folder = rank_one_folder(tmp_path / "a", "TOY")
    before = snapshot(folder)
    with pytest.raises(AdapterError) as caught:
        ne.load_adapter(folder)
    line = str(caught.value)
    assert line.isprintable()
    assert message in line
    assert "is 'TOY', which is read by the package broken-methods 1.2, whose broken:read" in line
    assert "update broken-methods 1.2, or tell its authors" in line
    assert snapshot(folder) == before


def test_what_a_package_refuses_is_said_as_it_says_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install_rank_one(tmp_path / "site"))
    folder = rank_one_folder(tmp_path / "a")
    (folder / CONFIG_NAME).write_text(json.dumps({"peft_type": "RANK_ONE"}))
    with pytest.raises(AdapterError, match="strength: is missing, and nothing else implies it"):
        ne.load_adapter(folder)


def test_two_packages_for_one_method_are_both_named(tmp_path):
    for package in ("one", "two"):
        install(tmp_path / "site", package, "TOY", "module:read", "")
    line = refusal(tmp_path / "site", rank_one_folder(tmp_path / "a", "TOY"))
    assert "is read by more than one package, one 1.2 and two 1.2; remove one" in line


ASKED = """
import importlib.metadata, sys
import nola_edge as ne
asked = []
importlib.metadata.entry_points = lambda **_: asked.append(1) or []
adapter = ne.load_adapter(sys.argv[1])
print(type(adapter).__name__, len(asked), "broken" in sys.modules)
"""


def test_no_package_is_asked_for_our_own_methods(tmp_path):
    """So none can take the place of one."""
    site = install(tmp_path / "site", "broken-methods", "LORA", "broken:read", "1 / 0")
    folder = write_lora(tmp_path / "l")
    assert run("-c", ASKED, folder, site=site).stdout == "LoraAdapter 0 False\n"
