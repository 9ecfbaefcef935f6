"""Checkpoints of the vision transformer code (``--train_type nola_mlp``).

``vit/nola_mlp.py``, ``save_nola_parameters``: a safetensors file with, for each block i,
``fc1_alpha_<i>``, ``fc1_beta_<i>``, ``fc2_alpha_<i>``, ``fc2_beta_<i>`` (k and l coefficients),
``fc1_A_<i>``, the first ten values ``A[0, :10, 0]`` of fc1's basis, and the head's weight as
``fc_<in>in_<classes>out``. The head's bias is trained and not saved, so that PEFT could not load
the head as a module saved whole; it goes into a file of its own. ``vit/NOLA.py``, ``NOLA2``:

    torch.manual_seed(0)                   # the same basis for all layers of one shape
    A (k, in, r)  = kaiming_uniform_(a = sqrt 5), so uniform within 1 / sqrt(in * r)
    B (l, r, out) = the same, within 1 / sqrt(r * out), drawn right after A
    the layer adds 1 / r * (x @ sum_i alpha_i A_i) @ sum_j beta_j B_j

in float32, and on the CPU, because the layer is made there and moved later; there is no frozen
weight. The rank is not saved, but the ten values tell it; the width of the MLP is not either, and
nothing tells it: it is 4 times the embedding but for two of the models that the script names
(``vit/train_timm.py``, by timm's definitions).
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from nola_edge.adapters.public_nola.contents import Factor, Layer, Part, Plan
from nola_edge.adapters.public_nola.devices import DrawnOn
from nola_edge.adapters.public_nola.records import elements_of
from nola_edge.errors import AdapterError, ArgumentError, MismatchError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from nola_edge.adapters.public_nola.checkpoint_file import Source

_SEED = 0
_NAME = re.compile(r"(?P<kind>fc1_A|fc[12]_alpha|fc[12]_beta)_(?P<block>\d{3}|[1-9]\d{3,5})")
_HEAD = re.compile(r"fc_(?P<inputs>\d+)in_(?P<outputs>\d+)out")
_KINDS = ("fc1_A", "fc1_alpha", "fc1_beta", "fc2_alpha", "fc2_beta")
_RECORDED = 10
_MAX_RANK = 1024
_MAX_HIDDEN = 1 << 20
#: Embedding -> width of the MLP where it is not four times as large: giant and gigantic.
_HIDDEN = {1408: 6144, 1664: 8192}
_ANY_GPU = DrawnOn("cuda", 1 << 20)  # ten values do not tell GPUs apart


def plan_vit(
    source: Source, drawn_on: DrawnOn | None, rank: int | None, hidden: int | None
) -> Plan:
    """Plan the conversion of a checkpoint of the vision transformer code.

    Parameters
    ----------
    source : Source
    drawn_on : DrawnOn, optional
        Default: a CPU.
    rank : int, optional
        Default: the one that the recorded values fit.
    hidden : int, optional
        Width of the MLP.

    Raises
    ------
    MismatchError
        If no basis begins with the recorded values.
    NolaEdgeError
    """
    blocks, head = _sort_names(source)
    width = source.tensors[head].shape[1]
    wide = _hidden(width, hidden)
    counts = [_count(source, blocks, kinds) for kinds in (("fc1_alpha", "fc2_alpha"),
                                                          ("fc1_beta", "fc2_beta"))]  # fmt: skip
    record = _record(source, blocks, width)
    drawn, r = _fitting(source, record, (counts[0], width), drawn_on or DrawnOn("cpu"), rank)
    layers = []
    for number, names in blocks.items():
        for name, inputs, outputs in (("fc1", width, wide), ("fc2", wide, width)):
            a = _factor(source, names[f"{name}_alpha"], (inputs, r))
            b = _factor(source, names[f"{name}_beta"], (r, outputs), after=a)
            part = Part(a, b, transposed=True)
            layers.append(Layer(f"blocks.{number}.mlp.{name}", outputs, (part,), 1.0))
    return Plan(
        "vision transformer",
        tuple(layers),
        drawn_on=drawn,
        head=source.floats(head),
        checked=len(blocks),
    )


def kaiming_bound(fan_in: int) -> float:
    """Return the bound of ``torch.nn.init.kaiming_uniform_(a=sqrt(5))``, to its last bit."""
    gain = math.sqrt(2.0 / (1 + math.sqrt(5) ** 2))
    return math.sqrt(3.0) * (gain / math.sqrt(fan_in))


def _sort_names(source: Source) -> tuple[dict[int, dict[str, str]], str]:
    blocks: dict[int, dict[str, str]] = {}
    heads = []
    for name in source.tensors:
        match, head = _NAME.fullmatch(name), _HEAD.fullmatch(name)
        if match is not None:
            blocks.setdefault(int(match["block"]), {})[match["kind"]] = name
        elif head is not None:
            heads.append(name)
            named = [int(head["outputs"]), int(head["inputs"])]
            if list(source.tensors[name].shape) != named or 0 in named:
                raise _wrong(source, name, f"has shape {list(source.tensors[name].shape)}")
        else:
            raise _wrong(source, name, "is nothing that the public code saves")
    if len(heads) != 1:
        raise AdapterError(
            f"has {len(heads)} heads (fc_<in>in_<classes>out), the public code saves one",
            file=source.path,
        )
    for number, names in blocks.items():
        for kind in _KINDS:
            if kind not in names:
                raise AdapterError(
                    "is missing beside the others of its block",
                    file=source.path,
                    field=f"{kind}_{number:03d}",
                )
    return dict(sorted(blocks.items())), heads[0]


def _count(source: Source, blocks: dict[int, dict[str, str]], kinds: Iterable[str]) -> int:
    names = [names[kind] for names in blocks.values() for kind in kinds]
    first = source.tensors[names[0]].shape
    for name in names:
        shape = source.tensors[name].shape
        if len(shape) != 1 or shape[0] < 1 or shape != first:
            raise _wrong(
                source,
                name,
                f"has shape {list(shape)}, {names[0]} has {list(first)}; the public code has as "
                "many coefficients in every layer",
            )
    return first[0]


def _hidden(width: int, hidden: int | None) -> int:
    if width < 1:
        raise AdapterError("has no inputs", field="head")
    wide = _HIDDEN.get(width, 4 * width) if hidden is None else hidden
    if isinstance(wide, bool) or not 1 <= wide <= _MAX_HIDDEN:
        raise ArgumentError(f"is {wide}, must be 1..{_MAX_HIDDEN}", field="hidden")
    return wide


def _record(source: Source, blocks: dict[int, dict[str, str]], width: int) -> NDArray[Any]:
    """Return the recorded values, which are the same in all blocks."""
    record: NDArray[Any] | None = None
    for names in blocks.values():
        name = names["fc1_A"]
        if source.tensors[name].shape != (min(_RECORDED, width),):
            shape = list(source.tensors[name].shape)
            raise _wrong(source, name, f"has shape {shape}, must be [{min(_RECORDED, width)}]")
        values = source.floats(name).astype(np.float32)
        if record is not None and not np.array_equal(record, values):
            raise MismatchError(
                "records another basis than the first block; the public code has one for all",
                file=source.path,
                field=name,
            )
        record = values
    assert record is not None
    return record


def _fitting(
    source: Source,
    record: NDArray[Any],
    basis: tuple[int, int],
    drawn_on: DrawnOn,
    rank: int | None,
) -> tuple[DrawnOn, int]:
    """Return the device and the rank whose basis, k matrices of so many rows, fits the record."""
    every = range(1, _MAX_RANK + 1)
    if rank is not None and (isinstance(rank, bool) or rank not in every):
        raise ArgumentError(f"is {rank}, must be 1..{_MAX_RANK}", field="rank")
    found = _search(record, basis, drawn_on, every if rank is None else (rank,))
    if found is not None:
        return found
    tried = f"drawn on {drawn_on}" + (f" with rank {rank}" if rank is not None else "")
    hint = f"no rank up to {_MAX_RANK} fits, on a CPU or a GPU: it was another seed or code"
    for other in (drawn_on, _ANY_GPU if drawn_on.device == "cpu" else DrawnOn("cpu")):
        fits = _search(record, basis, other, every)
        if fits is not None:
            where = "a GPU" if other is _ANY_GPU else str(other)
            hint = f"they fit a basis drawn on {where} with rank {fits[1]}"
            break
    raise MismatchError(
        f"the recorded values ({record[0]:.6g}, …) are not those of a basis {tried}; {hint}",
        file=source.path,
        field="fc1_A",
    )


def _search(
    record: NDArray[Any], basis: tuple[int, int], drawn_on: DrawnOn, ranks: Iterable[int]
) -> tuple[DrawnOn, int] | None:
    count, width = basis
    for rank in ranks:
        elements = np.arange(record.size, dtype=np.int64) * rank
        for drawn in drawn_on.alike():
            bound = kaiming_bound(width * rank)
            values = elements_of(drawn, _SEED, elements, count * width * rank, bound)
            if np.array_equal(values, record):
                return drawn, rank
    return None


def _factor(
    source: Source, name: str, shape: tuple[int, int], after: Factor | None = None
) -> Factor:
    return Factor(
        name=name,
        seed=_SEED,
        shape=shape,
        bound=kaiming_bound(shape[0] * shape[1]),
        coefficients=source.floats(name).astype(np.float32),
        before=() if after is None else (after.draw,),
    )


def _wrong(source: Source, name: str, message: str) -> AdapterError:
    return AdapterError(printable(message, 400), file=source.path, field=name)
