"""What a plan for a model that is being loaded must not do, seen before and while it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nola_edge.adapters.belongs import check_fingerprint
from nola_edge.adapters.fingerprints import checkpoint_fingerprint
from nola_edge.errors import MismatchError, NolaEdgeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nola_edge.adapters.base import LowRankAdapter
    from nola_edge.models.plan import ModelPlan

_UNCHECKED = "NolaMergeConfig(…, check_base=False)"


def check_tied(plan: ModelPlan, tied: Mapping[str, str], model: Path) -> None:
    """Refuse to change what transformers will make the same tensor as another.

    Parameters
    ----------
    plan : ModelPlan
    tied : mapping
        Name -> name of the same tensor.
    model : Path
        Named in errors.

    Raises
    ------
    MismatchError
    """
    for one, other in [*tied.items(), *((b, a) for a, b in tied.items())]:
        if one not in plan:
            continue
        advice = (
            f"save the base with tie_word_embeddings=False and {one} as a tensor of its own, "
            "and load that"
        )
        if {one, other} <= plan.replaced.keys():
            advice = "it brings both, so load with tie_word_embeddings=False"
        raise MismatchError(
            f"is the same tensor as {other}, which the adapter was not trained for; {advice}",
            file=model,
            field=one,
        )


def check_places(plan: ModelPlan, places: Mapping[str, object], adapter: Path | None) -> None:
    """Refuse adapted weights on disk: they would be read from the base's files, unmerged.

    Parameters
    ----------
    plan : ModelPlan
    places : mapping
        Module name -> where accelerate puts it.
    adapter : Path or None
        Named in errors.

    Raises
    ------
    MismatchError
    """
    for name in plan.names:
        parts = name.split(".")
        for count in range(len(parts), -1, -1):
            place = places.get(".".join(parts[:count]))
            if place is not None:
                break
        if place == "disk":
            raise MismatchError(
                "is adapted and would be offloaded to disk, where transformers keeps the "
                "base's own files; write a merged checkpoint first: nola-edge merge",
                file=adapter,
                field=name,
            )


def check_base(adapters: Sequence[tuple[LowRankAdapter, float]], files: Sequence[str]) -> None:
    """Refuse a base in safetensors files that is not the one an adapter recorded.

    Raises
    ------
    MismatchError
    """
    if not files or not all(str(file).endswith(".safetensors") for file in files):
        return
    path = Path(files[0])
    base = path if len(files) == 1 else path.parent
    for adapter, _ in adapters:
        if adapter.base_fingerprint is not None:
            try:
                found = checkpoint_fingerprint(base, adapter.modules, adapter.tensors)
            except NolaEdgeError as error:
                raise MismatchError(
                    f"cannot be compared with the base that the adapter recorded: {error}; to "
                    f"merge anyway, {_UNCHECKED}",
                    file=base,
                ) from None
            check_fingerprint(adapter, found, base, _UNCHECKED)
