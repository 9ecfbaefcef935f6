"""Checkpoints of safetensors hold what every format of weights must."""

from __future__ import annotations

import contextlib
import inspect
import json

import ml_dtypes
import numpy as np
import pytest

from nola_edge.errors import NolaEdgeWarning
from nola_edge.testing import BaseContract
from nola_edge.testing.files import base_tensors, plain_lora
from nola_edge.testing.reference import merge
from tests.conftest import write_safetensors, write_sharded


def spans_of(path):
    """Read a header as the format's documentation says."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    found = {n: entry["data_offsets"] for n, entry in header.items() if n != "__metadata__"}
    return {n: (path, 8 + size + start, 8 + size + stop) for n, (start, stop) in found.items()}


class TestOneFile(BaseContract):
    dtype = np.dtype(np.float32)

    def write(self, path):
        path = path.with_suffix(".safetensors")
        write_safetensors(path, base_tensors(self.modules, self.dtype))
        return path

    def spans(self, path):
        return spans_of(path)

    def stored_name(self, module):
        return f"{module}.weight"

    def merged(self, stored, module, product):
        weight = np.frombuffer(stored, self.dtype).reshape(self.modules[module])
        return merge(weight, *product).tobytes()


class _LeavesAPart(TestOneFile):
    __test__ = False

    def merge(self, base, adapter, output, **options):
        try:
            return super().merge(base, adapter, output, **options)
        except Exception:
            output.with_name("part").write_bytes(b"1")
            raise


class _ChangesAnotherTensor(TestOneFile):
    __test__ = False

    def merge(self, base, adapter, output, **options):
        super().merge(base, adapter, output, **options)
        _, start, _ = spans_of(output)["embed.weight"]
        data = bytearray(output.read_bytes())
        data[start] ^= 1
        output.write_bytes(data)


class _DependsOnThreads(TestOneFile):
    __test__ = False

    def merge(self, base, adapter, output, **options):
        super().merge(base, adapter, output, **options)
        data = output.read_bytes()
        output.write_bytes(data + bytes(options.get("num_threads") or 0))


class _NeverDiffers(TestOneFile):
    __test__ = False

    def verify(self, merged, base, adapter):
        with pytest.warns(NolaEdgeWarning, match="weight: is 0"):
            return super().verify(merged, merged, [(adapter, 0)])


@pytest.mark.parametrize(
    ("contract", "name"),
    [
        (_LeavesAPart, "test_a_merge_that_fails_leaves_nothing"),
        (_LeavesAPart, "test_weights_that_are_not_finite_are_not_written"),
        (_ChangesAnotherTensor, "test_merged_tensors_are_those_of_the_reference"),
        (_DependsOnThreads, "test_the_bytes_do_not_depend_on_threads"),
        (_NeverDiffers, "test_verify_names_each_tensor"),
        (_NeverDiffers, "test_verify_tells_another_adapter"),
    ],
)
def test_the_contract_finds_faults(tmp_path, contract, name):
    for number, kind in enumerate((TestOneFile, contract)):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        given = {
            "tmp_path": folder,
            "base": kind().write(folder / "base"),
            "adapter": plain_lora(kind.modules)[0].write(folder / "adapter"),
        }
        test = next(getattr(kind(), found) for found in dir(kind) if found.startswith(name))
        wanted = inspect.signature(test).parameters
        expected = (
            contextlib.nullcontext() if kind is TestOneFile else pytest.raises(AssertionError)
        )
        with expected:
            test(**{key: value for key, value in given.items() if key in wanted})


class TestFolderOfShards(TestOneFile):
    dtype = np.dtype(ml_dtypes.bfloat16)

    def write(self, path):
        write_sharded(path, base_tensors(self.modules, self.dtype), 3)
        (path / "config.json").write_text("{}")
        return path

    def spans(self, path):
        return {n: s for file in path.glob("*.safetensors") for n, s in spans_of(file).items()}
