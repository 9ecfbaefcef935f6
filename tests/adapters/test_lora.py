"""LoRA holds what every method must; its patterns, and what else is refused, with one line each."""

from __future__ import annotations

import json
import random
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge import Adapter
from nola_edge.adapters import load_adapter
from nola_edge.adapters.lora import LoraAdapter
from nola_edge.adapters.patterns import PatternTable, why_unusable
from nola_edge.adapters.peft_folder import CONFIG_NAME, PREFIX, WEIGHTS_NAME
from nola_edge.errors import AdapterError, NolaEdgeError
from nola_edge.testing import AdapterContract, AdapterFiles
from tests.conftest import load_all, snapshot, tiny_adapter, write_safetensors
from tests.fuzz.mutate import mutated_json
from tests.lora_folders import factors, lora_config, write_lora

F = np.float32
FIRST = PREFIX + "layers.0.q"
A, B = FIRST + ".lora_A.weight", FIRST + ".lora_B.weight"


class TestLora(AdapterContract):
    required_fields = ("r", "lora_alpha")
    bad_fields: ClassVar = {
        "r": [0, "4", True],
        "lora_alpha": ["8", True, 1e31],
        "use_rslora": ["yes"],
        "bias": ["some"],
        "modules_to_save": ["head"],
        "rank_pattern": [{"q": 0}, ["q"]],
        "alpha_pattern": [{"q": "4"}, ["q"]],
        "lora_bias": [1],
        "use_dora": ["no"],
    }

    def files(self, shapes, seed=0):
        return AdapterFiles(lora_config(lora_alpha=5), factors(shapes, seed=seed))

    def product(self, files, module, shape):
        a, b = (files.tensors[f"{PREFIX}{module}.lora_{x}.weight"] for x in "AB")
        return b.astype(F), a.astype(F), 5 / 4


class TestHalfPrecisionWithPatterns(TestLora):
    """rsLoRA whose ranks and scalings differ from module to module."""

    ranks: ClassVar = {"layers.0.q": 2, "layers.0.v": 3, "layers.1.q": 2}
    bad_fields: ClassVar = {"use_rslora": ["yes"]}

    def files(self, shapes, seed=0):
        fields = {
            "r": 8,
            "use_rslora": True,
            "lora_alpha": 5,
            "rank_pattern": {"q": 2, r"layers\.\d+\.v": 3, "layers.1.q": 7},
            "alpha_pattern": {"^layers.1.q": 3},
        }
        return AdapterFiles(lora_config(**fields), factors(shapes, self.ranks, seed, "BF16"))

    def product(self, files, module, shape):
        b, a, _ = super().product(files, module, shape)
        return b, a, {"layers.1.q": 3}.get(module, 5) / self.ranks[module] ** 0.5


def test_the_method_decides_who_reads(tmp_path):
    tiny_adapter().save(tmp_path / "n")
    tiny_adapter().pack(tmp_path / "n.nola")
    assert isinstance(ne.load_adapter(tmp_path / "n"), Adapter)
    assert isinstance(ne.load_adapter(tmp_path / "n.nola"), Adapter)
    assert isinstance(ne.load_adapter(write_lora(tmp_path / "l")), LoraAdapter)
    with pytest.raises(AdapterError, match="peft_type: is 'LORA', must be 'NOLA'"):
        Adapter.load(tmp_path / "l")


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (None, "peft_type: is missing, but only adapters of NOLA, LORA, TINYLORA and VERA are"),
        ("lora", "are merged here; did you mean 'LORA'?"),
        ("LORAA", "did you mean 'LORA'?"),
        ("LOHA", "merge it with PEFT"),
    ],
)
def test_methods_that_nobody_reads(tmp_path, method, said):
    folder = write_lora(tmp_path / "l")
    config = json.loads((folder / CONFIG_NAME).read_text())
    config["peft_type"] = method
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / CONFIG_NAME).write_text(json.dumps(kept))
    before = snapshot(tmp_path)
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder)
    assert said in str(caught.value)
    assert snapshot(tmp_path) == before


NAMES = st.lists(st.sampled_from(["a", "b", "ab", "0", "q_proj"]), min_size=1, max_size=4)


@given(st.lists(NAMES.map(".".join), max_size=4, unique=True), NAMES.map(".".join))
def test_plain_patterns_match_whole_parts_from_the_end(keys, module):
    """Of names without special characters, each is a whole ending of the module that it matches."""
    table = PatternTable({key: key for key in keys}, None)
    endings = [module == key or module.endswith("." + key) for key in keys]
    assert table[module] == next((k for k, hit in zip(keys, endings, strict=True) if hit), None)


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|aa)*", "(?=a)a", "a*a*a*a*", "a**", "(", "x{2}{3}", "a" * 1001]
)
def test_patterns_that_could_take_forever_are_not_tried(pattern):
    assert why_unusable(pattern) is not None


