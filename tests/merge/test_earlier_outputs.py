"""What counts as an earlier output of a merge: for --force, and for --skip-existing."""

import shutil

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.dtypes import numpy_dtype
from nola_edge.errors import OutputError
from tests.conftest import load_all as load
from tests.conftest import snapshot, tiny_adapter, with_whole, write_safetensors, write_sharded

F = np.float32


@pytest.fixture
def single(tiny, tmp_path):
    """The tiny base as one file."""
    path = tmp_path / "single.safetensors"
    write_safetensors(path, load(tiny[0]))
    return path


def refused(tmp_path, message, call):
    before = snapshot(tmp_path)
    with pytest.raises(OutputError) as caught:
        call()
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before


def force(base, adapter, output):
    return lambda: ne.merge_checkpoint(base, adapter, output, force=True)


def test_a_file_of_an_adapter_is_not_replaced(single, tiny, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny[1], other)
    weights = other / "adapter_model.safetensors"
    refused(tmp_path, "has the name of an adapter's weights", force(single, tiny[1], weights))
    shutil.copy(single, other / "merged.safetensors")
    beside = other / "merged.safetensors"
    refused(tmp_path, "lies beside an adapter_config.json", force(single, tiny[1], beside))
    shutil.copy(weights, tmp_path / "copy.safetensors")
    message = "copy.safetensors: lacks tensor 'embed.weight', which this output has, so --force"
    refused(tmp_path, message, force(single, tiny[1], tmp_path / "copy.safetensors"))


def test_a_file_of_another_model_is_not_replaced(single, tiny, tmp_path):
    path = tmp_path / "out.safetensors"
    tensors = load(single)
    write_safetensors(path, {**tensors, "norm.weight": np.ones(41, F)})
    message = "holds tensor 'norm.weight' as [41], which this output has as [40]"
    refused(tmp_path, message, force(single, tiny[1], path))
    write_safetensors(path, {**tensors, "optimizer.state": np.ones(3, F)})
    message = "holds tensor 'optimizer.state', which this output has not"
    refused(tmp_path, message, force(single, tiny[1], path))


def test_an_output_of_a_base_in_another_dtype_is_replaced(single, tiny, tmp_path):
    path = tmp_path / "out.safetensors"
    write_safetensors(path, {name: values.astype(F) for name, values in load(single).items()})
    ne.merge_checkpoint(single, tiny[1], path, force=True)
    assert load(path)["layers.0.q.weight"].dtype == numpy_dtype("BF16")


def test_an_output_of_an_adapter_that_adds_nothing_is_replaced(single, tiny, tmp_path):
    path = tmp_path / "out.safetensors"
    ne.merge_checkpoint(single, tiny[1], path)
    head = np.ones((3, 40), F)
    adapter = with_whole(tiny_adapter(), **{"head.weight": head})
    for _ in range(2):
        ne.merge_checkpoint(single, adapter, path, force=True)
        assert np.array_equal(load(path)["head.weight"], head)
    message = "holds tensor 'head.weight', which this output has not"
    refused(tmp_path, message, force(single, tiny[1], path))


def test_an_output_in_other_shards_is_replaced(tiny, tmp_path):
    ne.merge_checkpoint(*tiny, tmp_path / "out")
    wanted = snapshot(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    write_sharded(tmp_path / "out", load(tiny[0]), 2)
    ne.merge_checkpoint(*tiny, tmp_path / "out", force=True)
    assert snapshot(tmp_path / "out") == wanted


def adapter_weights(out):
    write_safetensors(out / "adapter_model.safetensors", {"lora_A.weight": np.ones(3, F)})


def another_architecture(out):
    shutil.rmtree(out)
    write_sharded(out, {"wte.weight": np.ones((4, 4), F), "ln.weight": np.ones(4, F)}, 1)


def another_model_beside(out):
    write_safetensors(out / "mine.safetensors", {"x": np.ones(3, F)})


def broken_weights(out):
    (out / "model-00001-of-00003.safetensors").write_bytes(b"half of it")


def link(out):
    (out / "config.json").rename(out.parent / "blob")
    (out / "config.json").symlink_to(out.parent / "blob")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (adapter_weights, "holds adapter_model.safetensors, which is not part of such an output"),
        (another_architecture, "lacks tensor 'embed.weight', which this output has"),
        (another_model_beside, "holds mine.safetensors, which is not part of such an output"),
        (broken_weights, "is not a checkpoint ("),
        (link, "holds the link config.json, and an output holds none"),
    ],
)
def test_a_folder_that_is_no_output_is_not_replaced(tiny, tmp_path, change, message):
    ne.merge_checkpoint(*tiny, tmp_path / "out")
    change(tmp_path / "out")
    refused(tmp_path, f"out: {message}", force(*tiny, tmp_path / "out"))


def test_a_snapshot_of_the_hub_is_not_replaced(tiny, tmp_path):
    place = tmp_path / "hub" / "models--owner--name" / "snapshots" / "0123"
    ne.merge_checkpoint(*tiny, place)
    refused(tmp_path, "lies in the Hugging Face cache", force(*tiny, place))


def skip(base, adapters, folder):
    return lambda: ne.merge_each(base, adapters, folder, skip_existing=True)


def save_as(change):
    def changed(path):
        tensors = load(path)
        change(tensors)
        shutil.rmtree(path)
        write_sharded(path, tensors, 3)

    return changed


def with_other_metadata(path):
    shard = path / "model-00001-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b'{"format":"pt"}', b'{"format":"np"}', 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (save_as(lambda t: t.update({"norm.weight": np.ones(41, F)})),
         "it holds tensor 'norm.weight' as F32 [41], which this output has as F32 [40]"),
        (save_as(lambda t: t.update({"embed.weight": t["embed.weight"].astype(F)})),
         "it holds tensor 'embed.weight' as F32 [50, 40], which this output has as BF16 [50, 40]"),
        (with_other_metadata, "its header has other metadata"),
    ],
)  # fmt: skip
def test_what_cannot_be_an_output_is_not_skipped(tiny, tmp_path, change, message):
    ne.merge_each(tiny[0], {"a": tiny[1]}, tmp_path / "out")
    change(tmp_path / "out" / "a")
    said = f"a: exists but is not a result of this merge ({message}"
    refused(tmp_path, said, skip(tiny[0], {"a": tiny[1], "b": tiny[1]}, tmp_path / "out"))


def test_a_tensor_that_this_adapter_adds_is_missed(tiny, tmp_path):
    ne.merge_each(tiny[0], {"a": tiny[1]}, tmp_path / "out")
    adapter = with_whole(tiny_adapter(), **{"head.weight": np.ones((3, 40), F)})
    message = "it lacks tensor 'head.weight', which this output has"
    refused(tmp_path, message, skip(tiny[0], {"a": adapter}, tmp_path / "out"))


def test_the_base_is_no_output_to_skip(single, tiny, tmp_path):
    shutil.move(tmp_path / "adapter", tmp_path / "single")
    message = "single.safetensors: is an input; inputs are never changed"
    refused(tmp_path, message, skip(single, [tmp_path / "single"], tmp_path))
