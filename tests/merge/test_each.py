"""One base, many adapters, one output each: the bytes of as many single merges."""

from __future__ import annotations

import shutil
import subprocess
import sys
import weakref
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge import Adapter
from nola_edge.demo.synthetic import DecoderShape, trained_adapter, write_checkpoint
from nola_edge.files import input_file
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.safetensors import SafetensorsFile
from nola_edge.files.sinks import FileSink
from nola_edge.merge import windows
from nola_edge.merge.many import groups
from nola_edge.merge.many.output_names import name_outputs
from tests.adapters.test_experts import adapter_files, base_of_stacks
from tests.conftest import (
    MODULES,
    load_all,
    snapshot,
    tiny_adapter,
    with_whole,
    write_safetensors,
    write_sharded,
)
from tests.merge.each import one_by_one, only, saved, seeds, transposed

F = np.float32


def many():
    """Adapters that change different tensors in different ways."""
    whole = {"norm.weight": np.full(40, 2.5, F), "classifier.weight": np.ones((3, 40), F)}
    return {
        "all": tiny_adapter(),
        "weighted": (tiny_adapter(seed=12, basis="uniform", r=3), -0.7),
        "query": only(tiny_adapter(seed=13), "layers.1.q"),
        "transposed": transposed(),
        "whole": with_whole(only(tiny_adapter(seed=14), "layers.0.q"), **whole),
        "summed": [(tiny_adapter(seed=15), 0.25), (transposed(), 2.0)],
    }


@pytest.mark.parametrize("layout", ["sharded", "folder", "file"])
def test_outputs_are_those_of_single_merges(isa, tiny, tmp_path, layout):
    base, suffix = tiny[0], ""
    if layout == "folder":
        base = tmp_path / "plain"
        base.mkdir()
        write_safetensors(base / "model.safetensors", load_all(tiny[0]))
        shutil.copy(tiny[0] / "config.json", base)
    elif layout == "file":
        base, suffix = tmp_path / "base.safetensors", ".safetensors"
        write_safetensors(base, load_all(tiny[0]))
    written = []
    reports = ne.merge_each(base, many(), tmp_path / "out", num_threads=3, progress=written.append)
    assert snapshot(tmp_path / "out") == one_by_one(base, many(), tmp_path / "single", suffix)
    assert [report.output.name for report in reports] == [name + suffix for name in many()]
    assert [report.merged for report in reports] == [3, 3, 1, 1, 1, 3]
    assert [(report.replaced, report.added) for report in reports][4] == (1, 1)
    assert sum(written) == sum(report.nbytes for report in reports)


@settings(max_examples=15)
@given(data=st.data())
def test_any_base_any_adapters(tmp_path_factory, data):
    """Sizes, shards, who changes what, blocks, threads: nothing of it shows."""
    folder = tmp_path_factory.mktemp("any")
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
    shapes = {f"m{i}": shape for i, shape in enumerate(data.draw(st.lists(sizes, min_size=1)))}
    dtype = data.draw(st.sampled_from([np.float16, np.float32]))
    tensors = {f"{m}.weight": rng.standard_normal(s).astype(dtype) for m, s in shapes.items()}
    write_sharded(folder / "base", tensors, data.draw(st.integers(1, len(shapes))))
    subsets = st.lists(st.sampled_from(sorted(shapes)), min_size=1, unique=True)
    adapters = {
        f"a{seed}": trained_adapter({m: shapes[m] for m in modules}, r=2, num_basis=5, seed=seed)
        for seed, modules in enumerate(data.draw(st.lists(subsets, min_size=1, max_size=4)))
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "BLOCK_BYTES", data.draw(st.integers(1, 5000)))
        patch.setattr(windows, "_STRIP_BYTES", data.draw(st.integers(1, 200)))
        patch.setattr(windows, "_ALIGNMENT", data.draw(st.integers(1, 40)))
        patch.setattr(FileSink, "copy_bytes", data.draw(st.integers(1, 5000)))
        threads = data.draw(st.integers(1, 4))
        ne.merge_each(folder / "base", adapters, folder / "out", num_threads=threads)
    assert snapshot(folder / "out") == one_by_one(folder / "base", adapters, folder / "single")


@pytest.fixture
def reads(monkeypatch):
    """How often each byte behind the header of a file was read."""
    found = Counter()
    read_into = SafetensorsFile.read_into

    def counted(file, buffer, offset):
        if hasattr(file, "tensors"):
            found.update((file.path.name, offset + i) for i in range(len(buffer)))
        return read_into(file, buffer, offset)

    monkeypatch.setattr(SafetensorsFile, "read_into", counted)
    return found


@pytest.fixture
def copies(monkeypatch):
    """The ranges that were copied within the kernel, in order."""
    found = []
    copy_range = input_file.copy_range

    def copied(source, start, target, offset, count):
        found.append((source, start, count))
        return copy_range(source, start, target, offset, count)

    monkeypatch.setattr(input_file, "copy_range", copied)
    return found


