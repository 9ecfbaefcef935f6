"""What every verb must give for any adapter: the bits of a slow reference."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

import nola_edge as ne
from nola_edge.errors import ArgumentError
from nola_edge.files.safetensors import SafetensorsFile
from nola_edge.testing.files import (
    AdapterFiles,
    base_tensors,
    digests,
    plain_lora,
    read_tensors,
    write_base,
)
from nola_edge.testing.hooks import AdapterHooks
from nola_edge.testing.reference import merge, together

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tensors = dict[str, NDArray[Any]]

_BF16 = np.dtype(ml_dtypes.bfloat16)


class _Given:
    """A base, an adapter for it, and what merging both gives."""

    def __init__(self, contract: AdapterHooks, folder: Path) -> None:
        self.folder = folder
        self.files = contract.files(contract.modules)
        self.tensors = base_tensors(contract.modules, _BF16)
        self.base = write_base(folder / "base", self.tensors)
        self.adapter = self.files.write(folder / "adapter")
        self.wanted = expected(contract, self.tensors, self.files)
        ne.merge_checkpoint(self.base, self.adapter, folder / "merged")
        self.merged = folder / "merged"


class MergingContract(AdapterHooks):
    """Tests of an adapter together with a base."""

    @pytest.fixture(scope="class")
    @classmethod
    def given(cls, tmp_path_factory: pytest.TempPathFactory) -> _Given:
        """Merge once for all tests that only read the result."""
        return _Given(cls(), tmp_path_factory.mktemp("merging"))

    @pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
    @pytest.mark.parametrize("transposed", [False, True])
    def test_a_merge_has_the_bits_of_the_reference(
        self, tmp_path: Path, dtype: Any, transposed: bool
    ) -> None:
        """In every dtype, and in weights that are stored as (in, out)."""
        files = self.files(self.modules, 1)
        if transposed:
            if not self.fan_in_fan_out:
                pytest.skip("the method has no fan_in_fan_out")
            files = files.with_fields(fan_in_fan_out=True)
        tensors = base_tensors(self.modules, np.dtype(dtype), transposed=transposed)
        base = write_base(tmp_path / "base", tensors)
        ne.merge_checkpoint(base, files.write(tmp_path / "a"), tmp_path / "out", num_threads=2)
        found = read_tensors(tmp_path / "out")
        assert_same(found, expected(self, tensors, files, transposed=transposed))
        changed = {name for name in tensors if found[name].tobytes() != tensors[name].tobytes()}
        assert changed == {f"{module}.weight" for module in self.modules}

    def test_opened_is_merged(self, given: _Given) -> None:
        """Without a file."""
        with ne.open_merged(given.base, given.adapter) as found:
            assert_same({name: found[name] for name in found}, given.wanted)

    def test_with_another_adapter_it_is_rounded_once(self, given: _Given, tmp_path: Path) -> None:
        """Ranks stand side by side; or it says that it must be alone."""
        lora, products = plain_lora(self.modules)
        adapters = [(given.adapter, 0.3), (lora.write(tmp_path / "lora"), -0.7)]
        if self.alone:
            for pair in ([given.adapter, adapters[1]], [adapters[0]]):
                with pytest.raises(ArgumentError) as caught:
                    ne.merge_checkpoint(given.base, pair, tmp_path / "out")
                assert str(caught.value).isprintable()
            assert not (tmp_path / "out").exists()
            return
        ne.merge_checkpoint(given.base, adapters, tmp_path / "out")
        found = read_tensors(tmp_path / "out")
        for module, shape in self.modules.items():
            name, own = f"{module}.weight", self.product(given.files, module, shape)
            both = together([(own, 0.3), (products[module], -0.7)])
            assert found[name].tobytes() == merge(given.tensors[name], *both).tobytes()

    def test_many_merges_and_their_shards_are_single_ones(
        self, given: _Given, tmp_path: Path
    ) -> None:
        """As ``--each`` and ``--shard`` make them."""
        other = self.files(self.modules, 2).write(tmp_path / "other")
        outputs = {"one": given.adapter, "two": other}
        ne.merge_each(given.base, outputs, tmp_path / "each")
        for i in range(2):
            ne.merge_each(given.base, outputs, tmp_path / "shards", shard=(i, 2))
        assert digests(tmp_path / "each") == digests(tmp_path / "shards")
        assert digests(tmp_path / "each" / "one") == digests(given.merged)
        assert ne.verify_checkpoint(tmp_path / "each" / "two", given.base, other).identical

    def test_verify_passes_and_no_flipped_bit_goes_unnoticed(
        self, given: _Given, tmp_path: Path
    ) -> None:
        """The tensor is named."""
        assert ne.verify_checkpoint(given.merged, given.base, given.adapter).identical
        weights = given.merged / "model.safetensors"
        for number, module in enumerate(self.modules):
            data = bytearray(weights.read_bytes())
            with SafetensorsFile.open(weights) as file:
                info = file.tensors[f"{module}.weight"]
            data[(info.start, (info.start + info.stop) // 2, info.stop - 1)[number % 3]] ^= 1
            copy = tmp_path / f"{number}.safetensors"
            copy.write_bytes(data)
            report = ne.verify_checkpoint(copy, given.base, given.adapter, tensors_only=True)
            assert [difference.tensor for difference in report.differences] == [info.name]

    def test_switching_there_and_back(self, given: _Given, tmp_path: Path) -> None:
        """As often as one likes: the base does not drift."""
        other = self.files(self.modules, 2).write(tmp_path / "other")
        arrays = {name: values.copy() for name, values in given.tensors.items()}
        with ne.ArraySwitch(arrays, given.base) as switch:
            switch.add("one", given.adapter)
            switch.add("two", other)
            for name in ("one", "two", "one"):
                switch.use(name)
            assert_same(arrays, given.wanted)
            switch.use(None)
            assert_same(arrays, given.tensors)

    def test_whole_tensors_take_their_place(self, given: _Given, tmp_path: Path) -> None:
        """Those that ``modules_to_save`` announces."""
        head = np.full((2, 3), 7, np.float32)
        files = given.files.with_fields(modules_to_save=["head"])
        files = files.with_tensors({"base_model.model.head.weight": head})
        with ne.open_merged(given.base, files.write(tmp_path / "adapter")) as found:
            assert_same(
                {name: found[name] for name in found}, {**given.wanted, "head.weight": head}
            )

    def test_recorded_names_are_followed(self, given: _Given, tmp_path: Path) -> None:
        """Where the base calls a weight otherwise than the adapter its module."""
        module = next(iter(self.modules))
        own, other = f"{module}.weight", "elsewhere.weight"
        base = write_base(
            tmp_path / "base", {other if n == own else n: t for n, t in given.tensors.items()}
        )
        files = given.files.with_fields(tensors={module: other})
        with ne.open_merged(base, files.write(tmp_path / "adapter")) as found:
            assert found[other].tobytes() == given.wanted[own].tobytes()

    def test_the_command_line_writes_the_same(self, given: _Given, tmp_path: Path) -> None:
        """In a process of its own."""
        command = [sys.executable, "-m", "nola_edge", "merge", "-q", "-o", str(tmp_path / "out")]
        done = subprocess.run(
            [*command, str(given.base), str(given.adapter)], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert digests(tmp_path / "out") == digests(given.merged)


def expected(
    contract: AdapterHooks, tensors: Tensors, files: AdapterFiles, *, transposed: bool = False
) -> Tensors:
    """Return the merged model, slowly."""
    found = dict(tensors)
    for module, shape in contract.modules.items():
        name = f"{module}.weight"
        found[name] = contract.merged(found[name], files, module, shape, transposed=transposed)
    return found


def assert_same(found: Tensors, wanted: Tensors) -> None:
    """Compare two models bit for bit."""
    assert found.keys() == wanted.keys()
    differing = [name for name in wanted if found[name].tobytes() != wanted[name].tobytes()]
    assert not differing
