"""What cannot be merged is refused in the words of the Python tool, and changes nothing."""

import dataclasses
import json
import os

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.adapters.tensor_parts import OTHERWISE, TensorPart
from nola_edge.demo.synthetic import trained_adapter
from tests.conftest import MODULES, load_all, snapshot, tiny_adapter, write_safetensors

#: What the Python tool adds for those who call it from Python.
_PYTHON = " (in Python check_base=False)"


class Case:
    """A base and an adapter that both tools refuse."""

    def __init__(self, nola, python_tool, folder, base):
        self.tools = (nola, python_tool)
        self.folder = folder
        self.base = base

    def pack(self, adapter, name="adapter.nola"):
        path = self.folder / name
        adapter.pack(path)
        return path

    def says(self, *arguments, alike=True):
        """Return what the program says, which may have to be what the Python tool says."""
        before = snapshot(self.folder)
        said = [tool.refused("merge", *arguments) for tool in self.tools]
        assert snapshot(self.folder) == before
        if alike:
            assert said[0] == said[1].replace("nola-edge merge", "nola merge").replace(_PYTHON, "")
        return said[0]


@pytest.fixture
def case(nola, python_tool, tiny, tmp_path):
    return Case(nola, python_tool, tmp_path, tiny[0])


def with_config(adapter, **fields):
    return ne.Adapter(dataclasses.replace(adapter.config, **fields), adapter.modules)


def change(base, name, make):
    """Write the tiny base as a single file, with another tensor."""
    path = base.parent / "changed.safetensors"
    tensors = load_all(base)
    tensors[name] = make(tensors[name])
    write_safetensors(path, tensors)
    return path


def test_names_of_outputs(case):
    adapter = case.pack(tiny_adapter())
    file = change(case.base, "norm.weight", lambda tensor: tensor)
    folder = case.folder
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("nowhere")
    (folder / "full").mkdir()
    (folder / "full" / "notes").write_text("mine")
    (folder / "text.safetensors").write_text("mine")
    cases = [
        (case.base, "-"), (case.base, ""), (case.base, folder / "out.safetensors"),
        (case.base, folder / "a b.gguf"), (case.base, folder / "pipe"), (case.base, "/dev/null"),
        (case.base, folder / "link"), (case.base, folder / "full"), (case.base, adapter),
        (case.base, case.base), (case.base, case.base / "inside"), (case.base, folder),
        (case.base, adapter / "below"), (file, folder / "out"), (file, folder / "out.bin"),
        (file, folder / "full"), (file, f"{folder}/new/"), (file, file),
        (file, folder / "text.safetensors"),
    ]  # fmt: skip
    for base, output in cases:
        for options in ([], ["--force"]):
            case.says(base, adapter, "-o", output, *options)


def test_what_is_no_base_or_no_adapter(case):
    adapter = case.pack(tiny_adapter())
    folder = case.folder
    out = ["-o", folder / "out"]
    (folder / "empty").mkdir()
    (folder / "weights").mkdir()
    (folder / "weights" / "pytorch_model.bin").write_text("x")
    (folder / "two").mkdir()
    for name in ("a", "b"):
        write_safetensors(folder / "two" / f"{name}.safetensors", {"x": np.ones(2, np.float32)})
    case.says(folder / "no", adapter, *out)
    case.says(case.base, folder / "no", *out)
    for name in ("empty", "weights", "two", "adapter"):
        case.says(folder / name, adapter, *out)
    case.says(case.base, f"{adapter}=x", *out)
    case.says(case.base, f"{adapter}=1e39", *out)
    case.says(case.base, adapter, *out, "--expect", "abc")
    case.says(case.base, adapter)
    case.says()
    case.says(case.base)
    (folder / "broken.safetensors").write_bytes(b"\xff" * 20)
    case.says(folder / "broken.safetensors", adapter, "-o", folder / "out.safetensors")
    case.says(folder / "broken.safetensors", adapter, *out)
    case.says(case.base, folder / "broken.safetensors", *out, alike=False)


@pytest.mark.parametrize("damage", ["lost", "unnamed", "missing", "path", "no map", "no json"])
def test_an_index_that_does_not_agree(case, damage):
    adapter = case.pack(tiny_adapter())
    path = case.base / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    names = list(index["weight_map"])
    if damage == "lost":
        index["weight_map"]["more.weight"] = index["weight_map"][names[0]]
    elif damage == "unnamed":
        del index["weight_map"][names[0]]
    elif damage == "missing":
        (case.base / index["weight_map"][names[0]]).unlink()
    elif damage == "path":
        index["weight_map"][names[0]] = "../x.safetensors"
    elif damage == "no map":
        index["weight_map"] = {}
    path.write_text("{" if damage == "no json" else json.dumps(index))
    case.says(case.base, adapter, "-o", case.folder / "out", alike=damage != "no json")


def test_links_out_of_a_base(case):
    adapter = case.pack(tiny_adapter())
    (case.base / "linked.json").symlink_to(adapter)
    case.says(case.base, adapter, "-o", case.folder / "out")
    (case.base / "linked.json").unlink()
    (case.base / "folder").symlink_to(case.base / "sub")
    case.says(case.base, adapter, "-o", case.folder / "out")


def test_modules_that_are_not_there(case):
    adapter = case.pack(trained_adapter({"layers.7.q": (24, 40)}, r=2, num_basis=3))
    said = case.says(case.base, adapter, "-o", case.folder / "out", alike=False)
    assert "1 of 1 modules of" in said
    assert "have no weight here, the first is 'layers.7.q'; nearest tensors: " in said
    assert "--rename" in said


