"""The C library, built and installed as a user would."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.c_interface.library import load

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def prefix(library_build, tmp_path_factory) -> Path:
    prefix = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", library_build, "--prefix", prefix)
    return prefix


@pytest.fixture(scope="session")
def library(prefix):
    return load(prefix / "lib" / "libnola.so")
