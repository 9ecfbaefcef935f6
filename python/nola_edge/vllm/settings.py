"""The environment variables that configure the plug-in."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nola_edge.dtypes import MERGEABLE
from nola_edge.errors import ArgumentError, printable
from nola_edge.type_names import check_type

if TYPE_CHECKING:
    from collections.abc import Mapping

_PREFIX = "NOLA_EDGE_VLLM_"
#: Folder of the adapters; without it the plug-in does nothing.
ADAPTERS = _PREFIX + "ADAPTERS"
#: The base's checkpoint, if the model that vLLM serves is not a local folder.
BASE = _PREFIX + "BASE"
#: Folder for the expanded adapters.
CACHE = _PREFIX + "CACHE"
#: How much that folder may hold: ``2GB``, ``500 MiB``, ``1000000``.
CACHE_BYTES = _PREFIX + "CACHE_BYTES"
#: Dtype of the expanded factors.
DTYPE = _PREFIX + "DTYPE"

_KNOWN = (ADAPTERS, BASE, CACHE, CACHE_BYTES, DTYPE)
_DEFAULT_BYTES = "10GB"
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?(?:([kKMGT])(i?))?B?", re.ASCII)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class Settings:
    """What the environment says.

    Attributes
    ----------
    adapters : Path
        Folder whose entries are adapters: folders, or packed files.
    base : Path or None
        The base's checkpoint; None: the model that vLLM serves.
    cache : Path
        Folder for expanded adapters; made if it is not there.
    max_bytes : int
        Most bytes that `cache` may hold.
    dtype : {"F32", "F16", "BF16"}
        Of expanded factors. vLLM casts factors to the dtype it serves in. F32 leaves that to be the
        one rounding, whatever the dtype; the served dtype itself gives vLLM the same numbers from
        half the bytes; the third would round twice.
    """

    adapters: Path
    base: Path | None
    cache: Path
    max_bytes: int
    dtype: str

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> Settings | None:
        """Read and check the variables; an empty one counts as not set.

        Returns
        -------
        Settings or None
            None where no variable is set.

        Raises
        ------
        ArgumentError
            Naming the variable and its value.
        """
        values = {k: v for k, v in environment.items() if k.startswith(_PREFIX) and v}
        unknown = sorted(values.keys() - set(_KNOWN))
        if unknown:
            raise ArgumentError(
                f"is not a variable of nola-edge; there are {', '.join(_KNOWN)}", field=unknown[0]
            )
        if not values:
            return None
        if ADAPTERS not in values:
            raise ArgumentError(f"is not set, but {min(values)} is; set both", field=ADAPTERS)
        adapters = _path(values[ADAPTERS])
        if not adapters.is_dir():
            raise ArgumentError(f"{_shown(adapters)} is not a folder", field=ADAPTERS)
        base = _path(values[BASE]) if BASE in values else None
        if base is not None and not base.exists():
            raise ArgumentError(f"{_shown(base)} does not exist", field=BASE)
        cache = _path(values[CACHE]) if CACHE in values else _default_cache(environment)
        for name, place in ((ADAPTERS, adapters), (BASE, base)):
            if place is not None and cache.resolve().is_relative_to(place.resolve()):
                raise ArgumentError(
                    f"{_shown(cache)} lies in {name}, which is never written to; "
                    "choose a folder elsewhere",
                    field=CACHE,
                )
        dtype = check_type(values.get(DTYPE, "F32"), MERGEABLE, DTYPE)
        max_bytes = _bytes(values.get(CACHE_BYTES, _DEFAULT_BYTES))
        return Settings(adapters, base, cache, max_bytes, dtype)


def _path(text: str) -> Path:
    """Return an absolute path: vLLM's other processes may run elsewhere."""
    return Path(os.path.abspath(Path(text).expanduser()))


def _shown(path: Path) -> str:
    return printable(path, 240)


def _default_cache(environment: Mapping[str, str]) -> Path:
    caches = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return _path(caches) / "nola-edge" / "vllm"


def _bytes(text: str) -> int:
    """Read a size: a number, then perhaps k, M, G or T (decimal; Ki, Mi, … binary), then B."""
    match = _SIZE.fullmatch(text.strip())
    count = 0
    if match is not None:
        number, unit, binary = match.groups()
        count = int(float(number) * (1024 if binary else 1000) ** _POWERS[(unit or "").upper()])
    if count < 1:
        raise ArgumentError(
            f"is {printable(text)!r}, not a size such as 2GB, 500MB or 1000000", field=CACHE_BYTES
        )
    return count