@pytest.mark.parametrize(
    "pattern", ["q_proj", r"layers\.(0|1|2)\..*_proj", r"^model\.layers\.\d+\.mlp", "(?:a|b)?[*+]"]
)
def test_ordinary_patterns_are(pattern):
    assert why_unusable(pattern) is None


def edit_config(**fields):
    return lambda folder: (folder / CONFIG_NAME).write_text(json.dumps(lora_config(**fields)))


def edit_tensors(change):
    def edit(folder):
        tensors = load_all(folder / WEIGHTS_NAME)
        change(tensors)
        write_safetensors(folder / WEIGHTS_NAME, tensors)

    return edit


def put(name, values):
    return edit_tensors(lambda t: t.__setitem__(name, values))


def rename(old, new):
    return edit_tensors(lambda t: t.__setitem__(new, t.pop(old)))


def biased(folder):
    edit_config(lora_bias=True)(folder)
    put(FIRST + ".lora_B.bias", np.zeros(24, F))(folder)


BAD = {
    "bias twice": (edit_config(bias="all", lora_bias=True), "together with lora_bias"),
    "slow pattern": (edit_config(rank_pattern={"(a+)+b": 4}), "could take too long to match"),
    "no pattern": (edit_config(alpha_pattern={"(": 4}), "is not a regular expression"),
    "DoRA": (edit_config(use_dora=True), "has no lora_magnitude_vector beside it, which use_dora"),
    "aLoRA": (edit_config(alora_invocation_tokens=[1]), "depends on the input"),
    "arrow": (edit_config(arrow_config={"top_k": 3}), "depends on the input"),
    "QALoRA": (edit_config(use_qalora=True), "use_qalora: is True: its A is grouped"),
    "experts": (edit_config(target_parameters=["mlp.experts.up"]), "none of its factors are here"),
    "replication": (edit_config(layer_replication=[[0, 4]]), "repeated layers"),
    "tokens": (edit_config(trainable_token_indices=[1, 2]), "rows of the embedding"),
    "tied": (edit_config(ensure_weight_tying=True), "input and output share one adapter"),
    "PiSSA": (
        edit_config(init_lora_weights="pissa_niter_4"),
        "this initialisation changes the base",
    ),
    "OLoRA": (edit_config(init_lora_weights="olora"), "path_initial_model_for_weight_conversion"),
    "another rank": (
        edit_config(r=8),
        "is 4 x 40, of rank 4; adapter_config.json says rank 8 (r, or rank_pattern)",
    ),
    "no B": (edit_tensors(lambda t: t.pop(B)), "has no partner lora_B.weight"),
    "no A": (edit_tensors(lambda t: t.pop(A)), "has no partner lora_A.weight"),
    "halves of two kinds": (rename(B, FIRST + ".lora_embedding_B"), "has no partner"),
    "ranks of the halves": (put(B, np.zeros((24, 3), F)), "is 24 x 3, of rank 3"),
    "vector": (put(A, np.zeros(40, F)), "has shape [40], but a factor is a matrix; it is part"),
    "convolution": (put(A, np.zeros((4, 3, 3, 3), F)), "merge LoRA of convolutions with PEFT"),
    "empty": (put(A, np.zeros((4, 0), F)), "gather the parameters and save again"),
    "adapter's name": (rename(A, FIRST + ".lora_A.default.weight"), "has no partner"),
    "adapter's name in both": (
        edit_tensors(
            lambda t: t.update(
                {
                    FIRST + f".lora_{x}.default.weight": t.pop(FIRST + f".lora_{x}.weight")
                    for x in "AB"
                }
            )
        ),
        "has an adapter's name between factor and weight",
    ),
    "no prefix": (rename(A, "layers.0.q.lora_A.weight"), "does not begin with"),
    "magnitudes": (
        put(FIRST + ".lora_magnitude_vector", np.ones(24, F)),
        "use_dora does not announce",
    ),
    "embedding": (
        put(PREFIX + "lm_head.weight", np.zeros((2, 2), F)),
        "saved an embedding as well",
    ),
    "a bias of B": (put(FIRST + ".lora_B.bias", np.zeros(24, F)), "lora_bias does not announce it"),
    "biases missing": (edit_config(lora_bias=True), "has no lora_B.bias beside it"),
    "bias of another length": (
        lambda f: (biased(f), put(FIRST + ".lora_B.bias", np.zeros(23, F))(f)),
        "has shape [23], must be [24]",
    ),
    "only a bias": (
        edit_tensors(lambda t: t.update({PREFIX + "x.lora_B.bias": np.zeros(3, F)})),
        "has no factors; the file is not complete",
    ),
    "layer and embedding": (
        edit_tensors(
            lambda t: t.update(
                {FIRST + ".lora_embedding_A": t[A], FIRST + ".lora_embedding_B": t[B]}
            )
        ),
        "the same module is also an embedding",
    ),
    "no factors": (
        lambda f: write_safetensors(f / WEIGHTS_NAME, {}),
        "has no factors (no *.lora_A.weight)",
    ),
    "frozen weight": (
        put(FIRST + ".base_layer.weight", np.zeros((3, 3), F)),
        "which its factors do not fit",
    ),
    "LoHa": (
        edit_config(peft_type="LOHA"),
        "peft_type: is 'LOHA', but only adapters of NOLA, LORA, TINYLORA and VERA",
    ),
    "OFT": (edit_config(peft_type="OFT"), "merge it with PEFT (merge_and_unload"),
    "prompts": (edit_config(peft_type="PROMPT_TUNING"), "it changes no weights"),
    "type of another type": (edit_config(peft_type=["LORA"]), "peft_type: is"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_lora_is_refused_with_one_printable_line(tmp_path, case):
    folder = write_lora(tmp_path / "a")
    edit, message = BAD[case]
    edit(folder)
    before = snapshot(tmp_path)
    with pytest.raises(NolaEdgeError) as caught:
        ne.load_adapter(folder)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "kohya's layout"),
        ("unet.down_blocks.0.to_q.lora_A.weight", "the layout of diffusers"),
    ],
)
def test_files_of_other_programs_are_refused_by_name(tmp_path, name, message):
    write_safetensors(tmp_path / "x.safetensors", {name: np.zeros((2, 2), F)})
    with pytest.raises(AdapterError, match=message) as caught:
        ne.load_adapter(tmp_path / "x.safetensors")
    assert "save_lora_adapter" in str(caught.value)


