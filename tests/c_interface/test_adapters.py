"""Packed adapters behind nola.h: read as Python reads them, with the same bits, or refused."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
from collections.abc import Iterator
from ctypes import byref, c_void_p

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge import ops
from nola_edge.adapters.tensor_parts import TensorPart
from nola_edge.demo.scoring import DATA
from nola_edge.errors import NolaEdgeError
from nola_edge.merge.row_order import interleaved_rows
from tests.c_interface.library import (
    BASES,
    INVALID_ARGUMENT,
    INVALID_FILE,
    MISMATCH,
    NOT_FINITE,
    OK,
    AdapterInfo,
    Expected,
    Module,
    place,
    weight_of,
)
from tests.conftest import MODULES, snapshot, tiny_adapter, with_whole
from tests.fuzz.mutate import mutate
from tests.fuzz.readers import READERS
from tests.fuzz.seeds import seeds

#: Each way in which coefficients are stored, and what they are multiplied by.
KINDS = {
    "floats": tiny_adapter(),
    "uniform": tiny_adapter(basis="uniform", use_rslora=True),
    "a unit of beta": tiny_adapter(beta_unit=2.5, seed=2**63 - 1),
    "3 bits": tiny_adapter().quantize(3),
    "4 bits": tiny_adapter().quantize(4),
    "8 bits": tiny_adapter(num_basis=11).quantize(8),
    "whole tensors": with_whole(tiny_adapter(), **{"norm.weight": np.ones(40, np.float32)}),
}


class Handle:
    """An open adapter, by its functions."""

    def __init__(self, library, handle):
        self.library, self.handle = library, handle

    def info(self):
        info = AdapterInfo()
        assert self.library.nola_adapter_get_info(self.handle, byref(info)) == OK
        return info

    def module(self, index):
        module = Module()
        assert self.library.nola_adapter_get_module(self.handle, index, byref(module)) == OK
        return module

    def names(self):
        return [self.module(i).name.decode() for i in range(self.info().num_modules)]

    def factor(self, index, factor, features, begin, end, threads=1):
        rank = self.info().rank
        shape = (rank, end - begin) if factor == "A" else (end - begin, rank)
        out = np.empty(shape, np.float32)
        arguments = index, ord(factor), features, begin, end, place(out), threads
        assert self.library.nola_adapter_factor(self.handle, *arguments) == OK
        return out

    def merge(self, index, weight, head_rows=0, threads=2):
        description = weight_of(weight, weight)
        return self.library.nola_adapter_merge(self.handle, index, description, head_rows, threads)


@contextlib.contextmanager
def opened(library, source):
    """Open a path, or bytes."""
    handle = c_void_p(1)
    if isinstance(source, bytes):
        status = library.nola_adapter_open_memory(source, len(source), byref(handle))
    else:
        status = library.nola_adapter_open(str(source).encode(), byref(handle))
    assert status == OK, library.nola_last_error()
    try:
        yield Handle(library, handle)
    finally:
        library.nola_adapter_close(handle)


def refusal(library, data: bytes) -> str:
    """Return why bytes are refused, by the message of a call that leaves null behind."""
    handle = c_void_p(1)
    status = library.nola_adapter_open_memory(data, len(data), byref(handle))
    assert (status, handle.value) == (INVALID_FILE, None)
    text = library.nola_last_error().decode()
    assert text.isprintable()
    return text


@pytest.fixture(scope="module", params=KINDS)
def packed(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "a.nola"
    KINDS[request.param].pack(path)
    return path


def test_what_it_is(library, packed):
    adapter = ne.Adapter.load(packed)
    config = adapter.config
    with opened(library, packed) as found, opened(library, packed.read_bytes()) as in_memory:
        info = found.info()
        assert bytes(in_memory.info()) == bytes(info)
        assert found.names() == in_memory.names() == list(adapter.modules)
        assert found.module(1).tensor.decode() == found.names()[1] + ".weight"
    assert (info.num_modules, info.rank) == (len(adapter.modules), config.r)
    assert (info.num_basis_a, info.num_basis_b) == (config.num_basis_a, config.num_basis_b)
    assert (info.seed, info.scaling) == (config.seed, config.scaling)
    assert (info.basis, info.fan_in_fan_out) == (BASES[config.basis], 0)
    assert info.coefficient_bits == (config.coefficient_bits or 0)
    assert info.num_whole_tensors == len(adapter.whole_tensors)


def test_the_first_format(library):
    adapter = ne.Adapter.load(DATA / "read.nola")
    with opened(library, DATA / "read.nola") as found:
        assert found.names() == list(adapter.modules)
        name = found.names()[0]
        assert found.factor(0, "A", 64, 0, 64).tobytes() == adapter.factor_a(name, 64).tobytes()


def test_factors_have_the_same_bits(library, packed):
    """Whole and in part, for any number of threads."""
    adapter = ne.Adapter.load(packed)
    with opened(library, packed) as found:
        for index, (name, (rows, cols)) in enumerate(MODULES.items()):
            a, b = adapter.factors(name, rows, cols)
            assert found.factor(index, "A", cols, 0, cols, 3).tobytes() == a.tobytes()
            assert found.factor(index, "B", rows, 0, rows, 3).tobytes() == b.tobytes()
            part = found.factor(index, "A", cols, 3, 17)
            assert part.tobytes() == np.ascontiguousarray(a[:, 3:17]).tobytes()
            assert found.factor(index, "B", rows, 5, 6).tobytes() == b[5:6].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_merging_has_the_same_bits(library, packed, dtype):
    adapter = ne.Adapter.load(packed)
    with opened(library, packed) as found:
        for index, (name, shape) in enumerate(MODULES.items()):
            weight = np.random.default_rng(index).standard_normal(shape).astype(dtype)
            a, b = adapter.factors(name, *shape)
            wanted = ops.merged(weight, b, a, adapter.scaling)
            assert found.merge(index, weight) == OK
            assert weight.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("head_rows", [2, 8, 40])
@pytest.mark.parametrize("turned", [False, True])
def test_other_orders_of_a_weight(library, tmp_path, head_rows, turned):
    """Of a Conv1D, and of llama.cpp's heads."""
    adapter = tiny_adapter(fan_in_fan_out=turned)
    adapter.pack(tmp_path / "a.nola")
    name, (rows, cols) = next(item for item in MODULES.items() if item[1][0] == 40)
    index = list(adapter.modules).index(name)
    a, b = adapter.factors(name, rows, cols)
    b = interleaved_rows(lambda start, stop: b[start:stop], head_rows, 0, rows)
    weight = np.random.default_rng(1).standard_normal((rows, cols)).astype(np.float32)
    stored = np.ascontiguousarray(weight.T) if turned else weight.copy()
    left, right = (a.T, b.T) if turned else (b, a)
    left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
    wanted = ops.merged(stored, left, right, adapter.scaling)
    with opened(library, tmp_path / "a.nola") as found:
        assert found.info().fan_in_fan_out == turned
        assert found.merge(index, stored, head_rows) == OK
    assert stored.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_a_weight_without_elements(library, tmp_path, turned, shape):
    tiny_adapter(fan_in_fan_out=turned).pack(tmp_path / "a.nola")
    with opened(library, tmp_path / "a.nola") as found:
        assert found.merge(0, np.empty(shape, np.float32)) in (OK, INVALID_ARGUMENT)


