"""Check the architectures of transformers, each in a process of its own, and keep the results.

    python -m tests.sweep.run RESULTS.jsonl [ARCHITECTURE ...]

What is in the file is not checked again, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from tests.sweep.check import check
from tests.sweep.tiny_models import architectures

_SECONDS = 240


def run(results: Path, wanted: list[str], processes: int) -> None:
    """Append the result of each architecture that is not there yet."""
    done = {json.loads(line)["architecture"] for line in _lines(results)}
    queue = [kind for kind in wanted if kind not in done]
    running: dict[int, tuple[str, float]] = {}
    while queue or running:
        while queue and len(running) < processes:
            kind = queue.pop(0)
            running[_start(kind, results)] = (kind, time.monotonic())
        time.sleep(0.1)
        for pid, (kind, begin) in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del running[pid]
                if status:
                    _append(results, _failed(kind, f"the process ended with status {status}"))
            elif time.monotonic() - begin > _SECONDS:
                os.kill(pid, signal.SIGKILL)


def _failed(kind: str, reason: str) -> dict[str, Any]:
    return {"architecture": kind, "result": "not made", "reason": reason}


def _start(kind: str, results: Path) -> int:
    """Fork: torch and transformers are imported once for all."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with tempfile.TemporaryDirectory() as folder:
            _append(results, check(kind, Path(folder)))
        status = 0
    finally:
        os._exit(status)


def _append(results: Path, found: dict[str, Any]) -> None:
    with results.open("a") as file:
        file.write(json.dumps(found) + "\n")


def _lines(results: Path) -> list[str]:
    return results.read_text().splitlines() if results.exists() else []


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("architectures", nargs="*")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    run(given.results, given.architectures or architectures(), given.processes)


if __name__ == "__main__":
    main()
