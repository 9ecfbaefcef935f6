"""A checkpoint of the public NOLA code is an adapter like any other, for every verb."""

import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.adapters.public_nola import drawn_factors
from nola_edge.adapters.public_nola.contents import Factor, factors_of
from nola_edge.adapters.public_nola.devices import DrawnOn
from nola_edge.dtypes import numpy_dtype
from nola_edge.errors import AdapterError, ArgumentError, MismatchError, NotFiniteError
from nola_edge.export.gguf_lora import export_gguf_lora
from nola_edge.files.tensors import ArrayTensor
from nola_edge.gguf import merge_gguf, verify_gguf
from nola_edge.testing.adapter_factors import FactorContract
from nola_edge.testing.files import AdapterFiles
from tests.adapters.public_nola.checkpoints import (
    CONFIG,
    F,
    gpt2_tensors,
    pair,
    vit_tensors,
    write_folder,
)
from tests.conftest import MODULES, load_all, snapshot, tiny_adapter, write_safetensors
from tests.gguf import test_merge as gguf
from tests.lora_folders import write_lora

PREFIX = "base_model.model."


def tiny_checkpoint(folder, dtype="F32", **options):
    """Write a checkpoint for the modules of the tiny base."""
    tensors = {}
    for number, (module, (outputs, inputs)) in enumerate(MODULES.items()):
        seeds = (number, number + 10)
        kind = numpy_dtype(dtype)
        tensors |= pair(PREFIX + module, inputs, outputs, seeds=seeds, dtype=kind, **options)
    return write_folder(folder, tensors)


def gpt2_base(path, width=8, blocks=2, dtype="F32"):
    rng = np.random.default_rng(5)
    tensors = {
        f"transformer.h.{block}.{name}.weight": rng.standard_normal(shape).astype(
            numpy_dtype(dtype)
        )
        for block in range(blocks)
        for name, shape in (
            ("attn.c_attn", (width, 3 * width)),
            ("mlp.c_fc", (width, 4 * width)),
            ("mlp.c_proj", (4 * width, width)),
        )
    }
    write_safetensors(path, tensors)
    return path


def gpt2_mlp(width=8):
    tensors = {}
    for block in range(2):
        for name, inputs, outputs, seeds in (
            ("p1_nola", width, 4 * width, (3, 4)),
            ("p2_nola", 4 * width, width, (8, 9)),
        ):
            module = f"module.transformer.h.{block}.mlp.{name}"
            tensors |= pair(module, inputs, outputs, seeds=seeds)
    return tensors


def vit_base(path, width=12, hidden=48, blocks=2):
    rng = np.random.default_rng(6)
    tensors = {"head.weight": rng.standard_normal((4, width)).astype(F)}
    for block in range(blocks):
        for name, shape in (("fc1", (hidden, width)), ("fc2", (width, hidden))):
            tensors[f"blocks.{block}.mlp.{name}.weight"] = rng.standard_normal(shape).astype(F)
    write_safetensors(path, tensors)
    return path


@pytest.fixture(params=["llama", "gpt2", "vit"])
def kind(request, tmp_path, tiny):
    """A base, a checkpoint, and how to load it."""
    if request.param == "llama":
        return tiny[0], tiny_checkpoint(tmp_path / "in"), {"drawn_on": "t4"}
    if request.param == "gpt2":
        write_safetensors(tmp_path / "in.safetensors", gpt2_tensors() | gpt2_mlp())
        options = {"drawn_on": "cpu", "lora_alpha": 4}
        return gpt2_base(tmp_path / "gpt2.safetensors"), tmp_path / "in.safetensors", options
    write_safetensors(tmp_path / "in.safetensors", vit_tensors())
    return vit_base(tmp_path / "vit.safetensors"), tmp_path / "in.safetensors", {}


