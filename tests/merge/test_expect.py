"""What a merge must give, found without writing it, is what a merge gives."""

from __future__ import annotations

import os
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.adapters import ExpectedResult
from nola_edge.demo.synthetic import trained_adapter
from nola_edge.errors import ArgumentError, ChangedError, NolaEdgeError, NotFiniteError
from nola_edge.files.sinks import HashSink
from nola_edge.gguf import expect_gguf, merge_gguf, requantize
from nola_edge.merge import in_order, windows
from tests.conftest import (
    MODULES,
    snapshot,
    tiny_adapter,
    with_whole,
    write_safetensors,
    write_sharded,
)
from tests.gguf.test_merge import adapter_of, arrays_of, write

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def tensors_of(modules, dtype="BF16", seed=2):
    rng = np.random.default_rng(seed)
    kind = DTYPES[dtype]
    tensors = {"embed.weight": rng.standard_normal((50, 40)).astype(kind)}
    for name, shape in modules.items():
        tensors[f"{name}.weight"] = rng.standard_normal(shape).astype(kind)
    tensors["norm.weight"] = np.ones(40, np.float32)
    return tensors


def agree(base, adapter, folder, **options):
    """Return what is expected, having compared it with a merge and ``content_hash``."""
    before = snapshot(folder)
    expected = ne.expect_checkpoint(base, adapter, **options)
    assert snapshot(folder) == before
    out = folder / ("merged" if base.is_dir() else "merged.safetensors")
    ne.merge_checkpoint(base, adapter, out)
    found = ne.content_hash(out)
    assert expected.sha256 == found.sha256
    assert expected.files == (found.files if base.is_dir() else {})
    return expected


def test_a_sharded_folder(tiny, tmp_path):
    base, adapter = tiny
    told = []
    expected = agree(base, adapter, tmp_path, progress=told.append)
    assert (expected.name, expected.kind) == ("base", "folder")
    assert sum(told) == ne.content_hash(tmp_path / "merged").nbytes - len(
        (base / "model.safetensors.index.json").read_bytes()
    )


def test_a_single_file(tmp_path):
    write_safetensors(tmp_path / "b.safetensors", tensors_of(MODULES, "F32"))
    expected = agree(tmp_path / "b.safetensors", tiny_adapter(), tmp_path, name="the base")
    assert (expected.name, expected.kind) == ("the base", "safetensors")


def test_a_folder_that_gets_more_than_the_base_has(tiny, tmp_path):
    """Tensors, so another header and another index."""
    base, _ = tiny
    adapter = with_whole(
        tiny_adapter(),
        **{"norm.weight": np.full(40, 2, "f4"), "head.weight": np.ones((3, 4), "f4")},
    )
    agree(base, adapter, tmp_path)


@pytest.mark.parametrize("kind", ["F16", "F32", "Q8_0", "Q4_1"])
def test_a_gguf_file(kind, tmp_path):
    write(tmp_path / "base.gguf", arrays_of(kind))
    before = snapshot(tmp_path)
    told = []
    expected = expect_gguf(tmp_path / "base.gguf", adapter_of(), progress=told.append)
    assert snapshot(tmp_path) == before
    report = merge_gguf(tmp_path / "base.gguf", adapter_of(), tmp_path / "out.gguf")
    assert expected.sha256 == ne.content_hash(tmp_path / "out.gguf").sha256
    assert expected[:2] == ("base.gguf", "gguf")
    assert sum(told) == report.nbytes


def small(patch, data):
    """Cut everything into pieces that a test's matrices have many of."""
    patch.setattr(windows, "BLOCK_BYTES", data.draw(st.integers(1, 3000)))
    patch.setattr(in_order, "BLOCK_BYTES", data.draw(st.integers(1, 3000)))
    patch.setattr(windows, "_STRIP_BYTES", data.draw(st.integers(1, 400)))
    patch.setattr(windows, "_ALIGNMENT", data.draw(st.integers(1, 40)))
    patch.setattr(in_order, "_HELD_BYTES", data.draw(st.sampled_from([0, 1 << 20])))
    patch.setattr(HashSink, "copy_bytes", data.draw(st.integers(1, 3000)))


