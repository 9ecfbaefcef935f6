"""Processes of our own search no module in the current folder, which may be anybody's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nola_edge.demo.child import result_of
from nola_edge.processes import python, python_module

HOSTILE = "open('executed', 'w')\nraise SystemExit('the module in the current folder')\n"
PROGRAM = Path(sys.executable).with_name("nola-edge")


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """Be in a folder whose modules take the place of Python's where it is searched."""
    for name in ("random", "json", "runpy", "numpy", "nola_edge"):
        (tmp_path / f"{name}.py").write_text(HOSTILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_part_of_the_demonstration_runs_no_module_of_the_folder(hostile):
    assert result_of("nola_edge.demo.scoring", "read", OPENBLAS_NUM_THREADS="1")["task"] == "read"
    assert not (hostile / "executed").exists()


def test_the_program_runs_no_module_of_the_folder(hostile):
    command = [PROGRAM, "info", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (hostile / "executed").exists()


@pytest.mark.parametrize("safe", ["", "1"])
def test_only_the_current_folder_is_left_out(tmp_path, safe):
    (tmp_path / "given.py").write_text("import sys; print(sys.argv)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": safe}
    command = python_module("given", "-m", "a b")
    said = subprocess.check_output(command, env=environment, text=True)
    assert said == f"{[str(tmp_path / 'given.py'), '-m', 'a b']}\n"
    said = subprocess.check_output(
        python("import json; print(json.dumps(sys.path))"), env=environment, text=True
    )
    assert "" not in json.loads(said)
    assert str(tmp_path) in json.loads(said)
