"""The commands on GGUF files, as processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.cli.in_process import call, refused
from tests.conftest import snapshot
from tests.gguf.test_merge import BLOCK, MODULES, adapter_of, arrays_of, stored_name, write

pytest.importorskip("gguf")


def run(*arguments):
    command = [sys.executable, "-m", "nola_edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    adapter_of().save(folder / "adapter")
    return write(folder / "base.gguf", arrays_of("F16")), folder / "adapter"


def test_merge_and_verify(files, tmp_path):
    base, adapter = files
    done = run("merge", base, adapter, "-o", tmp_path / "out.gguf")
    assert done.returncode == 0, done.stderr
    assert f"{len(MODULES)} of {len(arrays_of())} tensors merged" in done.stdout
    assert "survives" not in done.stdout
    done = run("verify", tmp_path / "out.gguf", base, adapter)
    assert done.returncode == 0, done.stderr
    assert "identical" in done.stdout
    done = run("verify", base, base, adapter)
    assert done.returncode == 1
    assert f"DIFFERENT: {len(MODULES)} tensors" in done.stdout
    renamed = (tmp_path / "out.gguf").read_bytes().replace(b"token 7", b"token 8", 1)
    (tmp_path / "renamed.gguf").write_bytes(renamed)
    command = ["verify", tmp_path / "renamed.gguf", base, adapter]
    assert run(*command).stdout.startswith(
        "DIFFERENT: 1 file\n  renamed.gguf: the metadata differ from byte "
    )
    done = run(*command, "--tensors-only")
    assert done.returncode == 0
    assert "nothing else was compared" in done.stdout
    quantised = write(tmp_path / "q8.gguf", arrays_of("Q8_0"))
    run("merge", quantised, adapter, "-o", tmp_path / "q8-out.gguf")
    done = run("verify", quantised, quantised, adapter)
    assert "the adapter was dropped from all 8 tensors" in done.stdout
    assert "at most 0" not in done.stdout


def test_what_quantisation_leaves_is_said(files, tmp_path):
    _, adapter = files
    base = write(tmp_path / "q4.gguf", arrays_of("Q4_0"))
    small = adapter_of()
    small.replace({m: (c.alpha, c.beta / 50) for m, c in small.modules.items()}).save(
        tmp_path / "small"
    )
    done = run("merge", base, tmp_path / "small", "-o", tmp_path / "out.gguf")
    assert done.returncode == 0
    said = r"\d+% of the adapter's change survives quantisation in 8 tensors, beside noise of \d"
    assert re.search(said, done.stdout)
    assert re.match(r"warning: only \d+% of the adapter's change survives", done.stderr)
    assert "--outtype q8_0 or f16" in done.stderr
    assert "export gguf-lora" in done.stderr
    for option in ("-q", "--json"):
        done = run("merge", base, tmp_path / "small", "-o", tmp_path / f"x{option}.gguf", option)
        assert done.stderr.startswith("warning: only ")
        assert len(done.stderr.splitlines()) == 1
    done = run(
        "merge", base, adapter, "-o", tmp_path / "q8.gguf", "--outtype", "q8_0", "--json", "-q"
    )
    found = json.loads(done.stdout)
    assert done.stderr == ""
    assert set(found["survival"]) == {stored_name(module) for module in MODULES}
    for kept in (*found["survival"].values(), found["survival_overall"]):
        assert kept["part"] == pytest.approx(1, abs=0.02)
        assert 0 < kept["noise"] < 0.2
    done = run("verify", tmp_path / "q8.gguf", base, adapter)
    assert done.returncode == 0, done.stdout


def test_export(files, tmp_path):
    base, adapter = files
    done = run("export", "gguf-lora", adapter, f"{adapter}=0.5", "--base", base, "-o",
               tmp_path / "lora.gguf", "--dtype", "F16")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "exact LoRA for llama.cpp" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--each"], "--each is for checkpoints"),
        (["--shard", "0/2"], "--shard needs --each"),
        (["--outtype", "q4_k"], "'q4_k' is not one of"),
        (["--threads", "0"], "0 is not in the range"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, message, files, tmp_path):
    before = snapshot(tmp_path)
    done = run("merge", *files, "-o", tmp_path / "out.gguf", *arguments)
    assert 1 <= done.returncode <= 125
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert snapshot(tmp_path) == before


def test_a_checkpoint_keeps_its_dtypes(tiny, tmp_path):
    done = run("merge", *tiny, "-o", tmp_path / "out", "--outtype", "f16")
    assert "(--outtype) is for GGUF files" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_broken_file_is_one_line(files, tmp_path):
    base, adapter = files
    (tmp_path / "cut.gguf").write_bytes(base.read_bytes()[:-100])
    before = snapshot(tmp_path)
    for command in (
        ["merge", tmp_path / "cut.gguf", adapter, "-o", tmp_path / "out.gguf"],
        ["verify", base, tmp_path / "cut.gguf", adapter],
        ["verify", tmp_path / "cut.gguf", base, adapter],
        [
            "export",
            "gguf-lora",
            adapter,
            "--base",
            tmp_path / "cut.gguf",
            "-o",
            tmp_path / "l.gguf",
        ],
    ):
        done = run(*command)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "cut.gguf" in done.stderr
        assert "truncated" in done.stderr
    assert snapshot(tmp_path) == before


def test_where_a_checkpoint_is_needed_a_gguf_file_is_refused_by_name(tiny, tmp_path):
    base, adapter = write(tmp_path / "base.gguf", arrays_of()), tiny[1]
    for command in (
        ["inspect", base],
        ["merge", tiny[0], base, "-o", tmp_path / "out"],
        ["inspect", adapter, "--base", base],
        ["export", "lora", adapter, "--base", base, "-o", tmp_path / "lora"],
        ["verify", base, tiny[0], tiny[1]],
    ):
        done = run(*command)
        assert done.returncode == 2
        assert "is a GGUF file" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "lora").exists()
    assert not (tmp_path / "out").exists()
    (tmp_path / "gg").mkdir()
    (tmp_path / "gg" / "model.gguf").write_bytes(base.read_bytes())
    done = run("merge", tmp_path / "gg", adapter, "-o", tmp_path / "out")
    assert "has no safetensors weights, but model.gguf" in done.stderr


def test_a_name_that_says_another_format_is_refused(files, tiny, tmp_path):
    before = snapshot(tmp_path)
    for base, name in ((files[0], "x.safetensors"), (tiny[0], "x.gguf")):
        done = run("merge", base, files[1], "-o", tmp_path / name)
        assert done.returncode == 2
        assert "write -o" in done.stderr
    assert snapshot(tmp_path) == before


def test_a_kill_leaves_nothing_behind_that_looks_complete(tmp_path):
    """Killed in the middle, there is no output; the next run sweeps what was left and succeeds."""
    import signal
    import time

    from nola_edge.demo.synthetic import trained_adapter
    from tests.conftest import default_signals

    module, shape = BLOCK.format(0) + "mlp.down_proj", (4096, 8192)
    trained_adapter({module: shape}, r=4, num_basis=20, seed=5).save(tmp_path / "adapter")
    base = write(tmp_path / "base.gguf", {stored_name(module): np.zeros(shape, np.float16)})
    out = tmp_path / "out.gguf"
    command = [sys.executable, "-m", "nola_edge", "merge", base, tmp_path / "adapter", "-o", out]
    assert subprocess.run([*map(str, command), "-q"]).returncode == 0
    complete = out.read_bytes()
    out.unlink()
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(
            [*map(str, command), "--threads", "1", "-q"], preexec_fn=default_signals
        )
        while process.poll() is None and not list(tmp_path.glob(".*partial/file")):
            time.sleep(0.001)
        process.send_signal(number)
        process.wait(timeout=60)
        assert not out.exists() or out.read_bytes() == complete
        out.unlink(missing_ok=True)
    assert subprocess.run([*map(str, command), "-q"]).returncode == 0
    assert not list(tmp_path.glob(".*partial"))


def test_an_adapter_that_changes_nothing_has_nothing_to_lose(tmp_path):
    adapter = adapter_of()
    adapter.replace({m: (c.alpha, c.beta * 0) for m, c in adapter.modules.items()}).save(
        tmp_path / "fresh"
    )
    base = write(tmp_path / "base.gguf", arrays_of("Q4_0"))
    done = run("merge", base, tmp_path / "fresh", "-o", tmp_path / "one.gguf")
    assert "the adapter changes nothing" in done.stdout
    assert done.stderr == ""
    done = run("merge", base, tmp_path / "fresh", "-o", tmp_path / "two.gguf", "--json")
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    for kept in (*found["survival"].values(), found["survival_overall"]):
        assert kept == {"part": None, "noise": None}


def test_pipes_are_refused(files, tiny, tmp_path):
    _, adapter = files
    os.mkfifo(tmp_path / "pipe")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(next(tiny[0].glob("*1-of*")).read_bytes())
    os.mkfifo(folder / "config.json")
    for command in (
        ["merge", tmp_path / "pipe", adapter, "-o", tmp_path / "out.safetensors"],
        ["verify", tmp_path / "pipe", tmp_path / "pipe", adapter],
        ["export", "gguf-lora", adapter, "--base", tmp_path / "pipe", "-o", tmp_path / "o.gguf"],
        ["export", "gguf-lora", tiny[1], "--base", folder, "-o", tmp_path / "o.gguf"],
    ):
        done = run(*command)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


NOTE = "the base was not checked: adapters record no fingerprint of a GGUF file"


def commands(base, adapter, folder):
    """Every command that takes a GGUF base, after one that it needs."""
    out = folder / "out.gguf"
    return [
        ["merge", base, adapter, "-o", out],
        ["verify", out, base, adapter],
        ["export", "gguf-lora", adapter, "--base", base, "-o", folder / "lora.gguf"],
    ]


@pytest.mark.parametrize("option", [[], ["--no-check-base"]])
def test_a_base_that_cannot_be_checked_is_named(files, tmp_path, option):
    for command in commands(*files, tmp_path):
        assert f"  {NOTE}\n" in call(*command, *option).stdout
        force = ["--force"] * (command[0] != "verify")
        found = json.loads(call(*command, *option, *force, "--json").stdout)
        assert (found["base_checked"], found["notes"]) == (False, [NOTE])


def test_a_check_that_cannot_be_made_is_refused(files, tmp_path):
    for command in commands(*files, tmp_path):
        before = snapshot(tmp_path)
        said = refused(*command, "--check-base")
        assert "adapters record no fingerprint of a GGUF file; leave it out" in said
        assert snapshot(tmp_path) == before
        assert call(*command).returncode == 0


def test_what_survives_everywhere_alike_is_said_once(files, tmp_path, monkeypatch):
    base = write(tmp_path / "q8.gguf", arrays_of("Q8_0"))
    monkeypatch.setattr("nola_edge.gguf.survival.Survival.part", 0.987)
    monkeypatch.setattr("nola_edge.gguf.survival.Survival.noise", 0.025)
    done = call("merge", base, files[1], "-o", tmp_path / "out.gguf")
    line = "  99% of the adapter's change survives quantisation in 8 tensors, beside noise of 0.03 "
    assert line + "times its size\n" in done.stdout
    assert done.stderr == ""


def test_the_advice_is_not_what_was_done_already(files, tmp_path, monkeypatch):
    monkeypatch.setattr("nola_edge.gguf.survival.Survival.part", 0.5)
    options = ["--outtype", "q8_0"]
    said = call("merge", *files, "-o", tmp_path / "out.gguf", *options).stderr
    assert "warning: only 50%" in said
    assert "--outtype f16)" in said
    assert "q8_0" not in said
