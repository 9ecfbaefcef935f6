"""What a format of weights must hold, whatever is merged into it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.adapters.load import load_adapter
from nola_edge.adapters.lora import LoraAdapter
from nola_edge.errors import NotFiniteError
from nola_edge.testing.checks import refusal
from nola_edge.testing.files import digests, plain_lora

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nola_edge.testing.files import Shapes
    from nola_edge.testing.reference import Product

    #: Tensor name -> the file that holds it, and the bytes (start, stop) of it.
    Spans = Mapping[str, tuple[Path, int, int]]


class BaseContract:
    """Tests of a format: merging, verifying, and that a failure leaves nothing behind.

    A subclass whose name begins with ``Test`` says `write`, `spans`, `stored_name` and `merged`,
    and the verbs, if they are not those of checkpoints.

    Attributes
    ----------
    modules : mapping
        Module -> (out_features, in_features) of the layers that are merged into; the base holds
        other tensors too.
    """

    modules: ClassVar[Shapes] = {"layers.0.q": (24, 40), "layers.0.v": (40, 24)}

    def write(self, path: Path) -> Path:
        """Write a base with random weights, the same at each call, and return its path."""
        raise NotImplementedError

    def spans(self, path: Path) -> Spans:
        """Return where the bytes of each tensor are, found without nola-edge where that is easy."""
        raise NotImplementedError

    def stored_name(self, module: str) -> str:
        """Return the name of a module's weight in the format."""
        raise NotImplementedError

    def merged(self, stored: bytes, module: str, product: Product) -> bytes:
        """Return the bytes of the merged weight, slowly."""
        raise NotImplementedError

    def merge(self, base: Path, adapter: Any, output: Path, **options: Any) -> Any:
        """Merge into a new output; options are `force` and `num_threads`."""
        return ne.merge_checkpoint(base, adapter, output, **options)

    def verify(self, merged: Path, base: Path, adapter: Any) -> Any:
        """Return a report with `identical` and `differences`, each with a `tensor`."""
        return ne.verify_checkpoint(merged, base, adapter)

    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        """Write a base."""
        return self.write(tmp_path / "base")

    @pytest.fixture
    def adapter(self, tmp_path: Path) -> Path:
        """Write a LoRA for its modules."""
        return plain_lora(self.modules)[0].write(tmp_path / "adapter")

    def test_merged_tensors_are_those_of_the_reference_and_the_rest_is_untouched(
        self, base: Path, adapter: Path, tmp_path: Path
    ) -> None:
        """Byte for byte, and the base stays as it was."""
        before, products = digests(tmp_path), plain_lora(self.modules)[1]
        self.merge(base, adapter, tmp_path / "out")
        wanted = self._contents(base)
        assert len(wanted) > len(self.modules)
        for module, product in products.items():
            name = self.stored_name(module)
            wanted[name] = self.merged(wanted[name], module, product)
        assert self._contents(tmp_path / "out") == wanted
        assert before.items() <= digests(tmp_path).items()

    def test_the_bytes_do_not_depend_on_threads(
        self, base: Path, adapter: Path, tmp_path: Path
    ) -> None:
        """Nor on which of them was first."""
        written = set()
        for threads in (1, 2, 5, None):
            output = tmp_path / f"out-{threads}"
            self.merge(base, [adapter, (adapter, 0.5)], output, num_threads=threads)
            written.add(tuple(digests(output).values()) or output.read_bytes())
        assert len(written) == 1

    def test_verify_names_each_tensor_of_which_a_bit_differs(
        self, base: Path, adapter: Path, tmp_path: Path
    ) -> None:
        """The first and the last bit of every tensor."""
        self.merge(base, adapter, tmp_path / "out")
        assert self.verify(tmp_path / "out", base, adapter).identical
        for name, (path, start, stop) in self.spans(tmp_path / "out").items():
            for position, bit in ((start, 1), (stop - 1, 64)):
                _flip(path, position, bit)
                report = self.verify(tmp_path / "out", base, adapter)
                assert [difference.tensor for difference in report.differences] == [name]
                _flip(path, position, bit)
        assert self.verify(tmp_path / "out", base, adapter).identical

    def test_verify_tells_another_adapter(self, base: Path, adapter: Path, tmp_path: Path) -> None:
        """Every weight that it changes is named."""
        other = plain_lora(self.modules, seed=78)[0].write(tmp_path / "other")
        self.merge(base, adapter, tmp_path / "out")
        names = {d.tensor for d in self.verify(tmp_path / "out", base, other).differences}
        assert names == {self.stored_name(module) for module in self.modules}

    def test_a_module_that_the_base_lacks_is_refused(self, base: Path, tmp_path: Path) -> None:
        """With nothing written."""
        files, _ = plain_lora({**self.modules, "layers.9.nothing": (4, 4)})
        folder = files.write(tmp_path / "more")
        error = refusal(tmp_path, partial(self.merge, base, folder, tmp_path / "out"))
        assert "layers.9.nothing" in str(error)

    def test_weights_that_are_not_finite_are_not_written(self, base: Path, tmp_path: Path) -> None:
        """It is noticed as they are merged, and what was written by then is removed."""
        files, _ = plain_lora(self.modules)
        huge = {name: tensor * np.float32(1e30) for name, tensor in files.tensors.items()}
        folder = files.with_tensors(huge).write(tmp_path / "huge")
        error = refusal(tmp_path, partial(self.merge, base, folder, tmp_path / "out"))
        assert isinstance(error, NotFiniteError)
        assert error.field in [self.stored_name(module) for module in self.modules]

    def test_a_merge_that_fails_leaves_nothing(
        self, base: Path, adapter: Path, tmp_path: Path
    ) -> None:
        """Whatever fails while weights are written, with and without an output to replace."""
        before = digests(tmp_path)
        self._assert_fails(base, adapter, tmp_path / "out")
        assert digests(tmp_path) == before
        self.merge(base, adapter, tmp_path / "out")
        before = digests(tmp_path)
        self._assert_fails(base, adapter, tmp_path / "out", force=True)
        assert digests(tmp_path) == before

    def test_an_output_is_replaced_when_asked_for(
        self, base: Path, adapter: Path, tmp_path: Path
    ) -> None:
        """And not otherwise."""
        other = plain_lora(self.modules, seed=78)[0].write(tmp_path / "other")
        self.merge(base, other, tmp_path / "out")
        refusal(tmp_path, partial(self.merge, base, adapter, tmp_path / "out"))
        self.merge(base, adapter, tmp_path / "out", force=True)
        assert self.verify(tmp_path / "out", base, adapter).identical

    def test_a_base_that_is_cut_off_is_refused(
        self, base: Path, adapter: Path, tmp_path: Path
    ) -> None:
        """By one byte."""
        path = max((stop, path) for path, _, stop in self.spans(base).values())[1]
        path.write_bytes(path.read_bytes()[:-1])
        refusal(tmp_path, partial(self.merge, base, adapter, tmp_path / "out"))

    def _contents(self, path: Path) -> dict[str, bytes]:
        return {
            name: file.read_bytes()[start:stop]
            for name, (file, start, stop) in self.spans(path).items()
        }

    def _assert_fails(self, base: Path, adapter: Path, output: Path, **options: Any) -> None:
        failing: Callable[[], Any] = partial(
            self.merge, base, _Failing.of(adapter, list(self.modules)[-1]), output, **options
        )
        with pytest.raises(_WentAwayError):
            failing()


class _WentAwayError(Exception):
    """Stands for whatever may happen while an adapter is read."""


class _Failing(LoraAdapter):
    """A LoRA whose last module cannot be read any more."""

    @classmethod
    def of(cls, folder: Path, last: str) -> _Failing:
        loaded = load_adapter(folder)
        assert isinstance(loaded, LoraAdapter)
        failing = cls(loaded.config, loaded.modules, loaded.whole_tensors.tensors, folder)
        failing._last = last
        return failing

    _last = ""

    def factor_b(self, module: str, *args: Any, **options: Any) -> Any:
        if module == self._last:
            raise _WentAwayError
        return super().factor_b(module, *args, **options)


def _flip(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        value = file.read(1)[0]
        file.seek(position)
        file.write(bytes([value ^ bit]))