def test_many_names_take_no_time(library, tmp_path):
    """Of what an adapter records, each is looked up once."""
    adapter = tiny_adapter()
    names = [f"layers.{i}" for i in range(20_000)]
    modules = {name: next(iter(adapter.modules.values())) for name in names}
    config = adapter.config.to_json()
    config.update(modules_fingerprint=None, shapes_fingerprint=None)
    config["tensors"] = {name: f"{name}.w" for name in names}
    config = type(adapter.config).from_json(config, file="x")
    ne.Adapter(config, modules).pack(tmp_path / "a.nola")
    with opened(library, tmp_path / "a.nola") as found:
        assert found.info().num_modules == len(names)


def test_where_modules_are(library, tmp_path):
    adapter = tiny_adapter()
    names = list(adapter.modules)
    parts = {
        names[0]: TensorPart("joined.weight", (40, 80)),
        names[1]: TensorPart("elsewhere"),
        names[2]: TensorPart(""),
    }
    config = ne.Adapter(adapter.config, adapter.modules).config.to_json()
    config["tensors"] = {name: str(part) or None for name, part in parts.items()}
    config = type(adapter.config).from_json(config, file="x")
    ne.Adapter(config, adapter.modules).pack(tmp_path / "a.nola")
    with opened(library, tmp_path / "a.nola") as found:
        modules = [found.module(i) for i in range(3)]
        seen = [(module.tensor, module.begin, module.end) for module in modules]
    assert seen == [(b"joined.weight", 40, 80), (b"elsewhere", 0, 0), (None, 0, 0)]


