"""What must be refused of any adapter: each tensor and field that is not what it should be."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.adapters.load import load_adapter
from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX, WEIGHTS_NAME
from nola_edge.errors import MismatchError
from nola_edge.testing.checks import refusal
from nola_edge.testing.files import AdapterFiles, base_tensors, write_base
from nola_edge.testing.hooks import AdapterHooks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nola_edge.errors import NolaEdgeError


#: Of every method: "tensors" names a module that is not there, or no part of a tensor.
_BAD_FIELDS: dict[str, list[Any]] = {
    "fan_in_fan_out": ["yes"],
    "tensors": [{"layers.9.q": "x.weight"}, {"layers.0.q": "x[4:2]"}, ["x"]],
}


class _Place:
    """A folder of a base, where adapters are written and tried one after the other."""

    def __init__(self, contract: AdapterHooks, folder: Path) -> None:
        self.folder = folder
        self.base = write_base(
            folder / "base", base_tensors(contract.modules, np.dtype(np.float32))
        )
        self.files = contract.files(contract.modules)
        self._count = 0

    def write(self, files: AdapterFiles) -> Path:
        """Write an adapter beside those that were tried before."""
        self._count += 1
        return files.write(self.folder / f"adapter-{self._count}")

    def load(self, files: AdapterFiles) -> NolaEdgeError:
        """Return why an adapter cannot be loaded."""
        return refusal(self.folder, partial(load_adapter, self.write(files)))

    def merge(self, files: AdapterFiles) -> NolaEdgeError:
        """Return why an adapter cannot be merged, loaded or not."""
        adapter, output = self.write(files), self.folder / "out"
        return refusal(self.folder, partial(ne.merge_checkpoint, self.base, adapter, output))


class RefusalContract(AdapterHooks):
    """Tests of folders that are not as the method's program saves them."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> _Place:
        """Write a base."""
        return _Place(self, tmp_path)

    def test_without_a_change_nothing_is_refused(self, place: _Place) -> None:
        """So that the other refusals are about what was changed."""
        adapter = place.write(place.files)
        ne.merge_checkpoint(place.base, adapter, place.folder / "out")

    def test_no_tensor_may_be_missing(self, place: _Place) -> None:
        """The error is about it, or about those that need it."""
        for name in place.files.tensors:
            assert place.merge(place.files.with_tensors({name: ...})).field, name

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_no_number_may_be_infinite_or_missing(self, place: _Place, value: float) -> None:
        """One in the middle of any tensor."""
        self._each_tensor(place, lambda tensor: _poked(tensor, value))

    @pytest.mark.parametrize("dtype", [np.float64, np.int32, np.bool_])
    def test_no_tensor_may_be_of_another_dtype(self, place: _Place, dtype: Any) -> None:
        """Only those are read that are exact in float32."""
        self._each_tensor(place, lambda tensor: tensor.astype(dtype))

    def test_no_tensor_may_have_other_axes(self, place: _Place) -> None:
        """One more, one less, or an empty one."""
        self._each_tensor(place, lambda tensor: tensor[None])
        self._each_tensor(place, lambda tensor: tensor.reshape(-1)[0])
        self._each_tensor(place, lambda tensor: tensor[:0])

    def test_no_tensor_may_be_shorter(self, place: _Place) -> None:
        """Along any axis, noticed at the latest where it meets the base."""
        for name, tensor in place.files.tensors.items():
            for axis in range(tensor.ndim):
                shorter = np.delete(tensor, -1, axis)
                assert place.merge(place.files.with_tensors({name: shorter})).field, (name, axis)

    def test_no_tensor_may_be_left_over(self, place: _Place) -> None:
        """Whatever it is called."""
        module = next(iter(self.modules))
        for name in ("surprise.weight", f"{PREFIX}surprise.weight", f"{PREFIX}{module}.surprise"):
            extra = {name: np.ones((2, 3), np.float32)}
            assert place.load(place.files.with_tensors(extra)).field == name

    def test_no_saved_module_may_be_missing(self, place: _Place) -> None:
        """One that ``modules_to_save`` announces was trained, and would be lost."""
        announced = place.files.with_fields(modules_to_save=["head"])
        assert place.load(announced).field == "modules_to_save"
        assert place.merge(announced).field == "modules_to_save"

    def test_trained_biases_may_not_be_missing(self, place: _Place) -> None:
        """Where the base's layers have them, which ``bias`` says were trained."""
        assert place.merge(place.files.with_fields(bias="all")).field == "bias"

    def test_no_field_may_be_missing(self, place: _Place) -> None:
        """Nothing is guessed that changes weights."""
        for name in self.required_fields:
            assert place.load(place.files.with_fields(**{name: ...})).field == name

    def test_no_field_may_be_of_another_form(self, place: _Place) -> None:
        """It is named."""
        for name, values in {**_BAD_FIELDS, **self.bad_fields}.items():
            for value in values:
                assert place.load(place.files.with_fields(**{name: value})).field == name

    @pytest.mark.parametrize("value", [1, True, "on", [1], {"a": 1}])
    def test_no_field_may_be_unknown(self, place: _Place, value: Any) -> None:
        """It may change the weights."""
        assert place.load(place.files.with_fields(surprise=value)).field == "surprise"

    def test_unknown_fields_that_are_off_are_passed_over(self, place: _Place) -> None:
        """As those of newer versions are, in most adapters."""
        off: dict[str, Any] = {"one": None, "two": False, "three": [], "four": {}, "five": ""}
        assert load_adapter(place.write(place.files.with_fields(**off))).modules

    def test_both_files_are_needed_whole(self, place: _Place) -> None:
        """Neither without the other, nor a part of one."""
        changes: Mapping[str, Callable[[Path], Any]] = {
            "no tensors": lambda folder: (folder / WEIGHTS_NAME).unlink(),
            "cut off": lambda folder: _cut(folder / WEIGHTS_NAME),
            "no object": lambda folder: (folder / CONFIG_NAME).write_text("[]"),
            "no JSON": lambda folder: _cut(folder / CONFIG_NAME),
        }
        for change in changes.values():
            folder = place.write(place.files)
            change(folder)
            refusal(place.folder, partial(load_adapter, folder))

    def test_a_base_that_does_not_fit_is_refused(self, place: _Place) -> None:
        """One without a layer, and one with a layer of another shape."""
        module, (out, into) = next(iter(self.modules.items()))
        adapter = place.write(place.files)
        for shape in ((out + 1, into), (out, into + 1), None):
            shapes = {m: s for m, s in {**self.modules, module: shape}.items() if s is not None}
            base = write_base(
                place.folder / f"base-{shape}", base_tensors(shapes, np.dtype(np.float32))
            )
            merge = partial(ne.merge_checkpoint, base, adapter, place.folder / "out")
            error = refusal(place.folder, merge)
            assert isinstance(error, MismatchError)
            assert error.field or module in str(error)

    @staticmethod
    def _each_tensor(place: _Place, change: Callable[[Any], Any]) -> None:
        for name, tensor in place.files.tensors.items():
            error = place.load(place.files.with_tensors({name: np.asarray(change(tensor))}))
            assert name in str(error), f"{name} is not named: {error}"


def _poked(tensor: Any, value: float) -> Any:
    changed = tensor.copy()
    changed.reshape(-1)[tensor.size // 2] = value
    return changed


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])