def slow_factor(factor, drawn_on):
    """Return a factor by its definition: all random matrices at once, and one sum in order."""
    generator = DrawnOn.parse(drawn_on).generator(factor.seed)
    generator.skip(factor.before)
    basis = np.concatenate(list(generator.uniform(factor.drawn, factor.bound, factor.dtype)))
    basis = basis.reshape(factor.num_basis, *factor.shape)
    kind = numpy_dtype(factor.dtype)
    total = np.zeros(factor.shape)
    for coefficient, matrix in zip(factor.coefficients.astype(float), basis, strict=True):
        total += coefficient * (matrix * F(factor.gain)).astype(kind).astype(float)
    found = total.astype(F).astype(kind).astype(F)
    if factor.weight is not None:
        found = (found + factor.weight.array().astype(F)).astype(kind).astype(F)
    return found.T if factor.transposed else found


class TestPublicNola(FactorContract):
    """The parts of the contract that load an adapter without being told its device are not run."""

    def files(self, shapes, seed=0):
        tensors = {}
        for number, (module, (outputs, inputs)) in enumerate(shapes.items()):
            seeds = (number, number + 10)
            tensors |= pair(PREFIX + module, inputs, outputs, seeds=seeds)
        return AdapterFiles(CONFIG, tensors)

    def product(self, files, module, shape):
        a, b = (
            slow_factor(
                Factor(
                    name="x",
                    seed=int(files.tensors[f"{PREFIX}{module}.lora_{label}.seed"][0]),
                    shape=files.tensors[f"{PREFIX}{module}.lora_{label}.weight"].shape,
                    bound=1.0,
                    coefficients=files.tensors[f"{PREFIX}{module}.lora_{label}.coefficients"],
                    gain=1 / 6**0.5,
                    weight=ArrayTensor(files.tensors[f"{PREFIX}{module}.lora_{label}.weight"]),
                ),
                "t4",
            )
            for label in "AB"
        )
        return b, a, CONFIG["lora_alpha"] / 2

    @pytest.fixture
    def adapter(self, written):
        return ne.load_adapter(written[1], drawn_on="t4")

    def test_what_it_holds_is_what_it_says(self, written):
        """Here it is what it may hold, as factors are drawn when they are asked for."""
        opened = len(os.listdir("/dev/fd"))
        adapter = ne.load_adapter(written[1], drawn_on="t4")
        coefficients = sum(f.coefficients.nbytes for f in factors_of(adapter.modules))
        factors = sum(4 * f.size for f in factors_of(adapter.modules))
        assert adapter.held_bytes == coefficients + factors
        adapter.factor_a("layers.0.q", 40)
        assert len(os.listdir("/dev/fd")) == opened + adapter.open_files
        del adapter
        assert len(os.listdir("/dev/fd")) == opened


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("drawn_on", ["cpu", "a100", "3x512"])
def test_factors_are_sums_of_the_random_matrices(tmp_path, dtype, drawn_on):
    folder = tiny_checkpoint(tmp_path / "in", dtype, num_basis=6)
    adapter = ne.load_adapter(folder, drawn_on=drawn_on)
    for module, layer in adapter.modules.items():
        (part,) = layer.parts
        outputs, inputs = adapter.shape(module)
        a, b = adapter.factor_a(module, inputs), adapter.factor_b(module, outputs)
        assert np.array_equal(a, slow_factor(part.a, drawn_on))
        assert np.array_equal(b, slow_factor(part.b, drawn_on))


def test_query_and_value_act_on_their_thirds(tmp_path):
    write_safetensors(tmp_path / "in.safetensors", gpt2_tensors())
    adapter = ne.load_adapter(tmp_path / "in.safetensors", drawn_on="cpu", lora_alpha=3)
    module = "transformer.h.1.attn.c_attn"
    query, value = adapter.modules[module].parts
    b = adapter.factor_b(module, 24)
    assert b.shape == (24, 4)
    assert np.array_equal(b[:8, :2], slow_factor(query.b, "cpu"))
    assert np.array_equal(b[16:, 2:], slow_factor(value.b, "cpu"))
    assert not b[8:16].any()
    assert not b[:8, 2:].any()
    assert not b[16:, :2].any()
    assert adapter.scaling_of(module) == 1.5
    assert adapter.fan_in_fan_out