def merged_bytes(base):
    tensors = load_all(base)
    return sum(tensors[f"{module}.weight"].nbytes for module in MODULES)


def test_the_base_is_read_once(tiny, tmp_path, monkeypatch, reads, copies):
    monkeypatch.setattr(windows, "BLOCK_BYTES", 700)
    monkeypatch.setattr(FileSink, "copy_bytes", 512)
    ne.merge_each(tiny[0], seeds(5), tmp_path / "out", num_threads=1)
    assert set(reads.values()) == {1}
    assert reads.total() == merged_bytes(tiny[0])
    # A range goes to every output before the next one does: the page cache has it from the first.
    ranges = list(dict.fromkeys(copies))
    assert len(ranges) > 8
    assert copies == [piece for piece in ranges for _ in range(5)]


def test_a_stack_of_experts_is_read_once(tmp_path, monkeypatch, reads):
    """Also for adapters of which only some change it."""
    monkeypatch.setattr(windows, "BLOCK_BYTES", 100)
    base = base_of_stacks(tmp_path / "b.safetensors")
    experts = ne.load_adapter(adapter_files().write(tmp_path / "a"), moe_layout="peft")
    query = trained_adapter({"model.layers.0.q": (4, 5)}, r=2, num_basis=5)
    adapters = {"one": experts, "two": [(experts, -2)], "query": query, "three": [(experts, 0.5)]}
    ne.merge_each(base, adapters, tmp_path / "out", num_threads=2)
    changed = [name for name in load_all(base) if name != "conv.weight"]
    assert set(reads.values()) == {1}
    assert reads.total() == sum(load_all(base)[name].nbytes for name in changed)
    single = one_by_one(base, adapters, tmp_path / "single", ".safetensors")
    assert snapshot(tmp_path / "out") == single


@pytest.mark.parametrize("most", [1, 2, 5])
def test_groups_read_the_base_once_each(tiny, tmp_path, monkeypatch, reads, most):
    """Where memory does not suffice for the factors of all."""
    with ne.open_merged(tiny[0], tiny_adapter()) as lazy:
        need = groups._memory(lazy.plan, 1)
    monkeypatch.setattr(groups, "GROUP_BYTES", most * need)
    reports = ne.merge_each(tiny[0], seeds(5), tmp_path / "out", num_threads=1)
    assert set(reads.values()) == {-(-5 // most)}
    assert [report.output.name for report in reports] == list(seeds(5))
    assert snapshot(tmp_path / "out") == one_by_one(tiny[0], seeds(5), tmp_path / "single")


def test_a_group_is_forgotten_before_the_next_is_read(tiny, tmp_path, monkeypatch):
    """Whole tensors may be large: those of one group at a time are in memory."""
    monkeypatch.setattr(groups, "GROUP_BYTES", 1)
    wanted = [groups.WantedMerge(tmp_path / path.name, [path]) for path in saved(tmp_path)]
    with Checkpoint.open(tiny[0]) as base:
        found = []
        for merges in groups.Groups(base, wanted, check_base=True, num_threads=1):
            assert [ref() for ref in found] == [None] * len(found)
            found += [weakref.ref(merge.plan) for merge in merges]
        assert len(found) == 3


def test_memory_does_not_grow_with_the_adapters(tmp_path):
    """Five outputs of 80 MB each, in less than one; measured in a process of its own."""
    shape = DecoderShape(layers=2, hidden=1024, intermediate=4096, vocabulary=8000)
    size = write_checkpoint(tmp_path / "base", shape)
    for seed in range(5):
        trained_adapter(shape.linears(), seed=seed).save(tmp_path / f"a{seed}")
    code = (
        "import nola_edge.merge.many.each as m\n"
        "from nola_edge.demo.memory import peak_bytes\n"
        "before = peak_bytes()\n"
        "m.merge_each('base', [f'a{i}' for i in range(5)], 'out', num_threads=2)\n"
        "print(peak_bytes() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < size / 2


def test_names(tiny, tmp_path):
    adapter = tiny_adapter()
    (tmp_path / "sub").mkdir()
    adapter.save(tmp_path / "sub" / "french")
    adapter.pack(tmp_path / "sub" / "german.v2.nola")
    (tmp_path / "link").symlink_to(tmp_path / "sub" / "french")
    cache = tmp_path / "models--someone--italian" / "snapshots" / "0123abcd"
    cache.mkdir(parents=True)
    given = [
        (f"{tmp_path}/sub/french/", 0.5),
        tmp_path / "sub" / "german.v2.nola",
        "someone/spanish",
        Adapter.load(tmp_path / "link"),
        cache,
    ]
    assert list(name_outputs(given)) == ["french", "german.v2", "spanish", "link", "italian"]
    assert list(name_outputs(str(tiny[1]))) == ["adapter"]
    assert name_outputs({"x": tiny[1]}) == {"x": [tiny[1]]}
