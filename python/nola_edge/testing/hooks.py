"""What a subclass says about its method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from nola_edge.testing.reference import merge_stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from nola_edge.testing.files import AdapterFiles, Shapes
    from nola_edge.testing.reference import Product


class AdapterHooks:
    """What a subclass says about its method; the first three have no default.

    Attributes
    ----------
    required_fields : sequence of str
        Fields of ``adapter_config.json`` without which an adapter is refused.
    bad_fields : mapping
        Field -> values that are refused.
    modules : mapping
        Module -> (out_features, in_features) of the layers that the tests adapt.
    fan_in_fan_out : bool
        Whether the method has that field of PEFT's.
    alone : bool
        Whether an adapter must be the only one of its weights, with weight 1.
    """

    required_fields: ClassVar[Sequence[str]]
    bad_fields: ClassVar[Mapping[str, Sequence[Any]]]
    modules: ClassVar[Shapes] = {
        "layers.0.q": (24, 40),
        "layers.0.v": (40, 24),
        "layers.1.q": (24, 40),
    }
    fan_in_fan_out: ClassVar[bool] = True
    alone: ClassVar[bool] = False

    def files(self, shapes: Shapes, seed: int = 0) -> AdapterFiles:
        """Return an adapter of these layers as its own program saves it, as after training.

        No tensor may be larger than the shapes need.
        """
        raise NotImplementedError

    def product(self, files: AdapterFiles, module: str, shape: tuple[int, int]) -> Product:
        """Return B (out, r), A (r, in) in float32 and s, computed slowly from the files."""
        raise NotImplementedError

    def merged(
        self,
        weight: NDArray[Any],
        files: AdapterFiles,
        module: str,
        shape: tuple[int, int],
        *,
        transposed: bool,
    ) -> NDArray[Any]:
        """Return the merged weight; a method that does more than add a product says how."""
        return merge_stored(weight, self.product(files, module, shape), transposed=transposed)