@given(data=st.data())
def test_any_window(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("windows")
    write_safetensors(folder / "in.safetensors", gpt2_tensors() | gpt2_mlp())
    adapter = ne.load_adapter(folder / "in.safetensors", drawn_on="cpu", lora_alpha=1)
    module = data.draw(st.sampled_from(list(adapter.modules)))
    outputs, inputs = adapter.shape(module)
    rank = adapter.rank(module)
    a, b = adapter.factor_a(module, inputs), adapter.factor_b(module, outputs)
    for whole, draw, (height, width) in (
        (a, adapter.factor_a, (rank, inputs)),
        (b, adapter.factor_b, (outputs, rank)),
    ):
        rows, cols = (
            tuple(sorted(data.draw(st.tuples(*[st.integers(0, length)] * 2))))
            for length in (height, width)
        )
        features = inputs if whole is a else outputs
        threads = data.draw(st.sampled_from([None, 1, 3]))
        found = draw(module, features, num_threads=threads, rows=rows, cols=cols)
        assert np.array_equal(found, whole[slice(*rows), slice(*cols)])


def test_merging_is_merging_the_exact_lora(tmp_path, kind):
    base, source, options = kind
    adapter = ne.load_adapter(source, **options)
    suffix = "" if base.is_dir() else ".safetensors"
    ne.export_lora(adapter, None, tmp_path / "lora")
    outputs = [tmp_path / f"{name}{suffix}" for name in ("direct", "detour")]
    for output, given_ in zip(outputs, (adapter, tmp_path / "lora"), strict=True):
        report = ne.merge_checkpoint(base, given_, output)
        assert report.merged == len(adapter.modules)
        told = "no file confirms" in str(report.notes)
        assert told == (given_ is adapter and bool(options))
    direct, detour = (load_all(output) for output in outputs)
    assert all(np.array_equal(direct[n].view(np.uint8), detour[n].view(np.uint8)) for n in detour)
    changed = [n for n, values in load_all(base).items() if not np.array_equal(values, direct[n])]
    assert len(changed) == len(adapter.modules)
    assert ne.verify_checkpoint(outputs[1], base, adapter).identical


def test_every_way_to_merge_gives_the_same_bits(tmp_path, kind):
    base, source, options = kind
    adapter = ne.load_adapter(source, **options)
    suffix = "" if base.is_dir() else ".safetensors"
    ne.merge_checkpoint(base, adapter, tmp_path / f"one{suffix}")
    wanted = load_all(tmp_path / f"one{suffix}")
    ne.merge_each(base, {"x": adapter, "y": adapter}, tmp_path / "each", shard="1/2")
    each = load_all(tmp_path / "each" / f"y{suffix}")
    held = load_all(base)
    switch = ne.ArraySwitch(held, base)
    switch.add("x", adapter)
    switch.use("x")
    with ne.open_merged(base, adapter, num_threads=1) as opened:
        for name, values in wanted.items():
            for other in (each[name], held[name], opened[name]):
                assert np.array_equal(values.view(np.uint8), other.view(np.uint8))
    switch.use(None)
    assert all(np.array_equal(values, held[name]) for name, values in load_all(base).items())


def test_public_checkpoint_lora_and_nola_in_one_rounding(tmp_path, tiny):
    base, nola = tiny
    public = ne.load_adapter(tiny_checkpoint(tmp_path / "in"), drawn_on="cpu")
    ne.export_lora(public, None, tmp_path / "exact")
    lora = write_lora(tmp_path / "lora")
    for name, first in (("mixed", public), ("loras", tmp_path / "exact")):
        adapters = [(first, 0.5), (lora, -1.0), (nola, 2.0)]
        ne.merge_checkpoint(base, adapters, tmp_path / name)
    assert snapshot(tmp_path / "mixed") == snapshot(tmp_path / "loras")
    ne.export_lora([public, lora], base, tmp_path / "joined")
    assert ne.load_adapter(tmp_path / "joined").rank("layers.0.q") == 6


@pytest.mark.parametrize("outtype", ["F32", "Q8_0"])
def test_into_gguf_and_as_gguf_too(tmp_path, outtype):
    base = gguf.write(tmp_path / "base.gguf", gguf.arrays_of("F32"))
    tensors = {}
    for number, (module, (outputs, inputs)) in enumerate(gguf.MODULES.items()):
        tensors |= pair(PREFIX + module, inputs, outputs, seeds=(number, number + 50))
    public = ne.load_adapter(write_folder(tmp_path / "in", tensors), drawn_on="a100")
    lora = ne.export_lora(public, None, tmp_path / "lora")
    for name, adapter in (("direct", public), ("detour", lora)):
        merge_gguf(base, adapter, tmp_path / f"{name}.gguf", outtype=outtype)
        export_gguf_lora(adapter, base, tmp_path / f"{name}-lora.gguf")
    for name in ("{}.gguf", "{}-lora.gguf"):
        direct, detour = (tmp_path / name.format(way) for way in ("direct", "detour"))
        assert direct.read_bytes() == detour.read_bytes()
    assert verify_gguf(tmp_path / "direct.gguf", base, public, outtype=outtype).identical


@pytest.mark.parametrize("num_threads", [1, 3])
def test_every_random_matrix_is_drawn_once(tmp_path, kind, num_threads):
    base, source, options = kind
    adapter = ne.load_adapter(source, **options)
    ne.export_lora(adapter, base, tmp_path / "sized")  # the base says how large all is
    adapter = ne.load_adapter(source, **options)
    drawn = []
    adapter.drawn.advance = drawn.append
    with ne.open_merged(base, adapter, num_threads=num_threads) as merged:
        for name in merged.plan.merges:
            merged[name]
    assert sum(drawn) == adapter.drawn.elements
    shared = {factor.basis for factor in factors_of(adapter.modules)}
    assert sum(drawn) == sum(basis_size(basis) for basis in shared)


def basis_size(basis):
    _, _, count, (rows, cols), _, _ = basis
    return count * rows * cols


def test_the_same_bits_where_nothing_can_be_kept(tmp_path, monkeypatch, kind):
    base, source, options = kind
    adapter = ne.load_adapter(source, **options)
    ne.export_lora(adapter, base, tmp_path / "kept")
    monkeypatch.setattr(drawn_factors, "KEPT_BYTES", 0)
    monkeypatch.setattr(drawn_factors, "_DRAWN_BYTES", 1)
    ne.export_lora(ne.load_adapter(source, **options), base, tmp_path / "drawn again")
    assert snapshot(tmp_path / "kept") == snapshot(tmp_path / "drawn again")


def test_memory_does_not_grow_with_the_model(tmp_path, monkeypatch):
    """Thirty factors of 256 kB each, of which two megabytes are kept."""
    monkeypatch.setattr(drawn_factors, "KEPT_BYTES", 2 << 20)
    rank, width = 64, 1024
    tensors, base = {}, {}
    for number in range(15):
        seeds = (number, number + 100)
        tensors |= pair(f"{PREFIX}layers.{number}", width, width, rank, 1, seeds)
        base[f"layers.{number}.weight"] = np.zeros((width, width), numpy_dtype("BF16"))
    write_folder(tmp_path / "in", tensors, r=rank, nola_num_basis=1)
    write_safetensors(tmp_path / "base.safetensors", base)
    adapter = ne.load_adapter(tmp_path / "in", drawn_on="cpu")
    tracemalloc.start()
    try:
        output = tmp_path / "out.safetensors"
        ne.merge_checkpoint(tmp_path / "base.safetensors", adapter, output, num_threads=1)
        current, peak = tracemalloc.get_traced_memory()
        del adapter
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert peak < 16_000_000
    assert 1_500_000 < current - left < 3_000_000


def test_the_base_says_how_wide_a_vision_transformers_mlp_is(tmp_path):
    write_safetensors(tmp_path / "in.safetensors", vit_tensors())
    narrow, wide = (
        vit_base(tmp_path / f"{hidden}.safetensors", hidden=hidden) for hidden in (40, 48)
    )
    adapter = ne.load_adapter(tmp_path / "in.safetensors")
    with ne.open_merged(narrow, adapter) as merged:
        assert adapter.shape("blocks.1.mlp.fc2") == (12, 40)
        (part,) = adapter.modules["blocks.1.mlp.fc2"].parts
        delta = slow_factor(part.b, "cpu").astype(float) @ slow_factor(part.a, "cpu") / 3
        found = merged["blocks.1.mlp.fc2.weight"] - load_all(narrow)["blocks.1.mlp.fc2.weight"]
        assert np.abs(found - delta).max() < 1e-5 * np.abs(delta).max()
    before = snapshot(tmp_path)
    with pytest.raises(MismatchError, match="is 48 x 12 here") as caught:
        ne.merge_checkpoint(wide, adapter, tmp_path / "out.safetensors")
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before
    fresh = ne.load_adapter(tmp_path / "in.safetensors")
    assert ne.merge_checkpoint(wide, fresh, tmp_path / "out.safetensors").merged == 4


def test_a_head_that_no_merge_can_use_is_named_and_exported(tmp_path):
    write_safetensors(tmp_path / "in.safetensors", vit_tensors())
    base = vit_base(tmp_path / "base.safetensors")
    report = ne.merge_checkpoint(base, tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    (note,) = report.notes
    assert note.startswith(f"{tmp_path}/in.safetensors: its trained head is not merged, as ")
    merged = load_all(tmp_path / "out.safetensors")
    assert np.array_equal(merged["head.weight"], load_all(base)["head.weight"])
    ne.export_lora(tmp_path / "in.safetensors", base, tmp_path / "lora")
    head = load_all(tmp_path / "lora" / "head.safetensors")["head.weight"]
    assert np.array_equal(head, load_all(tmp_path / "in.safetensors")["fc_12in_4out"])


def refused(tmp_path, call, error, *messages):
    before = snapshot(tmp_path)
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert all(message in text for message in messages), text
    assert text.isprintable()
    assert snapshot(tmp_path) == before


def test_without_the_device_a_checkpoint_is_recognised_and_refused(tmp_path, tiny):
    base = tiny[0]
    tiny_checkpoint(tmp_path / "in")
    write_safetensors(tmp_path / "gpt2.safetensors", gpt2_tensors())
    messages = ("drawn_on: is needed for a checkpoint of the public NOLA code", "--drawn-on a100")

    def merge():
        ne.merge_checkpoint(base, tmp_path / "in", tmp_path / "out")

    refused(tmp_path, merge, ArgumentError, str(tmp_path / "in"), *messages)

    def load():
        ne.load_adapter(tmp_path / "gpt2.safetensors", lora_alpha=4)

    refused(tmp_path, load, ArgumentError, *messages)


def test_a_folder_without_a_configuration(tmp_path):
    folder = tiny_checkpoint(tmp_path / "in")
    (folder / "adapter_config.json").unlink()
    adapter = ne.load_adapter(folder, drawn_on="cpu", lora_alpha=6)
    assert adapter.scaling_of("layers.0.q") == 3.0
    messages = ("lora_alpha: is needed, because no file records it",)
    refused(tmp_path, lambda: ne.load_adapter(folder, drawn_on="cpu"), ArgumentError, *messages)


@pytest.mark.parametrize("option", [{"drawn_on": "a100"}, {"lora_alpha": 2.0}])
@pytest.mark.parametrize("other", ["nola", "lora", "packed"])
def test_what_is_said_of_public_checkpoints_fits_no_other_adapter(tmp_path, option, other):
    tiny_adapter().save(tmp_path / "nola")
    write_lora(tmp_path / "lora")
    tiny_adapter().pack(tmp_path / "packed")
    refused(
        tmp_path,
        lambda: ne.load_adapter(tmp_path / other, **option),
        ArgumentError,
        f"{tmp_path / other}: {next(iter(option))}: is for checkpoints of the public NOLA code",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuda", "is 'cuda'; give cpu, or the GPU by its name (a10, a10g"),
        ("", "is ''; give cpu"),
        ("cpu,older-torch", "is 'cpu,older-torch'; give cpu"),
        ("a100,new-torch", "is 'a100,new-torch'; give cpu"),
        ("84x", "is '84x'; give cpu"),
        ("0x2048", "is '0x2048'; give cpu, or the GPU by its name"),
        ("84x99999", "or by its size, such as 84x1536 for 84 multiprocessors of 1536 threads"),
        (7, "drawn_on: "),
        ("\x1b[2J", "is '\\x1b[2J'; give cpu"),
    ],
)
def test_a_device_that_is_not_known(tmp_path, text, message):
    folder = tiny_checkpoint(tmp_path / "in")
    refused(tmp_path, lambda: ne.load_adapter(folder, drawn_on=text), ArgumentError, message)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("CPU", "a CPU"),
        ("A100", "a GPU of 864 blocks (a100)"),
        ("108x2048", "a GPU of 864 blocks (a100)"),
        ("84x1536,older-torch", "a GPU of 504 blocks (a40, rtx-a6000), older torch"),
    ],
)
def test_a_device_that_is_known(text, said):
    assert str(DrawnOn.parse(text)) == said


