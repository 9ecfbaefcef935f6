"""Which of many outputs one of several processes writes.

The processes need not know of each other: each takes every n-th output of the same list.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from nola_edge.errors import ArgumentError, printable
from nola_edge.threads import default_threads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_T = TypeVar("_T")
_TEXT = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
#: Who starts processes, and the variables that tell them their number and how many they are.
_LAUNCHERS = (
    ("torchrun", "RANK", "WORLD_SIZE"),
    ("Slurm's srun", "SLURM_PROCID", "SLURM_NTASKS"),
    ("Open MPI's mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)
#: Number of the job step; in the batch script itself it is missing, or one of the highest.
_SLURM_STEP, _SLURM_STEPS = "SLURM_STEP_ID", 4_000_000_000
_HOW = "must be i/n, process i of n counted from 0, or 'auto'"


@dataclass(frozen=True)
class Share:
    """The share of process `index` of `count`.

    Attributes
    ----------
    index, count : int
    neighbours : int
        Processes that share the processors which this one sees, itself included.
    """

    index: int = 0
    count: int = 1
    neighbours: int = 1

    @classmethod
    def of(cls, shard: Any, environment: Mapping[str, str] = os.environ) -> Share:
        """Read what a caller may give.

        Parameters
        ----------
        shard : None, pair (index, count), "i/n" or "auto"
            ``"auto"`` asks the environment: torchrun's variables, then Slurm's, then Open MPI's.
        environment : mapping

        Raises
        ------
        ArgumentError
            If it is not one of these, or the environment says nothing.
        """
        if shard is None:
            return cls()
        if shard == "auto":
            return _from_environment(environment)
        if isinstance(shard, str) and (found := _TEXT.fullmatch(shard)):
            return _checked(int(found[1]), int(found[2]), shard)
        if isinstance(shard, tuple | list) and len(shard) == 2:
            index, count = shard
            return _checked(index, count, shard)
        raise ArgumentError(f"is {printable(repr(shard))}, {_HOW}", field="shard", value=shard)

    def take(self, items: Sequence[_T]) -> list[_T]:
        """Return this process's share: number `index`, `index + count`, …."""
        return list(items[self.index :: self.count])

    def threads(self, wanted: int | None) -> int | None:
        """Return how many threads to use where nobody says it.

        torchrun starts several processes on a machine and binds none of them to processors, so
        they divide these. Its OMP_NUM_THREADS=1, which it sets whatever the machine, would leave
        most of them idle; Slurm and Open MPI bind, and what a process may use is then its own.
        """
        if wanted is not None or self.neighbours == 1:
            return wanted
        return max(1, default_threads() // self.neighbours)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def _checked(index: Any, count: Any, shard: object, neighbours: int = 1) -> Share:
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (index, count))
    if not (whole and 0 <= index < count):
        raise ArgumentError(
            f"is {printable(repr(shard))}, {_HOW}, with 0 <= i < n", field="shard", value=shard
        )
    return Share(index, count, max(1, neighbours))


def _from_environment(environment: Mapping[str, str]) -> Share:
    for launcher, *names in _LAUNCHERS:
        if not all(name in environment for name in names):
            continue
        index, count = (_number(environment, name) for name in names)
        shard = f"{index}/{count} in the variables of {launcher}"
        if launcher.startswith("Slurm") and count > 1 and not _is_slurm_step(environment):
            raise ArgumentError(
                f"is 'auto' in a Slurm script for {count} tasks, which runs once: start the "
                "command with srun",
                field="shard",
            )
        # Absent where a script sets the two variables itself.
        local = "LOCAL_WORLD_SIZE" if launcher == "torchrun" else ""
        neighbours = _number(environment, local) if local in environment else 1
        return _checked(index, count, shard, neighbours)
    known = "; ".join(f"{launcher}: {', '.join(names)}" for launcher, *names in _LAUNCHERS)
    raise ArgumentError(
        f"is 'auto', but the environment does not say which process this is ({known}); start it "
        "with one of these, or give i/n",
        field="shard",
    )


def _is_slurm_step(environment: Mapping[str, str]) -> bool:
    step = environment.get(_SLURM_STEP, "")
    return step.isdecimal() and int(step) < _SLURM_STEPS


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ArgumentError(
            f"is {printable(repr(text))}, not a count; --shard auto reads it", field=name
        )
    return int(text)
