"""One base, many adapters, one output each: the bytes of as many single merges."""

import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import weakref
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge import Adapter
from nola_edge.adapters.fingerprints import checkpoint_fingerprint
from nola_edge.demo.synthetic import DecoderShape, trained_adapter, write_checkpoint
from nola_edge.errors import (
    AdapterError,
    ArgumentError,
    MismatchError,
    NolaEdgeError,
    NotFiniteError,
    OutputError,
)
from nola_edge.files import input_file
from nola_edge.files.checkpoint import Checkpoint
from nola_edge.files.safetensors import SafetensorsFile
from nola_edge.merge import weight_files, windows
from nola_edge.merge.many import groups
from nola_edge.merge.many.output_names import name_outputs
from tests.adapters.test_experts import adapter_files, base_of_stacks
from tests.conftest import (
    MODULES,
    load_all,
    snapshot,
    tiny_adapter,
    write_safetensors,
    write_sharded,
)

F = np.float32


def only(adapter, *modules):
    return Adapter(adapter.config, {name: adapter.modules[name] for name in modules})


def with_whole(adapter, **tensors):
    saved = tuple(name.rpartition(".")[0] for name in tensors)
    config = dataclasses.replace(adapter.config, modules_to_save=saved)
    return Adapter(config, adapter.modules, tensors)


def transposed():
    """An adapter for a module that is stored as (in, out)."""
    rows, cols = MODULES["layers.0.v"]
    return trained_adapter(
        {"layers.0.v": (cols, rows)}, r=3, num_basis=9, seed=8, fan_in_fan_out=True
    )


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


def one_by_one(base, adapters, folder, suffix=""):
    folder.mkdir()
    for name, adapter in adapters.items():
        alone = adapter if isinstance(adapter, list) else [adapter]
        ne.merge_checkpoint(base, alone, folder / f"{name}{suffix}")
    return snapshot(folder)


def saved(tmp_path, count=3):
    """Adapters on disk, each for other modules than its neighbours."""
    for i in range(count):
        modules = list(MODULES)[: 1 + i % 3]
        only(tiny_adapter(seed=20 + i), *modules).save(tmp_path / f"a{i}")
    return [tmp_path / f"a{i}" for i in range(count)]


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
        patch.setattr(weight_files, "_COPY_BYTES", data.draw(st.integers(1, 5000)))
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


def seeds(count):
    return {f"a{seed}": tiny_adapter(seed=seed) for seed in range(count)}


def merged_bytes(base):
    tensors = load_all(base)
    return sum(tensors[f"{module}.weight"].nbytes for module in MODULES)


def test_the_base_is_read_once(tiny, tmp_path, monkeypatch, reads, copies):
    monkeypatch.setattr(windows, "BLOCK_BYTES", 700)
    monkeypatch.setattr(weight_files, "_COPY_BYTES", 512)
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


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "nola_edge", *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,
    )


