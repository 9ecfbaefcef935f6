"""Several processes divide the outputs of one command; each is told, or finds out, its number."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nola_edge as ne
from nola_edge.errors import ArgumentError
from nola_edge.merge.many import process_share as share_module
from nola_edge.merge.many.process_share import Share
from tests.conftest import snapshot, tiny_adapter

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SLURM = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "6"}


@given(items=st.lists(st.integers()), count=st.integers(1, 20))
def test_shares_are_a_division(items, count):
    shares = [Share.of((i, count)).take(items) for i in range(count)]
    assert sorted(n for part in shares for n in part) == sorted(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, Share(3, 8, 4)),
        ({**TORCHRUN, **SLURM}, Share(3, 8, 4)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Share(0, 1)),
        (SLURM, Share(1, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, Share(0, 1)),
        ({**SLURM, "RANK": "0", "LOCAL_WORLD_SIZE": "4"}, Share(1, 2)),
        ({**OPEN_MPI, "LOCAL_WORLD_SIZE": "4"}, Share(5, 6)),
    ],
)
def test_what_launchers_say(environment, expected):
    assert Share.of("auto", environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "torchrun: RANK, WORLD_SIZE; Slurm's srun: SLURM_PROCID"),
        ({"RANK": "1"}, "the environment does not say"),
        ({**SLURM, "SLURM_PROCID": "one"}, "SLURM_PROCID: is 'one', not a count"),
        ({**SLURM, "SLURM_PROCID": "-1"}, "SLURM_PROCID: is '-1', not a count"),
        ({**SLURM, "SLURM_NTASKS": ""}, "SLURM_NTASKS: is '', not a count"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "start the command with srun"),
        ({**SLURM, "SLURM_STEP_ID": "4294967291"}, "in a Slurm script for 2 tasks"),
        ({"RANK": "8", "WORLD_SIZE": "8"}, "8/8 in the variables of torchrun"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "x"}, "LOCAL_WORLD_SIZE: is 'x'"),
    ],
)
def test_an_environment_that_says_nothing_of_use(environment, message):
    with pytest.raises(ArgumentError) as caught:
        Share.of("auto", environment)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "shard",
    ["", "1", "1/", "/2", "-1/2", "2/2", "0/0", "1/2/3", " 0/2", "٠/٢", "a/b", "Auto", (2, 2),
     (-1, 2), (0.0, 2), (False, 2), (0, 1, 2), 3, b"0/2"],
)  # fmt: skip
def test_what_is_no_shard(tiny, tmp_path, shard):
    before = snapshot(tmp_path)
    with pytest.raises(ArgumentError, match="must be i/n") as caught:
        ne.merge_each(*tiny, tmp_path / "out", shard=shard)
    assert str(caught.value).isprintable()
    assert snapshot(tmp_path) == before


def test_processes_of_torchrun_divide_the_processors(monkeypatch):
    monkeypatch.setattr(share_module, "default_threads", lambda: 9)
    share = Share.of("auto", {**TORCHRUN, "OMP_NUM_THREADS": "1"})
    assert share.threads(None) == 2
    assert share.threads(5) == 5
    assert Share.of("auto", {**TORCHRUN, "LOCAL_WORLD_SIZE": "64"}).threads(None) == 1
    assert Share.of("auto", SLURM).threads(None) is None
    assert Share.of("0/2").threads(None) is None


def start(tiny, tmp_path, *options, **environment):
    adapters = [tmp_path / f"a{i}" for i in range(5)]
    return subprocess.Popen(
        [sys.executable, "-m", "nola_edge", "merge", tiny[0], *adapters, "--each", "-o",
         tmp_path / "out", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture
def five(tiny, tmp_path):
    """Five adapters, and the outputs of a single process."""
    adapters = [tmp_path / f"a{i}" for i in range(5)]
    for seed, path in enumerate(adapters):
        tiny_adapter(seed=seed).save(path)
    ne.merge_each(tiny[0], adapters, tmp_path / "alone")
    return snapshot(tmp_path / "alone")


def test_three_processes_at_once(five, tiny, tmp_path):
    """They make the folder, and write into it, at the same time."""
    before = set(tmp_path.iterdir())
    processes = [start(tiny, tmp_path, "--shard", f"{i}/3") for i in range(3)]
    for number, process in enumerate(processes):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert f"out (shard {number}/3): {1 if number == 2 else 2} output" in out
    assert snapshot(tmp_path / "out") == five
    assert set(tmp_path.iterdir()) - before == {tmp_path / "out"}


def test_more_processes_than_adapters(five, tiny, tmp_path):
    before = snapshot(tmp_path)
    process = start(tiny, tmp_path, "--shard", "5/7")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert out.endswith("out (shard 5/7): nothing to do, 5 adapters for 7 processes\n")
    assert start(tiny, tmp_path, "--shard", "5/7", "--json").communicate()[0] == "[]\n"
    assert snapshot(tmp_path) == before


def test_a_process_that_fails_leaves_the_others_alone(five, tiny, tmp_path):
    """One share is there already: only its process refuses, and a rerun takes what is missing."""
    ne.merge_each(tiny[0], [tmp_path / "a1"], tmp_path / "out")
    processes = [
        start(
            tiny,
            tmp_path,
            "--shard",
            "auto",
            SLURM_PROCID=str(i),
            SLURM_NTASKS="2",
            SLURM_STEP_ID="0",
        )
        for i in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 2]
    assert "a1: exists already" in errors[1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a0", "a1", "a2", "a4"}
    again = start(tiny, tmp_path, "--shard", "1/2", "--skip-existing")
    assert "out (shard 1/2): 1 output, 1 existed already" in again.communicate(timeout=120)[0]
    assert snapshot(tmp_path / "out") == five