@given(data=st.data())
def test_any_base(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    sizes = st.integers(1, 60)
    modules = {f"layers.{n}.q": (data.draw(sizes), data.draw(sizes)) for n in range(3)}
    tensors = tensors_of(modules, data.draw(st.sampled_from(sorted(DTYPES))))
    write_sharded(folder / "base", tensors, data.draw(st.integers(1, 3)))
    adapter = trained_adapter(modules, r=data.draw(st.integers(1, 5)), num_basis=4, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        small(patch, data)
        agree(folder / "base", adapter, folder, num_threads=data.draw(st.integers(1, 4)))


@given(data=st.data())
def test_any_gguf_file(tmp_path_factory, data):
    """Requantised rows have as many strips as ever, or other bytes would come of them."""
    folder = tmp_path_factory.mktemp("any")
    kind = data.draw(st.sampled_from(["F16", "Q8_0", "Q4_1", "Q5_0"]))
    write(folder / "base.gguf", arrays_of(kind))
    with pytest.MonkeyPatch.context() as patch:
        small(patch, data)
        patch.setattr(windows, "_BLOCK_ALIGNMENT", 32)
        patch.setattr(requantize, "_WINDOW_ELEMENTS", data.draw(st.integers(64, 4096)))
        threads = data.draw(st.integers(1, 4))
        expected = expect_gguf(folder / "base.gguf", adapter_of(), num_threads=threads)
        merge_gguf(folder / "base.gguf", adapter_of(), folder / "out.gguf")
    assert expected.sha256 == ne.content_hash(folder / "out.gguf").sha256


def test_the_adapters_form_and_place_do_not_matter(tiny, tmp_path):
    base, folder = tiny
    wanted = ne.expect_checkpoint(base, folder)
    adapter = ne.Adapter.load(folder)
    (tmp_path / "else where").mkdir()
    adapter.pack(tmp_path / "else where" / "b.nola")
    assert ne.expect_checkpoint(base, tmp_path / "else where" / "b.nola") == wanted
    assert ne.expect_checkpoint(str(base), tiny_adapter()) == wanted


def test_its_name(tiny, monkeypatch):
    base, adapter = tiny
    monkeypatch.chdir(base)
    assert ne.expect_checkpoint(".", adapter).name == "base"
    assert ne.expect_checkpoint(f"{base}/", adapter).name == "base"
    assert ne.expect_checkpoint(base, adapter, name="other 0.1").name == "other 0.1"


@pytest.mark.parametrize("name", ["", "a\nb", "a" * 201, 3])
def test_what_is_no_name(tiny, name):
    with pytest.raises(ArgumentError, match=r"^name: ") as caught:
        ne.expect_checkpoint(*tiny, name=name)
    assert str(caught.value).isprintable()


def test_one_adapter_only(tiny):
    base, adapter = tiny
    for given_adapters in ([adapter, adapter], [(adapter, 0.5)]):
        with pytest.raises(ArgumentError, match="adapter: must be one adapter, with weight 1"):
            ne.expect_checkpoint(base, given_adapters)


def test_a_base_that_changes_meanwhile(tiny):
    base, adapter = tiny
    for path in (base / "config.json", min(base.glob("*.safetensors"))):
        with pytest.raises(ChangedError):
            ne.expect_checkpoint(
                base, adapter, progress=lambda _, path=path: os.utime(path, ns=(0, 1))
            )


@pytest.mark.parametrize("threads", [1, 4])
def test_a_failure_ends_all_threads(tmp_path, threads, monkeypatch):
    """Though others wait for the turn of the piece that failed."""
    monkeypatch.setattr(windows, "BLOCK_BYTES", 100)
    tensors = tensors_of(MODULES, "F32")
    tensors["layers.0.q.weight"][3, 4] = np.inf
    write_safetensors(tmp_path / "b.safetensors", tensors)
    running = threading.active_count()
    with pytest.raises(NotFiniteError, match="infinite or NaN"):
        ne.expect_checkpoint(tmp_path / "b.safetensors", tiny_adapter(), num_threads=threads)
    assert threading.active_count() == running


def test_names_that_no_list_of_hashes_holds(tiny):
    base, adapter = tiny
    (base / "a\\b.txt").touch()
    with pytest.raises(NolaEdgeError, match="has a name that lists of hashes cannot hold"):
        ne.expect_checkpoint(base, adapter)


def test_another_base_is_another_fingerprint(tiny, tmp_path):
    base, adapter = tiny
    before = ne.expect_checkpoint(base, adapter)
    (base / "config.json").write_text("{}")
    after = ne.expect_checkpoint(base, adapter)
    assert isinstance(after, ExpectedResult)
    assert after.base_fingerprint == before.base_fingerprint
    assert after.sha256 != before.sha256
    with_zero = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes().items()}
    write_safetensors(tmp_path / "zero.safetensors", with_zero)
    other = ne.expect_checkpoint(tmp_path / "zero.safetensors", tiny_adapter())
    assert other.base_fingerprint != before.base_fingerprint


def tensor_shapes():
    return {f"{name}.weight": shape for name, shape in MODULES.items()}