def test_a_factor_too_large_for_its_dtype_leaves_no_output(tmp_path, tiny):
    folder = tiny_checkpoint(tmp_path / "in")
    tensors = load_all_of(folder)
    tensors[f"{PREFIX}layers.0.v.lora_A.coefficients"][:] = 3e38
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    adapter = ne.load_adapter(folder, drawn_on="cpu")
    refused(
        tmp_path,
        lambda: ne.merge_checkpoint(tiny[0], adapter, tmp_path / "out"),
        NotFiniteError,
        "layers.0.v.lora_A: is too large for F32",
    )


def test_a_checkpoint_that_changes_while_it_is_merged(tmp_path, tiny):
    folder = tiny_checkpoint(tmp_path / "in")
    adapter = ne.load_adapter(folder, drawn_on="cpu")
    path = folder / "adapter_model.safetensors"
    with path.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\1")
    refused(
        tmp_path,
        lambda: ne.merge_checkpoint(tiny[0], adapter, tmp_path / "out"),
        ne.NolaEdgeError,
        "changed",
    )


def load_all_of(folder):
    return load_all(folder / "adapter_model.safetensors")


def test_a_base_of_another_shape(tmp_path, tiny):
    tensors = pair(f"{PREFIX}layers.0.q", 41, 24)
    folder = write_folder(tmp_path / "in", tensors)
    adapter = ne.load_adapter(folder, drawn_on="cpu")
    message = "is 24 x 40 here (out x in), but the factors"
    refused(
        tmp_path,
        lambda: ne.merge_checkpoint(tiny[0], adapter, tmp_path / "out"),
        MismatchError,
        message,
    )


def test_exporting_needs_a_base_where_the_adapter_says_no_sizes(tmp_path, tiny):
    lora = write_lora(tmp_path / "lora")
    ne.export_lora(lora, None, tmp_path / "again", dtype="BF16")
    assert ne.load_adapter(tmp_path / "again").shape("layers.0.q") == (24, 40)
    for given_, message in ((tiny[1], "do not say how large"), ([lora, lora], "are joined")):
        refused(
            tmp_path,
            lambda given_=given_: ne.export_lora(given_, None, tmp_path / "out"),
            ArgumentError,
            "base: is needed",
            message,
        )


def test_a_file_that_is_no_adapter_stays_refused_by_name(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"x": np.ones(3, F)})
    refused(tmp_path, lambda: ne.load_adapter(tmp_path / "x.safetensors"), AdapterError, "packed")
