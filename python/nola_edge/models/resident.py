"""Whether what adapters change is in a model's memory, so that it can be written to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_edge.errors import MismatchError
from nola_edge.models.mapped_memory import is_resident
from nola_edge.torch.sharding import is_one_window, local_window

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import torch

    from nola_edge.merge.windows import WholeLines


def check_resident(
    parameters: Mapping[str, torch.Tensor], names: Iterable[str], model: Path
) -> None:
    """Refuse weights whose values are not in the model, where nothing can be written to them.

    Parameters
    ----------
    parameters : mapping from name to Tensor
    names : iterable of str
        Of those that are to be written.
    model : Path
        Named in errors.

    Raises
    ------
    MismatchError
    """
    for name in names:
        weight = parameters[name]
        if weight.is_meta:
            raise MismatchError(
                "is on the meta device: it is offloaded to the CPU or a disk, or was never loaded; "
                "load the model without offloading, or merge into the files (nola-edge merge) and "
                "load these",
                file=model,
                field=name,
            )
        if not is_resident(weight):
            raise MismatchError(
                f"is a {type(weight.data).__name__}, not a plain tensor; merge into the base "
                "before it is quantised",
                file=model,
                field=name,
            )
        if not is_one_window(weight):
            raise MismatchError(
                "is split over processes in pieces that are not one block of it (a packed layer, "
                "or terms of a sum); merge into the base before it is split",
                file=model,
                field=name,
            )


def check_whole_outputs(weight: torch.Tensor, needs: WholeLines, name: str, model: Path) -> None:
    """Refuse DoRA in a weight of whose outputs this process holds only a part.

    Parameters
    ----------
    weight : (m, n) Tensor or DTensor
    needs : WholeLines
        The lines that are scaled as a whole.
    name : str
    model : Path
        Named in errors.

    Raises
    ------
    MismatchError
    """
    for split, whole, length in zip(
        local_window(weight)[::-1], (needs.rows, needs.cols), weight.shape[::-1], strict=True
    ):
        if whole and split != (0, length):
            raise MismatchError(
                "is split over processes along its inputs, and DoRA (use_dora) scales whole "
                "outputs; split it along its outputs, or merge into the files (nola-edge merge) "
                "and load these",
                file=model,
                field=name,
            )
