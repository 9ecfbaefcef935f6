"""LoRA of stacks of experts: each expert's factors, whatever lays them out and stores the base."""

from __future__ import annotations

import json

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.adapters.peft_folder import PREFIX
from nola_edge.errors import AdapterError, ArgumentError, MismatchError, NolaEdgeError
from nola_edge.merge import windows
from nola_edge.testing import AdapterFiles
from nola_edge.testing.checks import refusal
from nola_edge.testing.reference import merge as slow_merge
from nola_edge.testing.reference import together
from tests.cli.in_process import call, refused
from tests.conftest import load_all, snapshot, write_safetensors
from tests.lora_folders import lora_config

F = np.float32
EXPERTS, RANK, HIDDEN, INNER = 3, 2, 10, 7
HOLDER = "model.layers.{}.mlp.experts"
TARGETS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
#: Rows and columns of an expert, by parameter; in PEFT's names the last one is the outermost.
STACKS = {"gate_up_proj": (2 * INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
PAIRS = {"gate_up_proj": ".base_layer", "down_proj": ""}


def products(seed=0):
    """Return (layer, parameter, expert) -> B and A."""
    rng = np.random.default_rng(seed)
    return {
        (layer, name, expert): tuple(
            rng.standard_normal(shape).astype(F) for shape in ((rows, RANK), (RANK, cols))
        )
        for layer in range(2)
        for name, (rows, cols) in STACKS.items()
        for expert in range(EXPERTS)
    }


def laid_out(factors, layout="peft", turned=False):
    """Return the tensors that PEFT, or Unsloth, saves; turned for parameters that are (in, out)."""
    tensors = {}
    for layer in range(2):
        for name, where in PAIRS.items():
            pairs = [factors[layer, name, expert] for expert in range(EXPERTS)]
            if turned:
                pairs = [(a.T, b.T) for b, a in pairs]
            stem = f"{PREFIX}{HOLDER.format(layer)}{where}.lora_"
            tensors[stem + "A.weight"] = np.concatenate([a for _, a in pairs])
            axis = 2 if layout == "peft" else 1
            b = np.stack([b for b, _ in pairs], axis=axis)
            tensors[stem + "B.weight"] = b.reshape(len(b), EXPERTS * RANK)
    return tensors


def adapter_files(layout="peft", turned=False, **fields):
    config = lora_config(r=RANK, lora_alpha=5, target_parameters=TARGETS, **fields)
    tensors = laid_out(products(), layout, turned)
    q = {f"{PREFIX}model.layers.0.q.lora_{x}.weight": np.ones(s, F) for x, s in QUERY.items()}
    return AdapterFiles(config, {**tensors, **q})


QUERY = {"A": (RANK, 5), "B": (4, RANK)}
ONE_BY_ONE = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
OLDER = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}


def base_of(path, names=ONE_BY_ONE, holder=HOLDER, experts=EXPERTS, dtype=F, shapes=STACKS):
    """Write a base whose experts are stored matrix by matrix."""
    rng = np.random.default_rng(1)
    tensors = {"model.layers.0.q.weight": rng.standard_normal((4, 5)).astype(dtype)}
    for layer in range(2):
        for name, parts in names.items():
            rows, cols = shapes[name]
            for expert in range(experts):
                for part in parts:
                    stored = f"{holder.format(layer)}.{expert}.{part}.weight"
                    values = rng.standard_normal((rows // len(parts), cols))
                    tensors[stored] = values.astype(dtype)
    write_safetensors(path, tensors)
    return path


def expected(base, names=ONE_BY_ONE, holder=HOLDER, s=2.5):
    found = load_all(base)
    ones = np.ones(QUERY["B"], F), np.ones(QUERY["A"], F)
    found["model.layers.0.q.weight"] = slow_merge(found["model.layers.0.q.weight"], *ones, s)
    for (layer, name, expert), (b, a) in products().items():
        for part, rows in zip(names[name], np.split(b, len(names[name])), strict=True):
            stored = f"{holder.format(layer)}.{expert}.{part}.weight"
            found[stored] = slow_merge(found[stored], rows, a, s)
    return found


def same(found, wanted):
    return {n: v.tobytes() for n, v in found.items()} == {n: v.tobytes() for n, v in wanted.items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("layout", ["peft", "unsloth"])
def test_each_expert_gets_its_own_factors(tmp_path, layout, turned, dtype):
    base = base_of(tmp_path / "b.safetensors", dtype=dtype)
    folder = adapter_files(layout, turned).write(tmp_path / "a")
    adapter = ne.load_adapter(folder, moe_layout=layout)
    ne.merge_checkpoint(base, adapter, tmp_path / "o.safetensors")
    assert same(load_all(tmp_path / "o.safetensors"), expected(base))
    assert ne.verify_checkpoint(tmp_path / "o.safetensors", base, adapter).identical
    other = ne.load_adapter(folder, moe_layout={"peft": "unsloth", "unsloth": "peft"}[layout])
    assert not ne.verify_checkpoint(tmp_path / "o.safetensors", base, other).identical


@pytest.mark.parametrize("prefix", ["", "language_model.", "text."])
def test_names_of_older_files_and_with_a_prefix(tmp_path, prefix):
    holder = "model.layers.{}.block_sparse_moe.experts"
    base_of(tmp_path / "plain.safetensors", OLDER, holder)
    wanted = expected(tmp_path / "plain.safetensors", OLDER, holder)
    base = tmp_path / "b.safetensors"
    write_safetensors(
        base, {prefix + n: v for n, v in load_all(tmp_path / "plain.safetensors").items()}
    )
    adapter = ne.load_adapter(adapter_files().write(tmp_path / "a"), moe_layout="peft")
    with ne.open_merged(base, adapter) as found:
        assert same({n.removeprefix(prefix): found[n] for n in found}, wanted)


def base_of_stacks(path, dtype=F):
    """Write a base whose stacks are tensors, beside another one of three axes."""
    rng = np.random.default_rng(2)
    tensors = {
        "model.layers.0.q.weight": rng.standard_normal((4, 5)).astype(dtype),
        "conv.weight": rng.standard_normal((3, 4, 2)).astype(dtype),
    }
    for layer in range(2):
        for name, shape in STACKS.items():
            values = rng.standard_normal((EXPERTS, *shape))
            tensors[f"{HOLDER.format(layer)}.{name}"] = values.astype(dtype)
    write_safetensors(path, tensors)
    return path


def expected_stacks(base, *others):
    """Return the merged tensors; of each other adapter, seed and weight."""
    found = load_all(base)
    ones = np.ones(QUERY["B"], F), np.ones(QUERY["A"], F)
    weights = [2.5] if not others else [2.5 * weight for _, weight in others]
    seeds = [0] if not others else [seed for seed, _ in others]
    for key in products():
        layer, name, expert = key
        stack = found[f"{HOLDER.format(layer)}.{name}"]
        parts = [((*products(seed)[key], s), 1.0) for seed, s in zip(seeds, weights, strict=True)]
        product = (*products()[key], 2.5) if not others else together(parts)
        stack[expert] = slow_merge(stack[expert], *product)
    if not others:
        query = "model.layers.0.q.weight"
        found[query] = slow_merge(found[query], *ones, 2.5)
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("layout", ["peft", "unsloth"])
def test_stacks_that_are_tensors(tmp_path, isa, layout, turned, dtype):
    base = base_of_stacks(tmp_path / "b.safetensors", dtype)
    folder = adapter_files(layout, turned).write(tmp_path / "a")
    adapter = ne.load_adapter(folder, moe_layout=layout)
    report = ne.merge_checkpoint(base, adapter, tmp_path / "o.safetensors", num_threads=2)
    assert (report.merged, report.tensors) == (5, 6)
    wanted = expected_stacks(base)
    assert same(load_all(tmp_path / "o.safetensors"), wanted)
    with ne.open_merged(base, adapter) as found:
        assert same({name: found[name] for name in found}, wanted)


def test_every_verb_takes_stacks_that_are_tensors(tmp_path, monkeypatch):
    base = base_of_stacks(tmp_path / "b.safetensors")
    adapter = ne.load_adapter(adapter_files().write(tmp_path / "a"), moe_layout="peft")
    wanted = expected_stacks(base)
    arrays = load_all(base)
    with ne.ArraySwitch(arrays, base) as switch:
        switch.add("a", adapter)
        switch.use("a")
        assert same(arrays, wanted)
        switch.use(None)
        assert same(arrays, load_all(base))
    monkeypatch.setattr(windows, "BLOCK_BYTES", 100)
    monkeypatch.setattr(windows, "_STRIP_BYTES", 60)
    monkeypatch.setattr(windows, "_ALIGNMENT", 3)
    ne.merge_each(base, {"x": adapter, "y": [(adapter, 2)]}, tmp_path / "each", num_threads=3)
    assert same(load_all(tmp_path / "each" / "x.safetensors"), wanted)
    output = tmp_path / "each" / "x.safetensors"
    report = ne.verify_checkpoint(output, base, adapter)
    assert (report.identical, report.merged) == (True, 5)
    with output.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    (found,) = ne.verify_checkpoint(output, base, adapter).differences
    assert (found.tensor, found.elements) == ("model.layers.1.mlp.experts.down_proj", 1)


def test_what_is_wrong_with_an_expert_of_a_stack_is_said(tmp_path):
    """Of each by itself: one was dropped, two got the other's change, one has a broken weight."""
    base = base_of_stacks(tmp_path / "b.safetensors")
    folder = adapter_files().write(tmp_path / "a")
    adapter = ne.load_adapter(folder, moe_layout="peft")
    before, tensors = load_all(base), expected_stacks(base)
    up, down = (HOLDER.format(1) + "." + name for name in STACKS)
    tensors[down][1] = before[down][1]
    changes = [tensors[up][expert] - before[up][expert] for expert in (0, 2)]
    tensors[up][0], tensors[up][2] = before[up][0] + changes[1], before[up][2] + changes[0]
    first = HOLDER.format(0) + ".gate_up_proj"
    tensors[first][2, 0, 0] += 1000
    write_safetensors(tmp_path / "o.safetensors", tensors)
    report = ne.verify_checkpoint(tmp_path / "o.safetensors", base, adapter)
    assert {(d.tensor, d.matrix): d.fault for d in report.differences} == {
        (first, 2): "broken weights",
        (up, 0): "another layer",
        (up, 2): "another layer",
        (down, 1): "dropped",
    }
    (swapped,) = (d for d in report.differences if d.name == f"{up}[0]")
    assert swapped.source == f"{up}.2.weight"
    done = call("verify", tmp_path / "o.safetensors", base, folder, "--moe-layout", "peft")
    assert done.returncode == 1
    first_line, verdict, *rows = done.stdout.splitlines()
    assert first_line == "DIFFERENT: 3 tensors"
    assert verdict.startswith("verdict: the adapter was dropped from 1 of 13 matrices; ")
    assert any(row.endswith(f"dropped         {down}[1]") for row in rows)


def test_what_is_kept_of_factors_is_counted(tmp_path):
    base = base_of_stacks(tmp_path / "b.safetensors")
    adapter = ne.load_adapter(adapter_files().write(tmp_path / "a"), moe_layout="peft")
    assert adapter.held_bytes == 0
    with ne.open_merged(base, adapter) as found:
        ((resolved, _),) = found.plan.adapters
        assert resolved.held_bytes == 3 * 4 * 2 * INNER * EXPERTS * RANK


def test_two_adapters_of_stacks_are_rounded_once(tmp_path):
    base = base_of_stacks(tmp_path / "b.safetensors")
    given = []
    for seed, weight in ((0, 0.5), (1, -2)):
        config = lora_config(r=RANK, lora_alpha=5, target_parameters=TARGETS)
        folder = AdapterFiles(config, laid_out(products(seed))).write(tmp_path / f"a{seed}")
        given.append((ne.load_adapter(folder, moe_layout="peft"), weight))
    with ne.open_merged(base, given) as found:
        assert same({name: found[name] for name in found}, expected_stacks(base, (0, 0.5), (1, -2)))


def test_another_stack_of_the_module_says_how_square_ones_are_turned(tmp_path, monkeypatch):
    monkeypatch.setitem(STACKS, "down_proj", (HIDDEN, HIDDEN))
    base = base_of_stacks(tmp_path / "b.safetensors")
    for turned in (False, True):
        folder = adapter_files(turned=turned).write(tmp_path / f"a{turned}")
        with ne.open_merged(base, ne.load_adapter(folder, moe_layout="peft")) as found:
            assert same({name: found[name] for name in found}, expected_stacks(base))


def test_ranks_and_scalings_of_a_parameter(tmp_path):
    """Patterns know a stack by the parameter's name."""
    base = base_of(tmp_path / "b.safetensors")
    patterns = {"alpha_pattern": {r".*\.gate_up_proj": 3}, "rank_pattern": {"down_proj": RANK}}
    folder = adapter_files(**patterns).with_fields(r=RANK).write(tmp_path / "a")
    with ne.open_merged(base, ne.load_adapter(folder, moe_layout="peft")) as found:
        name = "model.layers.1.mlp.experts.2.up_proj.weight"
        b, a = products()[1, "gate_up_proj", 2]
        wanted = slow_merge(load_all(base)[name], b[INNER:], a, 1.5)
        assert found[name].tobytes() == wanted.tobytes()


def test_what_unsloth_writes_of_the_layout_is_enough(tmp_path):
    base = base_of(tmp_path / "b.safetensors")
    for layout, recorded in (("peft", "rank_major"), ("unsloth", "grouped_by_expert")):
        folder = adapter_files(layout, lora_B_layout=recorded).write(tmp_path / layout)
        with ne.open_merged(base, folder) as found:
            assert same(dict(found), expected(base))
    with pytest.raises(AdapterError, match="lora_B_layout: is 'grouped_by_expert' according to"):
        ne.load_adapter(folder, moe_layout="peft")


def test_the_command_line_asks_for_the_layout(tmp_path):
    base = base_of(tmp_path / "b.safetensors")
    folder = adapter_files().write(tmp_path / "a")
    output = tmp_path / "o.safetensors"
    before = snapshot(tmp_path)
    line = refused("merge", base, folder, "-o", output)
    assert "says which layout this is; tell merge, verify or inspect: --moe-layout peft" in line
    assert "mlp.experts.base_layer.lora_B.weight" in line
    assert snapshot(tmp_path) == before
    done = call("merge", base, folder, "-o", output, "--moe-layout", "peft", "-q")
    assert (done.returncode, done.stdout) == (0, ""), done
    assert same(load_all(output), expected(base))
    done = call("verify", output, base, folder, "--moe-layout", "peft")
    assert done.stdout.startswith("identical: 19 tensors (19 merged)"), done
    assert call("verify", output, base, folder, "--moe-layout", "unsloth").returncode == 1
    done = call("merge", base, folder, "-o", tmp_path / "e", "--each", "--moe-layout", "peft", "-q")
    assert (tmp_path / "e" / "a.safetensors").read_bytes() == output.read_bytes(), done
    done = call("inspect", folder, "--moe-layout", "peft", "--base", base, "--json")
    assert len(json.loads(done.stdout)["modules"]) == 5


def test_a_layout_where_there_are_no_experts_is_refused(tmp_path, tiny):
    folder = AdapterFiles(lora_config(), {}).write(tmp_path / "l")
    with pytest.raises(ArgumentError, match="is for a LoRA of stacked experts"):
        ne.load_adapter(folder, moe_layout="peft")
    with pytest.raises(ArgumentError, match="moe_layout: is 'other', must be peft or unsloth"):
        ne.load_adapter(folder, moe_layout="other")
    line = refused("merge", *tiny, "-o", tmp_path / "o", "--moe-layout", "peft")
    assert "--moe-layout is for LoRAs of stacked experts" in line


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("right", ["peft", "unsloth"])
def test_a_mistaken_layout_is_named(tmp_path, right, dtype):
    """On the tensors of experts; the layer beside them is right."""
    wrong = {"peft": "unsloth", "unsloth": "peft"}[right]
    sizes = {"gate_up_proj": (96, 40), "down_proj": (40, 48)}
    with pytest.MonkeyPatch.context() as patch:
        for name, shape in sizes.items():
            patch.setitem(STACKS, name, shape)
        base = base_of(tmp_path / "b.safetensors", dtype=dtype)
        folder = adapter_files(right).write(tmp_path / "a")
    output = tmp_path / "o.safetensors"
    ne.merge_checkpoint(base, ne.load_adapter(folder, moe_layout=wrong), output)
    report = ne.verify_checkpoint(output, base, ne.load_adapter(folder, moe_layout=right))
    assert {d.fault for d in report.differences} == {"expert layout"}
    assert all(".experts." in d.tensor for d in report.differences)
    done = call("verify", output, base, folder, "--moe-layout", right)
    assert done.returncode == 1
    assert (
        "verdict: experts laid out otherwise (see --moe-layout) in 18 of 19 tensors" in done.stdout
    )


@pytest.mark.parametrize("kind", ["lora", "gguf-lora"])
@pytest.mark.parametrize("layout", ["peft", "unsloth"])
def test_experts_are_not_exported_and_the_layout_says_what_to_do(tmp_path, kind, layout):
    base = base_of(tmp_path / "b.safetensors")
    folder = adapter_files(layout).write(tmp_path / "a")
    before = snapshot(tmp_path)
    output = tmp_path / {"lora": "o", "gguf-lora": "o.gguf"}[kind]
    command = ["export", kind, folder, "--base", base, "-o", output]
    line = refused(*command, "--moe-layout", layout)
    assert "--moe-layout is for LoRAs of stacked experts, and they cannot be exported" in line
    assert "merge them (nola-edge merge has --moe-layout)" in line
    assert "tell merge, verify or inspect: --moe-layout" in refused(*command)
    assert snapshot(tmp_path) == before


SQUARE = {"gate_up_proj": (HIDDEN, HIDDEN), "down_proj": (HIDDEN, HIDDEN)}
BASES = {
    "other names": (
        {"names": {"down_proj": ("out",)}},
        "has no stack of experts under known names here",
    ),
    "too few": ({"experts": 2}, "which the factors of"),
    "other shapes": ({"shapes": {**STACKS, "down_proj": (HIDDEN, 6)}}, "which the factors of"),
    "one of two": ({"names": {"down_proj": ("down_proj",)}}, "which the factors of"),
}


@pytest.mark.parametrize("case", BASES)
def test_a_base_that_does_not_fit_is_refused(tmp_path, case):
    options, message = BASES[case]
    base = base_of(tmp_path / "b.safetensors", **options)
    adapter = ne.load_adapter(adapter_files().write(tmp_path / "a"), moe_layout="peft")
    output = tmp_path / "o.safetensors"
    error = refusal(tmp_path, lambda: ne.merge_checkpoint(base, adapter, output))
    assert isinstance(error, MismatchError)
    assert error.field == "model.layers.0.mlp.experts"
    assert message in str(error)


def test_factors_that_fit_in_two_ways_are_refused(tmp_path, monkeypatch):
    """Square matrices say neither which stack is whose nor which axis is which."""
    monkeypatch.setitem(STACKS, "gate_up_proj", (HIDDEN, HIDDEN))
    monkeypatch.setitem(STACKS, "down_proj", (HIDDEN, HIDDEN))
    base = base_of(tmp_path / "b.safetensors")
    adapter = ne.load_adapter(adapter_files().write(tmp_path / "a"), moe_layout="peft")
    with pytest.raises(MismatchError, match="in 4 ways, so it is unclear"):
        ne.open_merged(base, adapter)


STEM = PREFIX + "model.layers.0.mlp.experts.lora_"
BAD = {
    "no B": ({STEM + "B.weight": ...}, {}, "has no partner lora_B.weight"),
    "B of another rank": ({STEM + "B.weight": np.ones((10, 5), F)}, {}, "is 10 x 5, of rank 5"),
    "bias": ({STEM + "B.bias": np.ones(10, F)}, {}, "for which embeddings, biases"),
    "DoRA": ({}, {"use_dora": True}, "for which embeddings, biases, DoRA"),
    "turned": (
        {},
        {"fan_in_fan_out": True},
        "fan_in_fan_out are not supported; merge it with PEFT",
    ),
    "layout": ({}, {"lora_B_layout": "sideways"}, "lora_B_layout: is 'sideways', must be one of"),
    "NaN": ({STEM + "A.weight": np.full((6, 7), np.nan, F)}, {}, "infinite or NaN value"),
}


def test_parameters_named_by_one_part_are_of_experts(tmp_path):
    """As PEFT names them in adapters of models that had no stacks before."""
    base = base_of(tmp_path / "b.safetensors")
    files = adapter_files().with_fields(target_parameters=["gate_up_proj", "down_proj"])
    adapter = ne.load_adapter(files.write(tmp_path / "a"), moe_layout="peft")
    with ne.open_merged(base, adapter) as found:
        assert same(dict(found), expected(base))


@pytest.mark.parametrize("case", BAD)
def test_bad_factors_are_refused(tmp_path, case):
    tensors, fields, message = BAD[case]
    files = adapter_files().with_tensors(tensors)
    folder = files.with_fields(**{"lora_B_layout": "rank_major", **fields}).write(tmp_path / "a")
    assert message in str(refusal(tmp_path, lambda: ne.load_adapter(folder)))


def test_exports_are_refused(tmp_path):
    base = base_of(tmp_path / "b.safetensors")
    adapter = ne.load_adapter(adapter_files().write(tmp_path / "a"), moe_layout="peft")
    for given in (base, None):
        with pytest.raises(NolaEdgeError, match="is a LoRA of stacked experts"):
            ne.export_lora(adapter, given, tmp_path / "x")
    assert not (tmp_path / "x").exists()
