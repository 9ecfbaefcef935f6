"""What starting costs: import and --help beyond importing numpy, and the installed size."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from measure.timing import Figure, alternate
from nola_edge.processes import python, python_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_PACKAGE_BYTES = 3e6
#: Seconds; differences between processes below it are noise.
_RESOLUTION = 1e-3


def _process(command: list[str]) -> Callable[[], object]:
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def startup_figures(rounds: int) -> Iterator[Figure]:
    """Yield the seconds beyond importing numpy, against what is allowed."""
    numpy = _process(python("import numpy"))
    for name, run, allowed in (
        ("import nola_edge, beyond numpy", _process(python("import nola_edge")), 0.1),
        ("nola-edge --help, beyond numpy", _process(python_module("nola_edge", "--help")), 0.3),
    ):
        ours, theirs = alternate(run, numpy, rounds=2 * rounds)
        yield Figure(name, "seconds allowed", max(ours - theirs, _RESOLUTION), allowed, 1, False)
    yield Figure(
        "installed package, without CUDA",
        "bytes allowed",
        _package_bytes(),
        MAX_PACKAGE_BYTES,
        1,
        False,
    )


def _package_bytes() -> int:
    import nola_edge
    from nola_edge import _core

    files = [
        path
        for path in Path(nola_edge.__file__).parent.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    ]
    return sum(path.stat().st_size for path in [*files, Path(_core.__file__)])
