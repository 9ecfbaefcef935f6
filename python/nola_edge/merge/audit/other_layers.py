"""Find the layer whose change a weight seems to have got."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nola_edge.merge.audit.block import change_in, read_rows
from nola_edge.merge.audit.compare import merged
from nola_edge.merge.low_rank import needs_of
from nola_edge.merge.windows import ANY, Window
from nola_edge.pacing import check_stopped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from nola_edge.files.input_file import InputFile
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.merge.audit.compare import Expected
    from nola_edge.merge.merged import Merged

    Found = Mapping[str, tuple[InputFile, TensorInfo]]

#: The corner of a weight that is looked at: 64 kB of float32.
_ROWS, _COLS = 32, 512
#: Weights whose corners are held at a time.
_AT_ONCE = 256


def nearest_layers(plan: Expected, found: Found, names: Sequence[str]) -> dict[str, str]:
    """Return for weights the other weight of their shape whose change is most like theirs.

    Parameters
    ----------
    plan : Expected
    found : mapping
        Name -> file and entry of what there is.
    names : sequence of str
        Of merged weights.

    Returns
    -------
    dict
        Without those whose shape no other has. The nearest may be far: whoever gets it compares.
    """
    nearest: dict[str, str] = {}
    for start in range(0, len(names), _AT_ONCE):
        nearest |= _nearest(plan, found, names[start : start + _AT_ONCE])
    return nearest


def _nearest(plan: Expected, found: Found, names: Sequence[str]) -> dict[str, str]:
    corners: dict[tuple[int, ...], dict[str, NDArray[np.float32]]] = {}
    for name in names:
        result = merged(plan, name)
        corners.setdefault(result.shape, {})[name] = _corner(result, found[name])
    best: dict[str, tuple[float, str]] = {}
    for other in plan.merges:
        result = merged(plan, other)
        shape = result.shape
        if shape not in corners or needs_of(result.terms) != ANY:  # DoRA's is its base's too
            continue
        check_stopped()
        change = change_in(result, _window(shape))
        size = float(np.linalg.norm(change))
        for name, corner in corners[shape].items():
            likeness = float(np.vdot(corner, change)) / size if size and name != other else 0.0
            if likeness > best.get(name, (0.0, ""))[0]:
                best[name] = likeness, other
    return {name: other for name, (_, other) in best.items()}


def _window(shape: tuple[int, ...]) -> Window:
    return Window((0, min(shape[0], _ROWS)), (0, min(shape[1], _COLS)))


def _corner(result: Merged, found: tuple[InputFile, TensorInfo]) -> NDArray[np.float32]:
    window = _window(result.shape)
    have = result.numbers.decode(read_rows(*found, window))
    base = result.base_numbers.decode(read_rows(result.file, result.info, window))
    return have - base
