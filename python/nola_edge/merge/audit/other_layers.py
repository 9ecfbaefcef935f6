"""Find the layer whose change a weight seems to have got."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.dtypes import numpy_dtype
from nola_edge.merge.audit.faults import change_of
from nola_edge.merge.blocks import read_runs, runs_of
from nola_edge.merge.low_rank import make_update, needs_of
from nola_edge.merge.windows import ANY, Window
from nola_edge.pacing import check_stopped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from nola_edge.files.input_file import InputFile
    from nola_edge.files.tensor_info import TensorInfo
    from nola_edge.merge.low_rank import Term
    from nola_edge.merge.plan import MergePlan

    Found = Mapping[str, tuple[InputFile, TensorInfo]]

#: The corner of a weight that is looked at: 64 kB of float32.
_ROWS, _COLS = 32, 512
#: Weights whose corners are held at a time.
_AT_ONCE = 256


def change_in(terms: Sequence[Term], shape: tuple[int, ...], window: Window) -> NDArray[np.float32]:
    """Return what terms change in a window of a weight of some shape, before it is rounded."""
    update = make_update(terms, shape, window.cols, 1)
    return change_of(update.left(*window.rows), update.right, update.scaling)


def read_window(file: InputFile, info: TensorInfo, window: Window) -> NDArray[Any]:
    """Return a window of a stored weight, in its dtype."""
    runs = runs_of(info, window)
    data = read_runs(file, info, runs, memoryview(bytearray(runs.nbytes)))
    return np.frombuffer(data, numpy_dtype(info.dtype)).reshape(window.shape)


def nearest_layers(plan: MergePlan, found: Found, names: Sequence[str]) -> dict[str, str]:
    """Return for weights the other weight of their shape whose change is most like theirs.

    Parameters
    ----------
    plan : MergePlan
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


def _nearest(plan: MergePlan, found: Found, names: Sequence[str]) -> dict[str, str]:
    corners: dict[tuple[int, ...], dict[str, NDArray[np.float32]]] = {}
    for name in names:
        corners.setdefault(plan.tensor(name)[1].shape, {})[name] = _corner(plan, found, name)
    best: dict[str, tuple[float, str]] = {}
    for other, terms in plan.merges.items():
        shape = plan.tensor(other)[1].shape
        if shape not in corners or needs_of(terms) != ANY:  # a change by DoRA is its base's too
            continue
        check_stopped()
        change = change_in(terms, shape, _window(shape))
        size = float(np.linalg.norm(change))
        for name, corner in corners[shape].items():
            likeness = float(np.vdot(corner, change)) / size if size and name != other else 0.0
            if likeness > best.get(name, (0.0, ""))[0]:
                best[name] = likeness, other
    return {name: other for name, (_, other) in best.items()}


def _window(shape: tuple[int, ...]) -> Window:
    return Window((0, min(shape[0], _ROWS)), (0, min(shape[1], _COLS)))


def _corner(plan: MergePlan, found: Found, name: str) -> NDArray[np.float32]:
    file, info = plan.tensor(name)
    window = _window(info.shape)
    have, base = read_window(*found[name], window), read_window(file, info, window)
    corner: NDArray[np.float32] = have.astype(np.float32) - base.astype(np.float32)
    return corner
