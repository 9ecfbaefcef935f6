"""A checkpoint of the public NOLA code as an adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nola_edge import arguments, ops
from nola_edge.adapters.nola_config import MAX_RANK
from nola_edge.adapters.peft_folder import kept_open, read_config
from nola_edge.adapters.public_nola.checkpoint_file import CheckpointFile
from nola_edge.adapters.public_nola.contents import Layer, factors_of
from nola_edge.adapters.public_nola.cuda_generator import drawn_at_once
from nola_edge.adapters.public_nola.devices import DrawnOn
from nola_edge.adapters.public_nola.drawn_factors import DrawnFactors
from nola_edge.adapters.public_nola.kinds import read_contents
from nola_edge.adapters.stored import StoredAdapter
from nola_edge.errors import AdapterError, ArgumentError, printable
from nola_edge.files.input_file import opening
from nola_edge.files.tensors import TensorMapping

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from nola_edge.adapters.base import Factor as Label
    from nola_edge.adapters.public_nola.contents import Contents, Factor
    from nola_edge.files.tensors import Tensor
    from nola_edge.ops import Range

#: Elements of all random matrices of a factor; the public code would need terabytes for more.
_MAX_BASIS = 1 << 40
#: What drawing an element costs, in multiply-adds.
_DRAWING = 32


class PublicNolaAdapter(StoredAdapter[Layer]):
    """A checkpoint of the public NOLA code, whose random matrices are drawn as torch drew them.

    Attributes
    ----------
    config : Contents
        What the checkpoint holds.
    drawn_on : DrawnOn
    drawn : DrawnFactors
        Draws the factors of all modules, and keeps them while there is room.
    """

    config: Contents

    def __init__(self, contents: Contents, drawn_on: DrawnOn, path: Path) -> None:
        self.config = contents
        self.drawn_on = drawn_on
        self.path = path
        self.whole_tensors = TensorMapping({})
        self._resize = contents.resize
        self._set_layers(contents.layers)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        drawn_on: str | None = None,
        lora_alpha: float | None = None,
        rank: int | None = None,
        hidden: int | None = None,
    ) -> PublicNolaAdapter:
        """Open a checkpoint and check all of it.

        Parameters
        ----------
        path : Path
            A safetensors file, or a PEFT folder with one. A file of ``torch.save`` is refused with
            the command that makes a safetensors file of it.
        drawn_on : str, optional
            Where training drew the random matrices (:meth:`DrawnOn.parse`). Needed unless the
            checkpoint says it.
        lora_alpha, rank, hidden : optional
            What the checkpoint does not say
            (:func:`~nola_edge.adapters.public_nola.kinds.read_contents`).

        Raises
        ------
        MismatchError
            If recorded numbers are not those of the random matrices.
        NolaEdgeError
            If an argument is wrong or missing, or the checkpoint cannot be used.
        """
        given = None if drawn_on is None else DrawnOn.parse(arguments.text("drawn_on", drawn_on))
        with opening(path), kept_open(path) as opened:  # frozen weights stay in the file
            file = CheckpointFile(opened, read_config(path))
            contents = ops.in_specified_environment(  # recorded numbers are compared
                lambda: read_contents(
                    file, drawn_on=given, lora_alpha=lora_alpha, rank=rank, hidden=hidden
                )
            )
            device = contents.drawn_on or given
            if device is None:
                raise ArgumentError(
                    "is needed for a checkpoint of the public NOLA code, as its random matrices "
                    "depend on the device that drew them; give cpu, or the GPU that training ran "
                    "on (--drawn-on a100; in Python drawn_on='a100')",
                    file=path,
                    field="drawn_on",
                )
            return cls(contents, device, path)

    def _set_layers(self, layers: Mapping[str, Layer]) -> None:
        """Take layers, of a size that could have been trained and is drawn as it is here."""
        for module, layer in layers.items():
            if layer.rank > MAX_RANK:
                raise self._refusal(module, f"has rank {layer.rank}, more than {MAX_RANK}")
        for factor in factors_of(layers):
            self._check_draw(factor)
        self.modules = layers
        self.drawn = DrawnFactors(factors_of(layers), self.drawn_on)

    def __deepcopy__(self, memo: object) -> PublicNolaAdapter:
        """Return itself: whoever copies a configuration with an adapter wants the same one."""
        return self

    @property
    def method(self) -> str:
        """Return ``"NOLA"``, and whose code trained it."""
        return f"NOLA, by the public code: {self.config.kind}"

    def rank(self, module: str) -> int:
        """Return r of a module."""
        return self.find(module).rank

    def scaling_of(self, module: str) -> float:
        """Return s of a module, in double."""
        return self.find(module).scaling

    def factor_a(
        self,
        module: str,
        in_features: int,
        cols: Range | None = None,
        num_threads: int | None = None,
        *,
        rows: Range | None = None,
    ) -> NDArray[np.float32]:
        """Draw A, (r, in_features), or the columns, or rows, (start, stop) of it: float32."""
        parts = [self.drawn.get(part.a, num_threads) for part in self.find(module).parts]
        window = (slice(*(rows or (None,))), slice(*(cols or (None,))))
        return np.concatenate([a[:, window[1]] for a in parts])[window[0]]

    def factor_b(
        self,
        module: str,
        out_features: int,
        rows: Range | None = None,
        num_threads: int | None = None,
        *,
        cols: Range | None = None,
    ) -> NDArray[np.float32]:
        """Draw B, (out_features, r), or the rows, or columns, (start, stop) of it: float32."""
        layer = self.find(module)
        start, stop = rows or (0, out_features)
        window = np.zeros((stop - start, layer.rank), np.float32)
        col = 0
        for part in layer.parts:
            b = self.drawn.get(part.b, num_threads)
            first, last = max(start, part.row), min(stop, part.row + len(b))
            if first < last:
                found = b[first - part.row : last - part.row]
                window[first - start : last - start, col : col + part.rank] = found
            col += part.rank
        return window[:, slice(*(cols or (None,)))]

    def shape(self, module: str) -> tuple[int, int]:
        """Return the (out_features, in_features) of the factors."""
        return self.find(module).shape

    def accepts(self, module: str, out_features: int, in_features: int) -> bool:
        """Tell whether the factors fit a module of this shape.

        How wide the MLP of a vision transformer is, the first base says that is matched with it:
        no file does.
        """
        found = (out_features, in_features)
        if self._resize is not None:
            layers = self._resize(module, found)
            if layers is not None:
                self._resize = None
                if self.shape(module) != found:
                    self._set_layers(layers)
        return self.shape(module) == found

    @property
    def unplaced(self) -> Mapping[str, Tensor]:
        """Return the trained head's weight, whose bias the public code does not save."""
        head = self.config.head
        return {} if head is None else {"head.weight": head}

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what is not merged, and what nothing confirms."""
        said = []
        if not self.config.checked:
            said.append(
                f"the random matrices are those of {self.drawn_on}; no file confirms that it was "
                "trained there"
            )
        if self.config.head is not None:
            said.append(
                "its trained head is not merged, as the public code does not save the head's bias; "
                "export lora writes the weight to a file"
            )
        return tuple(f"{printable(str(self.path))}: {text}" for text in said)

    def work(self, factor: Label) -> int:
        """Return roughly the multiply-adds that an element of a factor takes."""
        part = next(iter(self.modules.values())).parts[0]
        return _DRAWING * {"A": part.a, "B": part.b}[factor].num_basis

    @property
    def held_bytes(self) -> int:
        """Return the bytes that it holds in memory, or may."""
        factors = factors_of(self.modules)
        return sum(f.coefficients.nbytes for f in factors) + self.drawn.kept_bytes

    def _check_draw(self, factor: Factor) -> None:
        size, itemsize = factor.drawn, factor.coefficients.dtype.itemsize
        if size > _MAX_BASIS:
            raise self._refusal(
                factor.name,
                f"has a basis of {size} elements, which no machine could have trained with",
            )
        if self.drawn_on.device == "cuda" and not drawn_at_once(size, itemsize):
            raise self._refusal(
                factor.name,
                f"has a basis of {size * itemsize} bytes; beyond 2**31 - 1 torch draws on a GPU in "
                "parts, which is not supported",
            )

    def _refusal(self, name: str, message: str) -> AdapterError:
        return AdapterError(message, file=self.path, field=name)