def test_what_its_publisher_expects(library, tiny, tmp_path):
    adapter = ne.Adapter.load(tiny[1])
    wanted = ne.expect_checkpoint(tiny[0], adapter, name="the base of é")
    adapter.pack(tmp_path / "a.nola", expect=[wanted])
    with opened(library, tmp_path / "a.nola") as found:
        assert found.info().num_expected == 1
        expected = Expected()
        assert library.nola_adapter_get_expected(found.handle, 0, byref(expected)) == OK
        seen = [getattr(expected, name).decode() for name, _ in Expected._fields_]
        assert seen == [wanted.name, wanted.kind, wanted.base_fingerprint, wanted.sha256]
        status = library.nola_adapter_get_expected(found.handle, 1, byref(expected))
    assert status == INVALID_ARGUMENT
    assert library.nola_last_error() == b"index: 1 is not below num_expected, 1"


def test_other_shapes_are_a_mismatch(library, tmp_path):
    modules = {name: (rows + 1, cols) for name, (rows, cols) in MODULES.items()}
    options = {"r": 4, "num_basis_a": 5, "num_basis_b": 5, "seed": 3, "lora_alpha": 8}
    ne.Adapter.create(MODULES, **options).pack(tmp_path / "a.nola")
    with opened(library, tmp_path / "a.nola") as found:
        for shapes, wanted in ((MODULES, OK), (modules, MISMATCH)):
            sizes = np.array([shapes[name] for name in found.names()], np.uint64).T.copy()
            status = library.nola_adapter_check_shapes(
                found.handle, place(sizes[0]), place(sizes[1])
            )
            assert status == wanted
    assert b"other shapes" in library.nola_last_error()


