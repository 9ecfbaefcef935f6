"""The contract of adapters finds the mistakes that a new method may make."""

from __future__ import annotations

import importlib
import inspect

import numpy as np
import pytest

from nola_edge.adapters.factor_file import FactorFile
from nola_edge.adapters.load import load_adapter
from nola_edge.adapters.peft_fields import Fields
from nola_edge.testing.adapter_merging import _Given
from nola_edge.testing.adapter_refusals import _Place
from tests.plugin import test_rank_one

F = np.float32


def whole_a(self, module, in_features, cols=None, num_threads=None, *, rows=None):
    return self.find(module)[1].array().astype(F)[None, :]


def double_b(self, module, out_features, rows=None, num_threads=None, *, cols=None):
    return self.find(module)[0].read(*(rows or (0, out_features))).astype(float)[:, None]


def negative_b(self, module, out_features, rows=None, num_threads=None, *, cols=None):
    return -self.find(module)[0].read(*(rows or (0, out_features))).astype(F)[:, None]


FAULTS = {
    "windows": ("factor_a", whole_a, "test_any_window_is_a_part_of_the_whole"),
    "dtype": ("factor_b", double_b, "test_factors_are_those_of_the_reference"),
    "sign": ("factor_b", negative_b, "test_opened_is_merged"),
    "sign, mixed": ("factor_b", negative_b, "test_with_another_adapter_it_is_rounded_once"),
    "scaling": ("scaling_of", lambda *_: 0.31, "test_switching_there_and_back"),
    "any module": ("rank", lambda *_: 1, "test_a_module_that_it_lacks_is_refused_by_name"),
    "open files": ("open_files", 0, "test_what_it_holds_is_what_it_says"),
    "held bytes": ("held_bytes", 4096, "test_what_it_holds_is_what_it_says"),
    "any shape": ("shape", lambda *_: None, "test_a_base_that_does_not_fit_is_refused"),
    "left over": ((FactorFile, "whole_tensors"), lambda *_: {}, "test_no_tensor_may_be_left_over"),
    "finite": ((FactorFile, "_check_finite"), lambda *_: None, "test_no_number_may_be_infinite"),
    "any dtype": (
        (FactorFile, "_check_dtype"),
        lambda *_: None,
        "test_no_tensor_may_be_of",
    ),
    "any field": ((Fields, "refuse_rest"), lambda _: None, "test_no_field_may_be_unknown"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, rank_one_installed, tmp_path_factory, monkeypatch):
    where, value, name = FAULTS[fault]
    owner = importlib.import_module("rank_one").RankOneAdapter
    contract = test_rank_one.TestRankOne()
    test = next(getattr(contract, found) for found in dir(contract) if found.startswith(name))
    run(contract, test, tmp_path_factory)
    monkeypatch.setattr(*(where if isinstance(where, tuple) else (owner, where)), value)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run(contract, test, tmp_path_factory)


def run(contract, test, tmp_path_factory):
    """Call a test of the contract with what its fixtures give."""
    files = contract.files(contract.modules)
    folder = files.write(tmp_path_factory.mktemp("adapter") / "adapter")
    place = tmp_path_factory.mktemp("place")
    given = {
        "written": lambda: (files, folder),
        "adapter": lambda: load_adapter(folder),
        "place": lambda: _Place(contract, place),
        "given": lambda: _Given(contract, place),
        "tmp_path": lambda: tmp_path_factory.mktemp("outputs"),
        "value": lambda: 1 if "field" in test.__name__ else np.nan,
        "dtype": lambda: np.int32,
    }
    wanted = inspect.signature(test).parameters
    test(**{name: make() for name, make in given.items() if name in wanted})
