"""What a caller must say of a checkpoint, and what is refused before anything is written."""

import numpy as np
import pytest

import nola_edge as ne
from nola_edge.adapters.peft_folder import PREFIX, WEIGHTS_NAME
from nola_edge.adapters.public_nola.devices import DrawnOn
from nola_edge.errors import AdapterError, ArgumentError, MismatchError, NotFiniteError
from tests.adapters.public_nola.checkpoints import (
    F,
    gpt2_tensors,
    pair,
    tiny_checkpoint,
    write_folder,
)
from tests.conftest import load_all, snapshot, tiny_adapter, write_safetensors
from tests.lora_folders import write_lora


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
    tensors = load_all(folder / WEIGHTS_NAME)
    tensors[f"{PREFIX}layers.0.v.lora_A.coefficients"][:] = 3e38
    write_safetensors(folder / WEIGHTS_NAME, tensors)
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


def test_a_file_that_is_no_adapter_stays_refused_by_name(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"x": np.ones(3, F)})
    refused(tmp_path, lambda: ne.load_adapter(tmp_path / "x.safetensors"), AdapterError, "packed")