@given(place_of=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(place_of=0.0, bit=0)
def test_no_bit_may_change(library, packed, place_of, bit):
    data = bytearray(packed.read_bytes())
    data[int(place_of * len(data))] ^= 1 << bit
    refusal(library, bytes(data))


def test_files_that_are_none(library, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    before = snapshot(tmp_path)
    handle = c_void_p()
    for name, message in {
        "missing": "cannot be opened: No such file or directory",
        ".": "is not a regular file",
        "empty": "has 0 bytes, too few for a safetensors file",
    }.items():
        path = tmp_path / name
        assert library.nola_adapter_open(str(path).encode(), byref(handle)) == INVALID_FILE
        assert library.nola_last_error().decode() == f"{path}: {message}"
        assert handle.value is None
    assert snapshot(tmp_path) == before


def python_says(data: bytes, tmp_path) -> str | None:
    """Return why Python refuses a packed adapter, or None."""
    path = tmp_path / "adapter.nola"
    path.write_bytes(data)
    try:
        ne.Adapter.load(path)
    except NolaEdgeError as error:
        return str(error).replace(str(path), "the adapter in memory")
    return None


def fuzzed(tmp_path) -> Iterator[bytes]:
    """Yield what fuzzing begins with, then changes of it, as packed files."""
    rng = random.Random(16)
    found = list(seeds("packed"))
    changed = (mutate("packed", rng.choice(found), rng) for _ in range(600))
    prepare, path = READERS["packed"][0], tmp_path / "fuzzed.nola"
    for data in itertools.chain(found, filter(None, changed)):
        path.unlink(missing_ok=True)
        with contextlib.suppress(NolaEdgeError):  # which no file can hold
            prepare(data, path)
            yield path.read_bytes()


def test_fuzzed_files_are_judged_alike(library, tmp_path):
    """Often in the same words: parsers of JSON have their own, and show values each in its way."""
    accepted = same = refused = 0
    for data in fuzzed(tmp_path):
        wanted = python_says(data, tmp_path)
        if wanted is not None:
            refused += 1
            same += refusal(library, data) == wanted
            continue
        accepted += 1
        adapter = ne.Adapter.load(tmp_path / "adapter.nola")
        name = next(iter(adapter.modules))
        with opened(library, data) as found:
            assert found.names() == list(adapter.modules)
            got = found.factor(0, "B", 24, 0, 24)
        assert got.tobytes() == adapter.factor_b(name, 24).tobytes()
    assert accepted > 50
    assert same > refused / 3


def test_arguments_that_cannot_be(library, packed):
    missing, out, most = c_void_p(), np.empty(4, np.float32), 2**64 - 1
    info, module = AdapterInfo(), Module()
    weight = np.zeros((40, 40), np.float32)
    unaligned = weight_of(weight, weight)
    unaligned.base = unaligned.out = place(weight) + 1
    assert library.nola_adapter_close(None) is None
    with opened(library, packed) as found:
        own = found.handle
        calls = {
            "adapter": [
                ("open", packed.name.encode(), None),
                ("open_memory", b"", 0, None),
                ("get_info", missing, byref(info)),
                ("get_module", missing, 0, byref(module)),
                ("merge", missing, 0, weight_of(weight, weight), 0, 1),
                ("factor", missing, 0, ord("A"), 4, 0, 4, place(out), 1),
            ],
            "path": [("open", None, byref(missing))],
            "bytes": [("open_memory", None, 4, byref(missing))],
            "size": [("open_memory", place(out), most, byref(missing))],
            "info": [("get_info", own, None)],
            "module": [
                ("get_module", own, 0, None),
                ("get_module", own, most, byref(module)),
                ("factor", own, 99, ord("A"), 4, 0, 4, place(out), 1),
            ],
            "factor": [("factor", own, 0, ord("C"), 4, 0, 4, place(out), 1)],
            "shape": [("factor", own, 0, ord("A"), most, 0, 4, place(out), 1)],
            "begin": [
                ("factor", own, 0, ord("A"), 4, 3, 2, place(out), 1),
                ("factor", own, 0, ord("B"), 4, 0, 5, place(out), 1),
            ],
            "out": [("factor", own, 0, ord("A"), 4, 0, 4, None, 1)],
            "out_features": [("check_shapes", own, None, place(out))],
            "in_features": [("check_shapes", own, place(out), None)],
            "weight": [
                ("merge", own, 0, None, 0, 1),
            ],
            "base": [("merge", own, 0, unaligned, 0, 1)],
            "head_rows": [
                ("merge", own, 0, weight_of(weight, weight), rows, 1) for rows in (1, 7, 6, most)
            ],
        }
        for name, tried in calls.items():
            for function, *arguments in tried:
                status = getattr(library, f"nola_adapter_{function}")(*arguments)
                text = library.nola_last_error().decode()
                assert status == INVALID_ARGUMENT, (name, function, text)
                assert text.startswith(f"{name}: "), (name, function, text)
    assert not weight.any()


def test_an_infinite_weight_is_said(library, tmp_path):
    adapter = tiny_adapter()
    config = dataclasses.replace(adapter.config, lora_alpha=1e30)
    ne.Adapter(config, adapter.modules).pack(tmp_path / "a.nola")
    with opened(library, tmp_path / "a.nola") as found:
        assert found.merge(0, np.zeros((24, 40), np.float16)) == NOT_FINITE
        assert found.merge(0, np.full((24, 40), np.inf, np.float32)) == NOT_FINITE
