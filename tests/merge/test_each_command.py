"""``nola-edge merge --each``."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil

import pytest

from nola_edge import Adapter
from nola_edge.adapters.fingerprints import checkpoint_fingerprint
from tests.conftest import snapshot
from tests.merge.each import one_by_one, run, saved


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
