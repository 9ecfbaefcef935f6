"""The command line as a user or a script meets it."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

import nola_edge as ne
from tests.conftest import ISAS, default_signals, load_all, snapshot, write_safetensors
from tests.lora_folders import factors, write_lora


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "nola_edge", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    "command",
    [
        ["merge"],
        ["inspect"],
        ["verify"],
        ["hash"],
        ["export", "lora"],
        ["export", "gguf-lora"],
        ["convert"],
        ["demo"],
        ["info"],
        ["quantize"],
        ["pack"],
        ["unpack"],
    ],
)
def test_help_teaches_with_an_example(command):
    done = run(*command, "--help")
    assert done.returncode == 0
    assert "Example: " in done.stdout
    assert command[-1] in run(*command[:-1], "--help").stdout


def test_merge_verify_and_their_json(tiny, tmp_path):
    base, adapter = tiny
    done = run("merge", base, adapter, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["merged"] == 3
    done = run("verify", tmp_path / "out", base, adapter)
    assert done.returncode == 0
    assert done.stdout.startswith("identical: 8 tensors (3 merged)")
    done = run("verify", base, base, adapter, "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert not report["identical"]
    assert {d["tensor"] for d in report["differences"]} == {
        "layers.0.q.weight", "layers.0.v.weight", "layers.1.q.weight",
    }  # fmt: skip


def test_verify_says_which_files_differ(tiny, tmp_path):
    base, adapter = tiny
    run("merge", base, adapter, "-o", tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text('{"model_type": "other"}')
    (tmp_path / "out" / "sub" / "tokenizer.txt").unlink()
    command = ["verify", tmp_path / "out", base, adapter]
    done = run(*command)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "DIFFERENT: 2 files",
        "  config.json: differs in model_type",
        "  sub/tokenizer.txt: is missing",
    ]
    report = json.loads(run(*command, "--json").stdout)
    assert not report["identical"]
    assert report["differences"] == []
    assert [(f["file"], f["problem"]) for f in report["files"]] == [
        ("config.json", "content"), ("sub/tokenizer.txt", "missing"),
    ]  # fmt: skip
    done = run(*command, "--tensors-only")
    assert done.returncode == 0
    assert done.stdout.endswith("every bit as base and adapter give; nothing else was compared\n")
    command[1] = base
    (base / "stray.txt").write_text("a companion, and so no difference")
    assert run(*command).stdout.startswith("DIFFERENT: 3 tensors\n")
    (tmp_path / "out" / "stray.txt").write_text("another")
    command[1] = tmp_path / "out"
    assert run(*command).stdout.startswith("DIFFERENT: 3 files\n")


def test_a_merge_says_what_it_carried_over_and_what_not(tiny, tmp_path):
    base, adapter = tiny
    shutil.copy(adapter / "adapter_model.safetensors", base / "sub" / "part.safetensors")
    (base / "checkpoint-3").mkdir()
    for name in ("adapter_config.json", "checkpoint-3/config.json", "pytorch_model.bin"):
        (base / name).write_text("{}")
    done = run("merge", base, adapter, "-o", tmp_path / "out")
    assert "  copied unchanged: sub/part.safetensors\n" in done.stdout
    assert "  not copied: adapter_config.json, pytorch_model.bin, checkpoint-3\n" in done.stdout


def test_a_head_with_other_labels_is_noted(tiny, tmp_path):
    base, adapter = tiny
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_all(adapter / "adapter_model.safetensors")
    tensors["base_model.model.score.weight"] = np.ones((5, 40), np.float32)
    write_safetensors(adapter / "adapter_model.safetensors", tensors)
    config["modules_to_save"] = ["score"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    done = run("merge", base, adapter, "-o", tmp_path / "out")
    assert done.returncode == 0
    (note,) = (line for line in done.stdout.splitlines() if "note: " in line)
    assert note.startswith("  note: score.weight has 5 labels, the base's config.json 2: ")
    assert "num_labels=5" in note
    assert run("merge", base, adapter, "-o", tmp_path / "quiet", "-q").stdout == ""


@pytest.mark.parametrize(
    ("folders", "advised"),
    [(["french", "german"], "german"), (["checkpoint-1000", "checkpoint-200"], "checkpoint-1000")],
)
def test_adapters_in_subfolders_are_pointed_at(tiny, tmp_path, folders, advised):
    """As PEFT saves several, and as a Trainer saves its run."""
    base, adapter = tiny
    for folder in folders:
        shutil.copytree(adapter, tmp_path / "run" / folder)
    before = snapshot(tmp_path)
    for command in (["merge", base, tmp_path / "run", "-o", tmp_path / "out"],
                    ["inspect", tmp_path / "run"]):  # fmt: skip
        done = run(*command)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "has no adapter_config.json, but its subfolders do" in done.stderr
        assert done.stderr.endswith(f"give one of them, such as {tmp_path}/run/{advised}\n")
    assert snapshot(tmp_path) == before


def test_quantize_pack_unpack_merge(tiny, tmp_path):
    base, adapter = tiny
    done = run("quantize", adapter, "--bits", "4", "-o", tmp_path / "small")
    assert done.returncode == 0, done.stderr
    assert "60 coefficients of 4 bits" in done.stdout
    done = run("pack", tmp_path / "small", "-o", tmp_path / "small.nola")
    assert "bytes each in total" in done.stdout
    assert (
        json.loads(run("inspect", tmp_path / "small.nola", "--json").stdout)["coefficient_bits"]
        == 4
    )
    assert "in 4 bits" in run("inspect", tmp_path / "small.nola").stdout
    run("unpack", tmp_path / "small.nola", "-o", tmp_path / "again")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "small" / name).read_bytes()
    outputs = []
    for number, source in enumerate(("small", "small.nola", "again")):
        done = run("merge", base, tmp_path / source, "-o", tmp_path / f"out{number}")
        assert done.returncode == 0, done.stderr
        outputs.append(load_all(tmp_path / f"out{number}"))
    for other in outputs[1:]:
        assert all(other[name].tobytes() == v.tobytes() for name, v in outputs[0].items())


def test_weights_of_adapters(tiny, tmp_path):
    base, adapter = tiny
    run("merge", base, adapter, "-o", tmp_path / "one")
    run("merge", base, f"{adapter}=0.25", f"{adapter}=0.75", "-o", tmp_path / "two")
    arguments = [base, f"{adapter}=0.25", f"{adapter}=0.75"]
    assert run("verify", tmp_path / "two", *arguments).returncode == 0
    assert "weight" in run("merge", base, f"{adapter}=x", "-o", tmp_path / "no").stderr


def test_lora_through_the_commands(tiny, tmp_path):
    """Merged, verified, shown, and several of both methods made into one."""
    base, nola = tiny
    lora = write_lora(
        tmp_path / "lora", factors(ranks={"layers.0.v": 2}), rank_pattern={"layers.0.v": 2}
    )
    assert run("merge", base, lora, "-o", tmp_path / "out").returncode == 0
    shown = run("inspect", lora, "--base", base, "--modules").stdout
    assert "rank 4 (2), 2" in shown
    assert re.search(r"layers\.0\.v +40 x 24: rank 2, scaling 4", shown)
    data = json.loads(run("inspect", lora, "--json").stdout)
    assert data["modules"]["layers.0.q"]["rank"] == 4
    assert data["parameters"] == 2 * 4 * 64 + 2 * 64
    both = [nola, f"{lora}=0.5"]
    done = run("export", "lora", *both, "--base", base, "-o", tmp_path / "both")
    assert done.returncode == 0, done.stderr
    ne.merge_checkpoint(base, tmp_path / "both", tmp_path / "one")
    assert ne.verify_checkpoint(tmp_path / "one", base, [nola, (lora, 0.5)]).identical
    refused = run("pack", lora, "-o", tmp_path / "x.nola")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "is 'LORA', must be 'NOLA'" in refused.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["merge", "{base}", "{adapter}", "-o", "{base}/out"],
        ["merge", "{base}", "absent", "-o", "{tmp}/out"],
        ["merge", "absent", "{adapter}", "-o", "{tmp}/out"],
        ["merge", "{base}", "{adapter}"],
        ["merge", "{base}", "-o", "{tmp}/out"],
        ["merge", "{base}", "{adapter}", "-o", "{tmp}/out", "--threads", "0"],
        ["verify", "{base}", "{base}"],
        ["inspect", "{base}"],
        ["quantize", "{adapter}", "--bits", "5", "-o", "{tmp}/out"],
        ["quantize", "{adapter}", "-o", "{adapter}"],
        ["pack", "{base}", "-o", "{tmp}/out.nola"],
        ["pack", "{adapter}", "-o", "{adapter}/one.nola"],
        ["unpack", "{base}/model.safetensors", "-o", "{tmp}/out"],
        ["export", "lora", "{adapter}", "--base", "{adapter}", "-o", "{tmp}/out"],
        ["nonsense"],
        ["demo", "--keep", "{base}"],
        ["merge", "{base}", "{adapter}=nan", "-o", "{tmp}/out"],
    ],
)
def test_a_refusal_is_one_line_and_changes_nothing(tiny, tmp_path, arguments):
    names = {"base": tiny[0], "adapter": tiny[1], "tmp": tmp_path}
    before = snapshot(tmp_path)
    done = run(*(argument.format(**names) for argument in arguments))
    assert 1 <= done.returncode <= 125
    assert done.stderr.startswith("nola-edge: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr[:-1].isprintable()
    assert done.stdout == ""
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", [*ISAS, "neon", "sse9"])
def test_forced_instruction_sets(name):
    done = run("info", "--json", NOLA_EDGE_ISA=name)
    if name in ISAS:
        assert json.loads(done.stdout)["active_isa"] == name
    else:
        assert done.returncode == 2
        assert "NOLA_EDGE_ISA" in done.stderr
        assert done.stderr.count("\n") == 1


def test_import_brings_only_numpy():
    code = (
        "import sys, nola_edge; heavy = {'torch', 'ml_dtypes', 'safetensors', 'click', 'tqdm', "
        "'huggingface_hub', 'transformers', 'peft'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_command_there_is_help():
    done = run()
    assert done.returncode == 2
    assert "\nCommands:\n" in done.stderr
    assert "nola-edge demo" in done.stderr


def test_a_reader_that_leaves_is_no_verdict(tiny, tmp_path):
    run("merge", *tiny, "-o", tmp_path / "out")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "nola_edge", "verify", tmp_path / "out"]
    done = subprocess.run([*command, tiny[0], tiny[1]], stdout=write)
    os.close(write)
    assert done.returncode == -signal.SIGPIPE


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_change_no_status(tiny, tmp_path, closed):
    """Nor does what is written get the number of one, and with it what is printed."""
    base, adapter = tiny
    run("merge", base, adapter, "-o", tmp_path / "open")
    out = tmp_path / "out"

    def run_closed(*arguments):
        command = shlex.join([sys.executable, "-m", "nola_edge", *map(str, arguments)])
        done = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, text=True)
        if "2>&-" not in closed:
            assert done.stderr.count("\n") == (done.returncode == 2)
        return done.returncode, done.stdout

    assert run_closed("merge", base, adapter, "-o", out)[0] == 0
    assert snapshot(out) == snapshot(tmp_path / "open")
    before = snapshot(tmp_path)
    assert run_closed("verify", out, base, adapter)[0] == 0
    assert run_closed("verify", base, base, adapter)[0] == 1
    assert run_closed("merge", base, tmp_path / "none", "-o", tmp_path / "new") == (2, "")
    assert run_closed("--version")[0] == 0
    assert snapshot(tmp_path) == before


@pytest.mark.kill
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_keeps_nothing(tmp_path, number):
    command = [sys.executable, "-m", "nola_edge", "demo", "--keep", str(tmp_path / "kept")]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=default_signals,
    )
    for line in process.stdout:
        if b"merging" in line:
            break
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == -number
    assert snapshot(tmp_path) == {}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("json_too", [(), ("--json",)])
def test_a_full_standard_output_is_no_failed_merge(tiny, tmp_path, json_too):
    """What was asked for is on disk; where it was to be printed, it is not there."""
    base, adapter = tiny
    command = [sys.executable, "-m", "nola_edge"]
    out = tmp_path / "out"

    def run_full(*arguments):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*command, *map(str, arguments), *json_too], stdout=full, stderr=subprocess.PIPE
            )
        said = done.stderr.decode()
        assert said.count("\n") == 1
        assert "standard output cannot be written: No space left on device" in said
        return done.returncode, said

    status, said = run_full("merge", base, adapter, "-o", out)
    assert status == 0
    assert "complete" in said
    assert run("verify", out, base, adapter).returncode == 0
    assert run_full("inspect", adapter)[0] == 2
    assert run_full("verify", out, base, adapter)[0] == 2
    assert run_full("verify", base, base, adapter)[0] == 1


def test_no_adapter_is_written_in_its_own_place(tiny, tmp_path):
    """Bits that were rounded away do not come back."""
    packed = tmp_path / "small.nola"
    assert run("pack", tiny[1], "-o", packed).returncode == 0
    before = snapshot(tmp_path)
    for command, path in (("quantize", tiny[1]), ("unpack", tiny[1]), ("pack", packed)):
        done = run(command, path, "-o", path, "--force")
        assert done.returncode == 2
        assert "is an input; inputs are never changed" in done.stderr
    assert snapshot(tmp_path) == before
