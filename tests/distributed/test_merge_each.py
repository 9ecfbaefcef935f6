"""torchrun starts the command line itself; its processes divide the outputs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

import nola_edge as ne
from tests.conftest import snapshot, tiny_adapter

COMMAND = shutil.which("nola-edge", path=f"{sys.exec_prefix}/bin")


@pytest.mark.skipif(COMMAND is None, reason="nola-edge is not installed as a command")
def test_torchrun_without_python(tiny, tmp_path):
    adapters = [tmp_path / f"a{i}" for i in range(3)]
    for seed, path in enumerate(adapters):
        tiny_adapter(seed=seed).save(path)
    ne.merge_each(tiny[0], adapters, tmp_path / "alone")
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node", "2",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
            "--redirects", "1", "--log-dir", tmp_path / "logs",
            COMMAND, "merge", tiny[0], *adapters, "--each", "--shard", "auto", "--json",
            "-o", tmp_path / "out",
        ],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "alone")
    written = [
        [report["output"] for report in json.loads(log.read_text())]
        for log in sorted((tmp_path / "logs").rglob("stdout.log"))
    ]
    assert written == [
        [str(tmp_path / "out" / "a0"), str(tmp_path / "out" / "a2")],
        [str(tmp_path / "out" / "a1")],
    ]
