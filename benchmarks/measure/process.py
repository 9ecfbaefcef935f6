"""Processes of their own: how long they run, and what they hold at most."""

from __future__ import annotations

import json
import subprocess
import sys

#: A small process of its own starts the other: a child begins with its parent's peak.
MEASURED = """
import json, os, subprocess, sys, time
begin = time.perf_counter()
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
_, status, usage = os.wait4(subprocess.Popen(sys.argv[1:], **quiet).pid, 0)
print(json.dumps([status, time.perf_counter() - begin, usage.ru_maxrss * 1024]))
"""


def run(command: list[str]) -> tuple[float, int]:
    """Return seconds and peak bytes of a process."""
    said = subprocess.check_output([sys.executable, "-c", MEASURED, *command])
    status, seconds, peak = json.loads(said)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return seconds, peak
