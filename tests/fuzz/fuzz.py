"""Fuzz a reader for five minutes: ``python -m tests.fuzz.fuzz READER FOLDER [OPTION...]``.

FOLDER is what ``seeds.py`` wrote; the corpus there grows. What breaks a promise is left in it as
``READER-crash-…``, ``-timeout-…`` or ``-oom-…``. Options are libFuzzer's, and override those here;
such a file in their place is checked alone, to see what it does.
"""

from __future__ import annotations

import gc
import random
import resource
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FunctionType

import atheris

from tests.fuzz.mutate import mutate
from tests.fuzz.readers import READERS, check

_SECONDS = 300
_SECONDS_PER_INPUT = 10
_LONGEST_INPUT = 4096
#: More than what any input may take; Python raises MemoryError beyond, which is found as such.
_SPARE_BYTES = 100_000_000


def _instrument() -> None:
    """Have all of nola-edge's functions say where they go.

    As they are: atheris' own hook on imports cannot see through an editable installation.
    """
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and "nola_edge." in str(function.__module__):
            atheris.instrument_func(function)


def _limit_memory() -> None:
    """Leave this process so much more address space than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def main() -> None:
    """Do what the command line says; atheris ends the process."""
    reader, folder, *options = sys.argv[1:]
    if reader not in READERS:
        raise SystemExit(f"READER must be one of {', '.join(READERS)}")
    defaults = [
        f"-max_total_time={_SECONDS}",
        f"-timeout={_SECONDS_PER_INPUT}",
        f"-max_len={_LONGEST_INPUT}",
        f"-dict={folder}/{reader}.dict",
        f"-artifact_prefix={folder}/{reader}-",
    ]
    scratch = TemporaryDirectory()

    def one(data: bytes) -> None:
        check(reader, data, Path(scratch.name))

    if options and not options[0].startswith("-"):
        for name in options:
            one(Path(name).read_bytes())
        return

    def changed(data: bytes, most: int, seed: int) -> bytes:
        found = mutate(reader, data, random.Random(seed))
        return atheris.Mutate(data, most) if found is None else found[:most]

    _instrument()
    arguments = [sys.argv[0], *defaults, *options, f"{folder}/{reader}"]
    atheris.Setup(arguments, one, custom_mutator=changed)
    _limit_memory()
    atheris.Fuzz()


if __name__ == "__main__":
    main()