def test_few_open_files(tiny, tmp_path):
    """More outputs than a process may have open are written in groups."""
    adapters = saved(tmp_path, 40)
    done = run(
        "merge", tiny[0], *adapters, "--each", "-o", tmp_path / "out",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "out: 40 outputs, " in done.stdout
    assert "and 20 more" in done.stdout
    expected = one_by_one(tiny[0], {path.name: path for path in adapters}, tmp_path / "single")
    assert snapshot(tmp_path / "out") == expected


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


def refused(tiny, tmp_path, adapters, message, error, output=None, **options):
    before = snapshot(tmp_path)
    with pytest.raises(error) as caught:
        ne.merge_each(tiny[0], adapters, output or tmp_path / "out", **options)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ([], "at least one adapter is needed"),
        ({}, "at least one adapter is needed"),
        ({"x": []}, "at least one adapter is needed"),
        ([None], "None is neither an Adapter nor a path"),
        (3, "3 is neither an Adapter nor a path"),
        ({"x": 0.5}, "a weight belongs in a pair"),
        ([("adapter", "0.5")], "is not a number"),
        ([tiny_adapter()], "made in memory has no name"),
        ({"": "adapter"}, "not a plain name"),
        ({"a/b": "adapter"}, "not a plain name"),
        ({"..": "adapter"}, "not a plain name"),
        ({".hidden": "adapter"}, "not a plain name"),
        ({"a\nb": "adapter"}, "not a plain name"),
        ({"x" * 250: "adapter"}, "not a plain name"),
        ({3: "adapter"}, "not a plain name"),
        (["adapter", "sub/adapter"], "adapter and sub/adapter would both be written to 'adapter'"),
        ([("adapter", 0.5), ("adapter", 1)], "would both be written to 'adapter'"),
    ],
)
def test_what_has_no_name_or_no_adapter(tiny, tmp_path, monkeypatch, adapters, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    shutil.copytree(tiny[1], tmp_path / "sub" / "adapter")
    refused(tiny, tmp_path, adapters, message, ArgumentError)


@pytest.mark.parametrize("shard", [(0, 2), (1, 2)])
def test_every_process_refuses_names_alike(tiny, tmp_path, shard):
    refused(tiny, tmp_path, [tiny[1]] * 2, "would both be written", ArgumentError, shard=shard)


@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_all_adapters_are_checked_first(tiny, tmp_path, monkeypatch, memory):
    """One that does not fit, in whatever group, and nothing is written for the others."""
    monkeypatch.setattr(groups, "GROUP_BYTES", memory)
    wrong = trained_adapter({"absent": (4, 4)}, seed=1)
    adapters = {"a": tiny_adapter(), "b": tiny_adapter(seed=2), "wrong": wrong}
    refused(tiny, tmp_path, adapters, "have no weight here", MismatchError)
    refused(tiny, tmp_path, [tiny[1], tmp_path / "none"], "does not exist", AdapterError)


def test_a_merge_that_is_not_finite(tiny, tmp_path):
    """It shows while writing: no output of the group is kept, and the adapter is named."""
    adapter = tiny_adapter()
    loud = {m: (c.alpha * F(1e25), c.beta * F(1e25)) for m, c in adapter.modules.items()}
    adapter.replace(loud).save(tmp_path / "loud")
    adapters = [tiny[1], tmp_path / "loud"]
    refused(tiny, tmp_path, adapters, f"adapter {tmp_path}/loud", NotFiniteError)


def test_a_failure_keeps_the_groups_before(tiny, tmp_path, monkeypatch):
    adapter = tiny_adapter()
    loud = {m: (c.alpha * F(1e25), c.beta * F(1e25)) for m, c in adapter.modules.items()}
    adapters = {"a": adapter, "b": adapter.replace(loud), "c": tiny_adapter(seed=4)}
    monkeypatch.setattr(groups, "GROUP_BYTES", 1)
    with pytest.raises(NotFiniteError):
        ne.merge_each(tiny[0], adapters, tmp_path / "out")
    assert snapshot(tmp_path / "out") == one_by_one(tiny[0], {"a": adapter}, tmp_path / "single")


def test_a_base_that_changes_meanwhile(tiny, tmp_path):
    shard = tiny[0] / "model-00001-of-00003.safetensors"
    with pytest.raises(NolaEdgeError, match="changed while"):
        ne.merge_each(
            tiny[0], seeds(2), tmp_path / "out", progress=lambda _: os.utime(shard, ns=(1, 1))
        )
    assert {p.name for p in tmp_path.iterdir()} == {"base", "adapter"}


def test_existing_outputs(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(groups, "GROUP_BYTES", 1)
    ne.merge_each(tiny[0], {"a4": tiny_adapter(seed=9)}, tmp_path / "out")
    refused(tiny, tmp_path, seeds(5), "a4: exists already", OutputError)
    assert len(ne.merge_each(tiny[0], seeds(5), tmp_path / "out", force=True)) == 5
    assert snapshot(tmp_path / "out") == one_by_one(tiny[0], seeds(5), tmp_path / "single")


def test_force_spares_what_is_no_output(tiny, tmp_path):
    (tmp_path / "out" / "a1").mkdir(parents=True)
    (tmp_path / "out" / "a1" / "notes.txt").write_text("precious")
    message = (
        "a1: holds notes.txt, which is not part of such an output, so --force does not replace it"
    )
    refused(tiny, tmp_path, seeds(2), message, OutputError, force=True)
    message = "a1: exists but is not a result of this merge (has neither"
    refused(tiny, tmp_path, seeds(2), message, OutputError, skip_existing=True)
    refused(
        tiny, tmp_path, seeds(2), "contradicts force", ArgumentError, force=True, skip_existing=True
    )


def test_what_is_there_is_skipped(tiny, tmp_path):
    ne.merge_each(tiny[0], dict(list(seeds(4).items())[1:3]), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    reports = ne.merge_each(tiny[0], seeds(4), tmp_path / "out", skip_existing=True)
    assert [report.output.name for report in reports] == ["a0", "a3"]
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    assert snapshot(tmp_path / "out") == one_by_one(tiny[0], seeds(4), tmp_path / "single")
    assert ne.merge_each(tiny[0], seeds(4), tmp_path / "out", skip_existing=True) == ()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("base", "lies inside the input"),
        ("base/new", "lies inside the input"),
        ("adapter/new", "lies inside the input"),
        (".", "adapter: is an input"),
        ("adapter/adapter_config.json/out", "adapter_config.json is not a folder"),
        ("adapter/adapter_config.json", "is a file"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_where_outputs_cannot_be(tiny, tmp_path, place, message, force):
    output = tmp_path / place
    refused(tiny, tmp_path, [tiny[1]], message, OutputError, output=output, force=force)


def test_outputs_beside_the_inputs(tiny, tmp_path):
    ne.merge_each(tiny[0], {"beside": tiny[1]}, tmp_path)
    assert ne.verify_checkpoint(tmp_path / "beside", *tiny).identical


def test_an_adapter_of_another_share_is_no_place_for_outputs(tiny, tmp_path):
    adapters = {"a": tiny_adapter(), "adapter_config.json": tiny[1]}
    refused(
        tiny, tmp_path, adapters, "lies inside", OutputError, output=tiny[1] / "out", shard="0/2"
    )


def test_too_little_space_for_all(tiny, tmp_path, monkeypatch):
    with ne.open_merged(*tiny) as lazy:
        size = lazy.plan.base.nbytes
    free = SimpleNamespace(total=0, used=0, free=3 * size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    refused(tiny, tmp_path, seeds(3), f"3 outputs need {3 * size} bytes", OutputError)
    assert len(ne.merge_each(tiny[0], seeds(2), tmp_path / "out")) == 2


def test_json_and_summaries(tiny, tmp_path):
    adapters = saved(tmp_path)
    command = ("merge", tiny[0], *adapters, "--each", "-o", tmp_path / "out")
    done = run(*command, "--json")
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    assert [report["output"] for report in reports] == [f"{tmp_path}/out/a{i}" for i in range(3)]
    assert [report["merged"] for report in reports] == [1, 2, 3]
    done = run(*command, "--skip-existing")
    assert done.stdout == f"{tmp_path}/out: nothing to do, 3 existed already\n"
    shutil.rmtree(tmp_path / "out" / "a1")
    done = run(*command, "--skip-existing")
    assert "out: 1 output, 2 existed already, " in done.stdout
    assert "a1: 2 of 8 tensors merged" in done.stdout
    done = run(*command, "--force", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("recording", "said"),
    [
        (0, "3 adapters record no fingerprint of it"),
        (2, "1 adapter records no fingerprint of it"),
    ],
)
def test_who_records_no_fingerprint(tiny, tmp_path, recording, said):
    adapters = saved(tmp_path)
    for path in adapters[:recording]:
        adapter = Adapter.load(path)
        record = checkpoint_fingerprint(tiny[0], adapter.modules, {})
        config = dataclasses.replace(adapter.config, base_fingerprint=record)
        Adapter(config, adapter.modules).save(path, force=True)
    done = run("merge", tiny[0], *adapters, "--each", "-o", tmp_path / "out")
    assert f"the base was not checked: {said}\n" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "0/2"], "--shard needs --each"),
        (["--skip-existing"], "--skip-existing needs --each"),
        (["--each", "--shard", "2/2"], "shard: is '2/2', must be i/n"),
        (["--each", "--shard", "auto"], "the environment does not say"),
        (["--each", "--skip-existing", "--force"], "contradicts force"),
    ],
)
def test_a_refused_command_is_one_line_and_changes_nothing(tiny, tmp_path, options, message):
    before = snapshot(tmp_path)
    done = run("merge", *tiny, "-o", tmp_path / "out", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("given", [[("one",)], {"a": ()}, [("one", 1.0, 2.0)]])
def test_what_is_no_pair_is_refused(given, tiny, tmp_path):
    with pytest.raises(ArgumentError, match="is not a pair"):
        ne.merge_each(tiny[0], given, tmp_path / "out")
    assert not (tmp_path / "out").exists()
