"""What a merged folder holds beside the merged weights."""

import json
import os
import shutil

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.errors import NolaEdgeError
from tests.conftest import load_all, tiny_adapter, write_safetensors
from tests.merge.test_whole_tensors import whole_of

F = np.float32


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_weights_of_other_parts_stay_with_the_model(tiny, tmp_path):
    base, adapter = tiny
    (base / "2_Dense").mkdir()
    write_safetensors(
        base / "2_Dense" / "model.safetensors", {"linear.weight": np.ones((2, 40), F)}
    )
    (base / "modules.json").write_text('[{"path": ""}, {"path": "2_Dense"}]')
    before = files(base)
    report = ne.merge_checkpoint(base, adapter, tmp_path / "out")
    assert report.carried_weights == ("2_Dense/model.safetensors",)
    assert report.left_behind == ()
    assert files(tmp_path / "out") == before
    name = "2_Dense/model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    ne.merge_checkpoint(base, tiny_adapter(seed=4), tmp_path / "out", force=True)
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("name", ["config.json", "sub/part.safetensors"])
def test_a_companion_that_changes_meanwhile(tiny, tmp_path, name, gone):
    write_safetensors(tiny[0] / "sub" / "part.safetensors", {"linear.weight": np.ones((2, 3), F)})

    def change(_):
        if gone:
            (tiny[0] / name).unlink(missing_ok=True)
        else:
            os.utime(tiny[0] / name, ns=(1, 1))

    with pytest.raises(NolaEdgeError, match=name):
        ne.merge_checkpoint(*tiny, tmp_path / "out", progress=change)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


@pytest.mark.parametrize("name", ["both", "both/french"])
def test_an_adapter_beside_its_base(tiny, tmp_path, name):
    """Loaders take a folder with an adapter_config.json at its top for an adapter."""
    base, adapter = tiny
    base = base.rename(tmp_path / "both")
    before = files(base)
    shutil.copytree(adapter, tmp_path / name, dirs_exist_ok=True)
    report = ne.merge_checkpoint(base, tmp_path / name, tmp_path / "out")
    own = {"adapter_config.json", "adapter_model.safetensors"}
    if name == "both":
        assert set(report.left_behind) == own
        assert files(tmp_path / "out") == before
    else:
        assert report.left_behind == ()
        assert files(tmp_path / "out") == before | {f"french/{file}" for file in own}
    ne.merge_checkpoint(tmp_path / "both", adapter, tmp_path / "out", force=True)


def test_another_name_of_the_index_stays(tiny, tmp_path):
    base, _ = tiny
    name = "diffusion_pytorch_model.safetensors.index.json"
    (base / "model.safetensors.index.json").rename(base / name)
    adapter = whole_of("classifier.weight", np.ones((3, 40), F))
    ne.merge_checkpoint(base, adapter, tmp_path / "out")
    ne.merge_checkpoint(base, adapter, tmp_path / "out", force=True)
    assert files(tmp_path / "out") == files(base)
    assert load_all(tmp_path / "out")["classifier.weight"].shape == (3, 40)
    before, after = (json.loads((folder / name).read_text()) for folder in (base, tmp_path / "out"))
    added = 3 * 40 * 4
    assert after["metadata"]["total_size"] == before["metadata"]["total_size"] + added
    assert set(after["weight_map"]) - set(before["weight_map"]) == {"classifier.weight"}
