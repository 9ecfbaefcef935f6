"""Checkpoints of the vision transformer code (``--train_type nola_mlp``).

``vit/nola_mlp.py``, ``save_nola_parameters``: a safetensors file with, for each block i,
``fc1_alpha_<i>``, ``fc1_beta_<i>``, ``fc2_alpha_<i>``, ``fc2_beta_<i>`` (k and l coefficients),
``fc1_A_<i>``, the first ten values ``A[0, :10, 0]`` of fc1's basis, and the head's weight as
``fc_<in>in_<classes>out``. The head's bias is trained and not saved, so that no merge can put the
head back together. ``vit/NOLA.py``, ``NOLA2``:

    torch.manual_seed(0)                   # the same basis for all layers of one shape
    A (k, in, r)  = kaiming_uniform_(a = sqrt 5), so uniform within 1 / sqrt(in * r)
    B (l, r, out) = the same, within 1 / sqrt(r * out), drawn right after A
    the layer adds 1 / r * (x @ sum_i alpha_i A_i) @ sum_j beta_j B_j

in float32, and on the CPU, because the layer is made there and moved later; there is no frozen
weight. The rank is not saved, but the ten values tell it. The width of the MLP is not either: the
base tells it, and where there is none it is 4 times the embedding but for two of the models that
the script names (``vit/train_timm.py``, by timm's definitions).
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nola_edge.adapters.public_nola.contents import Contents, Factor, Layer
from nola_edge.adapters.public_nola.devices import DrawnOn
from nola_edge.adapters.public_nola.recognise import VISION
from nola_edge.errors import AdapterError, ArgumentError, MismatchError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from nola_edge.adapters.public_nola.checkpoint_file import CheckpointFile

_SEED = 0
_KINDS = ("fc1_A", "fc1_alpha", "fc1_beta", "fc2_alpha", "fc2_beta")
_NAME = re.compile(rf"(?:{'|'.join(_KINDS)})_(?P<block>\d{{3}}|[1-9]\d{{3,5}})")
_HEAD = re.compile(r"fc_(?P<inputs>\d+)in_(?P<outputs>\d+)out")
_RECORDED = 10
_MAX_RANK = 1024
_MAX_HIDDEN = 1 << 20
#: Embedding -> width of the MLP where it is not four times as large: giant and gigantic.
_HIDDEN = {1408: 6144, 1664: 8192}
_ANY_GPU = DrawnOn("cuda", 1 << 20)  # ten values do not tell GPUs apart


def read_vision(
    file: CheckpointFile, drawn_on: DrawnOn | None, rank: int | None, hidden: int | None
) -> Contents:
    """Read a checkpoint of the vision transformer code, by default drawn on a CPU.

    Raises
    ------
    MismatchError
        If no basis begins with the recorded values.
    NolaEdgeError
    """
    for name, given, most in (("rank", rank, _MAX_RANK), ("hidden", hidden, _MAX_HIDDEN)):
        if given is not None and (isinstance(given, bool) or not 1 <= given <= most):
            raise ArgumentError(f"is {given}, must be 1..{most}", field=name)
    blocks, head = _sort_names(file)
    width = file.tensors[head].shape[1]
    coefficients = _coefficients(file, blocks)
    count = coefficients[_name("fc1_alpha", blocks[0])].size
    record = _Record(_recorded(file, blocks, width), count, width)
    drawn, found = _fitting(file, record, drawn_on or DrawnOn("cpu"), rank)
    model = _Model(width, found, blocks, coefficients)
    return Contents(
        VISION,
        model.layers(hidden or _HIDDEN.get(width, 4 * width)),
        drawn_on=drawn,
        head=file.matrix(head),
        checked=len(blocks),
        resize=model.resized if hidden is None else None,
    )


@dataclass(frozen=True)
class _Model:
    """What the layers are made of, but for the width of the MLP."""

    width: int
    rank: int
    blocks: list[int]
    coefficients: dict[str, NDArray[np.float32]]

    def layers(self, hidden: int) -> dict[str, Layer]:
        """Return all layers of a model whose MLP is so wide."""
        layers = {}
        sizes = (("fc1", self.width, hidden), ("fc2", hidden, self.width))
        for block, (name, inputs, outputs) in itertools.product(self.blocks, sizes):
            a = self._factor(_name(f"{name}_alpha", block), (inputs, self.rank))
            b = self._factor(_name(f"{name}_beta", block), (self.rank, outputs), a.drawn)
            layers[f"blocks.{block}.mlp.{name}"] = Layer.of_pair(a, b, 1.0 / self.rank)
        return layers

    def resized(self, module: str, shape: tuple[int, int]) -> dict[str, Layer] | None:
        """Return all layers of the model in which a module has this shape, if there can be one."""
        hidden, width = shape if module.endswith("fc1") else shape[::-1]
        return self.layers(hidden) if width == self.width and hidden <= _MAX_HIDDEN else None

    def _factor(self, name: str, shape: tuple[int, int], before: int = 0) -> Factor:
        return Factor(
            name=name,
            seed=_SEED,
            shape=shape,
            bound=kaiming_bound(shape[0] * shape[1]),
            coefficients=self.coefficients[name],
            before=before,
            transposed=True,
        )


def kaiming_bound(fan_in: int) -> float:
    """Return the bound of ``torch.nn.init.kaiming_uniform_(a=sqrt(5))``, to its last bit."""
    gain = math.sqrt(2.0 / (1 + math.sqrt(5) ** 2))
    return math.sqrt(3.0) * (gain / math.sqrt(fan_in))


def _name(kind: str, block: int) -> str:
    return f"{kind}_{block:03d}"


def _sort_names(file: CheckpointFile) -> tuple[list[int], str]:
    """Return the numbers of the blocks, each of which is complete, and the name of the head."""
    blocks, heads = set(), []
    for name, info in file.tensors.items():
        match, head = _NAME.fullmatch(name), _HEAD.fullmatch(name)
        if match is not None:
            blocks.add(int(match["block"]))
        elif head is None:
            raise file.refusal(name, "is not something that the public code saves")
        elif info.shape != (int(head["outputs"]), int(head["inputs"])) or 0 in info.shape:
            raise file.refusal(name, f"has shape {list(info.shape)}")
        else:
            heads.append(name)
    if len(heads) != 1:
        raise AdapterError(
            f"has {len(heads)} heads (fc_<in>in_<classes>out), the public code saves one",
            file=file.path,
        )
    for block, kind in itertools.product(sorted(blocks), _KINDS):
        if _name(kind, block) not in file.tensors:
            raise file.refusal(
                _name(kind, block), "is missing, but the other tensors of its block are there"
            )
    return sorted(blocks), heads[0]


def _coefficients(file: CheckpointFile, blocks: list[int]) -> dict[str, NDArray[np.float32]]:
    found = {}
    for label in ("alpha", "beta"):
        names = [_name(f"{layer}_{label}", block) for block in blocks for layer in ("fc1", "fc2")]
        rows = {name: file.numbers(name).astype(np.float32) for name in names}
        file.check_counts({name: row.size for name, row in rows.items()})
        found.update(rows)
    return found


def _recorded(file: CheckpointFile, blocks: list[int], width: int) -> NDArray[np.float32]:
    """Return the recorded values, which are the same in all blocks."""
    records = {
        name: file.numbers(name).astype(np.float32)
        for name in (_name("fc1_A", block) for block in blocks)
    }
    first = next(iter(records.values()))
    for name, values in records.items():
        if values.size != min(_RECORDED, width):
            raise file.refusal(name, f"has {values.size} values, must have {min(_RECORDED, width)}")
        if not np.array_equal(first, values):
            raise MismatchError(
                "records another basis than the first block; the public code uses one for all",
                file=file.path,
                field=name,
            )
    return first


@dataclass(frozen=True)
class _Record:
    """The first values of the basis of fc1's A, k matrices of as many rows as the model is wide."""

    values: NDArray[np.float32]
    count: int
    width: int

    def fits(self, drawn_on: DrawnOn, ranks: Iterable[int]) -> tuple[DrawnOn, int] | None:
        """Return the device, and the rank, that give the values."""
        for rank in ranks:
            fan_in = self.width * rank
            elements = np.arange(self.values.size, dtype=np.int64) * rank
            for drawn in drawn_on.alike():
                found = drawn.generator(_SEED).at(
                    elements, self.count * fan_in, kaiming_bound(fan_in)
                )
                if np.array_equal(found, self.values):
                    return drawn, rank
        return None


def _fitting(
    file: CheckpointFile, record: _Record, drawn_on: DrawnOn, rank: int | None
) -> tuple[DrawnOn, int]:
    """Return the device and the rank whose basis fits the record, or refuse and say which does."""
    every = range(1, _MAX_RANK + 1)
    found = record.fits(drawn_on, every if rank is None else (rank,))
    if found is not None:
        return found
    tried = f"drawn on {drawn_on}" + (f" with rank {rank}" if rank is not None else "")
    hint = f"no rank up to {_MAX_RANK} fits, on a CPU or a GPU: the seed or the code was different"
    for other in (drawn_on, _ANY_GPU if drawn_on.device == "cpu" else DrawnOn("cpu")):
        fits = record.fits(other, every)
        if fits is not None:
            where = "a GPU" if other is _ANY_GPU else str(other)
            hint = f"they fit a basis drawn on {where} with rank {fits[1]}"
            break
    raise MismatchError(
        f"the recorded values ({record.values[0]:.6g}, …) are not those of a basis {tried}; {hint}",
        file=file.path,
        field="fc1_A",
    )