def test_names_that_fit_twice(case):
    tensors = {f"{p}{n}.weight": np.ones(s, np.float32) for p in "ab" for n, s in MODULES.items()}
    tensors = {name.replace("alayers", "a.layers").replace("blayers", "b.layers"): value
               for name, value in tensors.items()}  # fmt: skip
    base = case.folder / "twice.safetensors"
    write_safetensors(base, tensors)
    adapter = case.pack(tiny_adapter())
    said = case.says(base, adapter, "-o", case.folder / "out.safetensors", alike=False)
    assert "match this base in more than one way: adding 'a.', adding 'b.'" in said


@pytest.mark.parametrize(
    "make",
    [
        lambda tensor: tensor.astype(np.float64),
        lambda tensor: tensor.astype(np.int32),
        lambda tensor: tensor.reshape(1, 24, 40),
        lambda tensor: np.ascontiguousarray(tensor.T),
        lambda tensor: np.full_like(tensor, np.inf),
    ],
    ids=["F64", "I32", "3-D", "turned", "infinite"],
)
def test_weights_of_another_form(case, make):
    adapter = case.pack(tiny_adapter())
    base = change(case.base, "layers.1.q.weight", make)
    case.says(base, adapter, "-o", case.folder / "out.safetensors")


def test_the_wrong_base(case, tmp_path):
    adapter = case.pack(tiny_adapter(base=case.base))
    ne.merge_checkpoint(case.base, adapter, tmp_path / "merged")
    case.says(tmp_path / "merged", adapter, "-o", case.folder / "out")


def test_a_rank_that_makes_factors_larger_than_the_weight(case):
    adapter = case.pack(trained_adapter({"norm": (2, 3)}, r=65536, num_basis=2))
    base = case.folder / "long.safetensors"
    write_safetensors(base, {"norm.weight": np.zeros((2, 3000), np.float32)})
    case.says(base, adapter, "-o", case.folder / "out.safetensors")


def test_parts_that_are_not_there(case):
    adapter = tiny_adapter()
    out = ["-o", case.folder / "out"]
    for number, parts in enumerate(
        [
            {"layers.0.q": OTHERWISE},
            {"layers.0.q": TensorPart("layers.0.q.weight", (4, 28))},
            {"layers.0.q": TensorPart("layers.0.q.weight", (0, 20))},
        ]
    ):
        case.says(case.base, case.pack(with_config(adapter, tensors=parts), f"{number}.nola"), *out)
    two = {
        "layers.0.q": TensorPart("embed.weight", (0, 24)),
        "layers.1.q": TensorPart("embed.weight", (24, 48)),
    }
    mixed = case.pack(with_config(adapter, tensors=two), "mixed.nola")
    other = trained_adapter({"embed": (40, 50)}, r=2, num_basis=3, fan_in_fan_out=True)
    case.says(case.base, mixed, case.pack(other, "turned.nola"), *out)


@pytest.mark.parametrize("bias", ["all", "nola_only"])
def test_trained_biases_that_were_lost(case, bias):
    adapter = case.pack(with_config(tiny_adapter(), bias=bias))
    case.says(case.base, adapter, "-o", case.folder / "out")


def test_whole_tensors(nola, tiny, tmp_path):
    config = dataclasses.replace(tiny_adapter().config, modules_to_save=("norm",))
    whole = {"norm.weight": np.zeros(40, np.float32)}
    adapter = ne.Adapter(config, tiny_adapter().modules, whole_tensors=whole)
    adapter.pack(tmp_path / "adapter.nola")
    before = snapshot(tmp_path)
    said = nola.refused("merge", tiny[0], tmp_path / "adapter.nola", "-o", tmp_path / "out")
    assert "norm.weight: is a tensor that the adapter has as a whole" in said
    assert "use nola-edge merge" in said
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("has_output", [False, True])
@pytest.mark.parametrize(
    "config", [{"tie_word_embeddings": True}, {"architectures": ["XForCausalLM"]}]
)
def test_tied_embeddings(case, config, has_output):
    folder = case.folder / "tied"
    folder.mkdir()
    tensors = {"model.embed_tokens.weight": np.ones((30, 20), np.float32)}
    if has_output:
        tensors["lm_head.weight"] = np.ones((30, 20), np.float32)
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ["model.embed_tokens"] + ["lm_head"] * (not has_output):
        adapter = case.pack(trained_adapter({name: (30, 20)}, r=2, num_basis=3), f"{name}.nola")
        if has_output:
            assert case.tools[0]("merge", folder, adapter, "-o", case.folder / "o").returncode == 0
        else:
            case.says(folder, adapter, "-o", case.folder / "out")


@pytest.mark.parametrize("transposed", [False, True])
def test_square_layers_of_gpt2(case, transposed):
    folder = case.folder / "gpt2"
    folder.mkdir()
    name = "h.0.mlp" if transposed else "h.0.attn.c_proj"
    write_safetensors(
        folder / "model.safetensors", {f"{name}.weight": np.ones((20, 20), np.float32)}
    )
    (folder / "config.json").write_text('{"text": {"model_type": "gpt2"}}')
    adapter = trained_adapter({name: (20, 20)}, r=2, num_basis=3, fan_in_fan_out=transposed)
    case.says(folder, case.pack(adapter), "-o", case.folder / "out")


def test_folders_and_options_that_it_has_not(nola, tiny, tmp_path):
    base, folder = tiny
    tiny_adapter().pack(tmp_path / "adapter.nola")
    before = snapshot(tmp_path)
    out = ["-o", tmp_path / "out"]
    assert "nola-edge pack" in nola.refused("merge", base, folder, *out)
    for option in ("--each", "--rename=a=b", "--outtype=f16"):
        said = nola.refused("merge", base, tmp_path / "adapter.nola", *out, option)
        assert "is not in this program; use nola-edge merge of the Python package" in said
    assert snapshot(tmp_path) == before
