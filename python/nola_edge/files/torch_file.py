"""Files of ``torch.save``, which are told apart and never read.

Such a file is a program for pickle's machine, and so is what ``weights_only=True`` makes of it: a
restricted one, that can still ask for any time and memory. Where the training ran there is torch
to turn it into safetensors, and trust in it; whoever converts needs neither.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from nola_edge.errors import FormatError, printable

if TYPE_CHECKING:
    from pathlib import Path

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
#: Of a path in a command; longer ones would not fit into an error's one line.
_LONGEST = 140
#: Copies each tensor, since safetensors refuses tied and strided ones; never overwrites.
_SCRIPT = (
    "import sys, torch; from pathlib import Path; from safetensors.torch import save; "
    "p = Path(sys.argv[1]); "
    'd = torch.load(p, map_location="cpu", weights_only=True); '
    'd = d.get("model_state_dict", d.get("state_dict", d)); '
    "d = save({n: t.clone().contiguous() for n, t in d.items() if torch.is_tensor(t)}); "
    'p.with_suffix(".safetensors").open("xb").write(d)'
)


def begins_as_torch(begin: bytes) -> bool:
    """Tell whether the first nine bytes are those of a torch file."""
    # A safetensors file may begin with any length, but then its header begins.
    return begin.startswith((_ZIP, _PICKLE)) and begin[8:9] != b"{"


def torch_file_refused(path: Path, folder: Path | None = None) -> FormatError:
    """Return the refusal of a torch file, with the command that converts it nevertheless.

    Parameters
    ----------
    path : Path
        The file.
    folder : Path, optional
        The folder that it was found in, which is given once it holds a safetensors file.
    """
    begin = "is a file written by torch.save, which can run code and is never read; "
    target = path.with_suffix(".safetensors")
    if os.path.lexists(target):
        return FormatError(
            f"{begin}if {printable(target.name)} beside it was made from it, give that", file=path
        )
    names = [shlex.quote(str(name)) for name in (path, folder or target)]
    if not all(name.isprintable() and len(name) <= _LONGEST for name in names):
        names = ["FILE", "FILE.safetensors" if folder is None else "FOLDER"]
    return FormatError(
        f"{begin}where you have torch and trust the file, run: python -c {shlex.quote(_SCRIPT)} "
        f"{names[0]}; then: give {names[1]}",
        file=path,
    )
