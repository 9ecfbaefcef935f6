"""Find the layer whose change a weight seems to have got."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nola_edge.merge.audit.block import change_in, read_rows
from nola_edge.merge.low_rank import needs_of
from nola_edge.merge.windows import ANY, Window
from nola_edge.pacing import check_stopped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from nola_edge.files.input_file import Source
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.merge.merged import Merged

    Found = Mapping[str, tuple[Source, TensorInfo]]

#: The corner of a weight that is looked at: 64 kB of float32.
_ROWS, _COLS = 32, 512
#: Weights whose corners are held at a time.
_AT_ONCE = 256


def nearest_layers(
    right: Mapping[str, Merged], found: Found, names: Sequence[str]
) -> dict[str, str]:
    """Return for weights the other weight of their shape whose change is most like theirs.

    Parameters
    ----------
    right : mapping
        Name -> what a weight should be, of all that adapters are merged into.
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
        nearest |= _nearest(right, found, names[start : start + _AT_ONCE])
    return nearest


def _nearest(right: Mapping[str, Merged], found: Found, names: Sequence[str]) -> dict[str, str]:
    corners: dict[tuple[int, ...], dict[str, NDArray[np.float32]]] = {}
    for name in names:
        result = right[name]
        corners.setdefault(result.shape, {})[name] = _corner(result, found[name])
    best: dict[str, tuple[float, str]] = {}
    for other, result in right.items():
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


def _corner(result: Merged, found: tuple[Source, TensorInfo]) -> NDArray[np.float32]:
    window = _window(result.shape)
    have = result.numbers.decode(read_rows(*found, window))
    base = result.base_numbers.decode(read_rows(result.file, result.info, window))
    return have - base