def test_a_folder_of_diffusers_is_refused_by_name(tmp_path):
    (tmp_path / "d").mkdir()
    write_safetensors(tmp_path / "d" / "pytorch_lora_weights.safetensors", {"x": np.zeros(1, F)})
    with pytest.raises(AdapterError, match="in the layout of diffusers"):
        ne.load_adapter(tmp_path / "d")


def test_copies_that_peft_saves_along_are_passed_over(tmp_path):
    """With bias="all" it saves biases of whole modules three times; one of them is trained."""
    tensors = factors()
    tensors[PREFIX + "head.bias"] = np.ones(3, F)
    tensors[PREFIX + "head.modules_to_save.bias"] = np.ones(3, F)
    tensors[PREFIX + "head.original_module.bias"] = np.zeros(3, F)
    tensors[FIRST + ".base_layer.weight"] = np.zeros((24, 40), ml_dtypes.bfloat16)
    tensors[FIRST + ".base_layer.bias"] = np.full(24, 2, F)
    folder = write_lora(tmp_path / "a", tensors, bias="all", modules_to_save=["head"])
    assert list(load_adapter(folder).whole_tensors) == ["head.bias", "layers.0.q.bias"]
    put(PREFIX + "head.modules_to_save.bias", np.zeros(3, F))(folder)
    with pytest.raises(AdapterError, match="of which it should be a copy"):
        load_adapter(folder)


def test_what_is_in_memory_does_not_grow_with_the_factors(tmp_path):
    import tracemalloc

    modules = {f"layers.{i}.q": (4096, 4096) for i in range(8)}
    folder = write_lora(tmp_path / "a", factors(modules, dict.fromkeys(modules, 16)), r=16)
    assert (folder / WEIGHTS_NAME).stat().st_size > 4 << 20
    tracemalloc.start()
    loaded = load_adapter(folder)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert loaded.held_bytes == 0
    assert held < 1 << 20
    assert peak < 10 << 20


def changed_header(data, rng):
    """Change the JSON in a safetensors file, and leave the bytes behind it as they are."""
    length = int.from_bytes(data[:8], "little")
    text = mutated_json(data[8 : 8 + length], rng)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def test_a_changed_folder_is_read_or_refused(tmp_path):
    """Whatever stands in the configuration or the header of the factors."""
    rng = random.Random(5)
    folder = write_lora(tmp_path / "a", rank_pattern={"v": 4}, alpha_pattern={"q": 3})
    plain = {name: (folder / name).read_bytes() for name in (CONFIG_NAME, WEIGHTS_NAME)}
    accepted = 0
    for _ in range(400):
        name = rng.choice([CONFIG_NAME, WEIGHTS_NAME])
        change = mutated_json if name == CONFIG_NAME else changed_header
        (folder / name).write_bytes(change(plain[name], rng))
        refusal = ""
        try:
            adapter = ne.load_adapter(folder)
            accepted += all(adapter.factor_a(module, 0).size for module in adapter.modules)
        except NolaEdgeError as error:
            refusal = str(error)
        assert refusal.isprintable()
        assert len(refusal) <= 1000
        (folder / name).write_bytes(plain[name])
    assert 50 < accepted < 350
